"""The artefact at fit end, and the table that says what the stage bought."""

import dataclasses
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from transformers import PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.measure.memory import peak_mb, reset_peak
from lightgpt2.methods.method import Method
from lightgpt2.models.files import atomic_file, restore_folder, write_json
from lightgpt2.models.ledger import FILE, QUALITY, Entry, Parent, extended, read
from lightgpt2.models.loading import load_model
from lightgpt2.models.pruning import prunable
from lightgpt2.models.saving import measure_sizes, save_model, whole_weights
from lightgpt2.report.table import comparison
from lightgpt2.runs.run import Run
from lightgpt2.tasks.scoring import score


class Artefact(Callback):
    """Writes `checkpoints/<run>/model/` with its ledger, scores it from disk, and prints what changed.

    Teacher and starting model are scored before the first step. Each model is scored as it loads from disk, on the whole
    validation split, in FP32.

    Args:
        run: The run that the artefact belongs to.
        config: Its resolved configuration, kept beside the checkpoints, in the ledger and in TensorBoard.
        resuming: Whether a checkpoint will bring what was measured before. (With FSDP2 it is loaded after the fit has begun.)
    """

    def __init__(self, run: Run, config: dict[str, Any], resuming: bool) -> None:
        self.run, self.config, self.fresh = run, config, not resuming
        self._stale_logs = list(run.logs.glob("events.out.tfevents.*"))  # now: later this run's own are among them
        self._held: int | None = None
        self.figures: dict[str, dict[str, Any]] = {}
        self.curve: list[list[float]] = []
        self.seconds = 0.0
        self.peak_memory = 0.0
        self._saved = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the configuration, and scores what the result will be compared with unless a checkpoint brought that."""
        assert isinstance(pl_module, Method)
        if trainer.is_global_zero:
            self._lock()
            self._prepare_folder()
        if self.fresh:
            for label, model in pl_module.references.items():
                self._measure(trainer, pl_module, model, label)
            self._measure(trainer, pl_module, pl_module.start, "before")

    def _lock(self) -> None:
        """Keeps other processes out of the run's folder until the fit has ended, however it ends."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        self._held = os.open(self.run.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--run {self.run.name}: another process is at work in {self.run.folder}; wait for it, or give this run "
                "another name"
            ) from error

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _prepare_folder(self) -> None:
        restore_folder(self.run.model)
        for leftover in (*self.run.folder.glob(".scoring-*"), *self.run.folder.glob(".*.tmp")):  # of a killed process
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if not self.run.config.exists():
            self._write_config()

    def _write_config(self) -> None:
        with atomic_file(self.run.config) as temporary:
            temporary.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces what a finished run that is done again has left, and starts the clock."""
        self._started = time.monotonic() - self.seconds
        reset_peak()  # which loading and scoring have raised
        if trainer.is_global_zero:
            self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self._write_config()
        if self.fresh:
            for path in (self.run.last, self.run.best):
                path.unlink(missing_ok=True)
            for stale in (self.run.model, self.run.folder / "adapter"):
                shutil.rmtree(stale, ignore_errors=True)
        if isinstance(trainer.logger, TensorBoardLogger):
            for events in self._stale_logs if self.fresh else []:
                events.unlink(missing_ok=True)
            text = f"```yaml\n{self.run.config.read_text(encoding='utf-8')}\n```"
            trainer.logger.experiment.add_text("config", text, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes a point of the validation curve."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.curve.append([trainer.global_step, float(trainer.callback_metrics["val/perplexity"])])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the artefact; the last checkpoint is written after it, so no finished run lacks one."""
        assert isinstance(pl_module, Method)
        self.seconds = time.monotonic() - self._started
        self.peak_memory = max(self.peak_memory, peak_mb(torch.cuda.is_available()))
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: Method) -> None:
        self._saved = True  # on all processes: they gather the weights together or not at all
        weights = whole_weights(pl_module.model)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for stale in self.run.derived():  # of the artefact that is replaced
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        pl_module.save(self.run.model, data.tokenizer, weights)
        self._count_zeros(pl_module)
        self._write_ledger(trainer, pl_module)

    def _count_zeros(self, method: Method) -> None:
        """Completes the ledger's records of prunings by what lies on disk."""
        for operation in method.prunings:
            names = list(prunable(method.model, operation["targets"], "targets"))
            weights, pruned = method.masks.counts(names)
            zeros = method.zeros(self.run.model, names)
            if zeros < pruned:
                raise RuntimeError(f"{pruned} weights were pruned and {zeros} are zero on disk")
            operation |= {"tensors": len(names), "weights": weights, "pruned": pruned, "achieved": zeros / weights}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the artefact from disk and prints the table."""
        assert isinstance(pl_module, Method)
        unsaved = not self._saved and (self.fresh or not self.run.model.exists())
        if trainer.strategy.broadcast(unsaved):  # no step was to be taken, or none was left
            if trainer.is_global_zero:
                self._begin(trainer)
            self._save(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        if not (self._saved or self.fresh):
            print(f"Nothing was left to train: {self.run.folder} is at step {trainer.global_step}.", flush=True)
        self.figures["after"] = self._score_folder(trainer, pl_module, self.run.model, "after")
        self._write_ledger(trainer, pl_module)
        student = "student " if pl_module.teacher_source else ""
        names = {"before": f"{student}before", "after": f"{student}after"}
        print(comparison({names.get(key, key): figures for key, figures in self.figures.items()}), flush=True)
        code = any(self.run.model.glob("modeling_*.py"))
        how = " (in plain transformers with trust_remote_code=True)" if code else ""
        print(f"\nmodel: {self.run.model}{how}   TensorBoard: tensorboard --logdir tb-logs", flush=True)
        if isinstance(trainer.logger, TensorBoardLogger):
            final = {
                f"final/{k}": float(self.figures["after"][k]) for k in ("perplexity", "bits_per_byte", "megabytes")
            }
            trainer.logger.log_hyperparams(_flat(self.config), final)
            trainer.logger.save()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets others into the run's folder."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets others into the run's folder."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Figures so far and seconds trained."""
        seconds = time.monotonic() - self._started if hasattr(self, "_started") else self.seconds
        peak = max(self.peak_memory, peak_mb(torch.cuda.is_available()))
        return {"figures": self.figures, "seconds": seconds, "curve": self.curve, "peak_memory": peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.figures, self.seconds = state_dict["figures"], state_dict["seconds"]
        self.curve, self.peak_memory = state_dict["curve"], state_dict["peak_memory"]

    def _measure(self, trainer: Trainer, method: Method, model: PreTrainedModel, label: str) -> None:
        """Figures of a model in memory, through a temporary folder: what is scored is what a folder holds."""
        weights = whole_weights(model)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory(dir=self.run.folder, prefix=".scoring-") as temporary:
            if label == "before":
                method.save_start(Path(temporary) / "model", data.tokenizer, weights)
            else:
                save_model(model, data.tokenizer, Path(temporary) / "model", weights)
            self.figures[label] = self._score_folder(trainer, method, Path(temporary) / "model", label)

    def _score_folder(self, trainer: Trainer, method: Method, folder: Path, label: str) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        model = load_model(str(folder), "model", method.trust_remote_code)
        sizes = measure_sizes(model, folder)
        model.to(device=trainer.strategy.root_device)
        result = score(
            model, method.task, data.scoring_loader("valid"), data.document_sizes("valid"), f"Scoring {label}"
        )
        return {**result.as_dict(), **sizes.as_dict()}

    def _write_ledger(self, trainer: Trainer, method: Method) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        after = self.figures.get("after", {})
        entry = Entry(
            operations=[],
            stage=self.run.name,
            method=self.config["model"]["class_path"].rpartition(".")[2],
            config=self.config,
            parent=method.parent_record(),
            data=data.describe(),
            seed=torch.initial_seed(),
            steps=trainer.global_step,
            seconds=round(self.seconds, 1),
            quality={name: {k: figures[k] for k in QUALITY} for name, figures in self.figures.items()},
            sizes={k: v for k, v in after.items() if k not in QUALITY},
            curve=self.curve,
            training={"peak_memory_mb": round(self.peak_memory, 1)} if self.peak_memory else {},
            teacher=Parent.of(method.teacher_source) if method.teacher_source else None,
        )
        for folder, operations in method.ledgers(self.run.model).items():
            mine = extended(method.parent[0], dataclasses.replace(entry, operations=operations))
            old = [] if self._saved else read(str(folder))
            if old:  # of the same weights, which were not trained any further
                scored = {key: mine[-1][key] for key in ("quality", "sizes")}
                mine = [*old[:-1], {**old[-1], **scored, "quality": old[-1]["quality"] | scored["quality"]}]
            write_json(folder / FILE, mine)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, as TensorBoard's hparams want them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        elif value is not None:
            flat[name] = value if isinstance(value, bool | int | float | str) else yaml.safe_dump(value).strip()
    return flat
