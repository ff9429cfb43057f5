"""The artefact at fit end, and the table that says what the stage bought."""

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

from lightgpt2.errors import UserError
from lightgpt2.measure.memory import peak_mb, reset_peak
from lightgpt2.methods.method import Method
from lightgpt2.models.files import atomic_file, restore_folder
from lightgpt2.models.ledger import Entry, Ledger, Parent
from lightgpt2.models.loading import load_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.pruning import prunable
from lightgpt2.models.quality import Metric, write_scores
from lightgpt2.models.saving import measure_sizes, save_model, whole_weights
from lightgpt2.report.table import comparison
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import flat


class Artefact(Callback):
    """Writes `checkpoints/<run>/model/` with its ledger, scores it from disk, and prints what changed.

    Teacher and starting model are scored before the first step. Each model is scored as it loads from disk, on the whole
    validation split, in FP32.

    Args:
        run: The run that the artefact belongs to.
        config: Its resolved configuration, kept beside the checkpoints, in the ledger and in TensorBoard.
        resuming: Whether a checkpoint will bring what was measured before. (With FSDP2 it is loaded after the fit has begun.)

    Attributes:
        quality: What a ledger says about each model that was scored, by label.
        sizes: Their sizes.
        table: The table that was printed.
    """

    def __init__(self, run: Run, config: dict[str, Any], resuming: bool) -> None:
        self.run, self.config, self.fresh = run, config, not resuming
        self._stale_logs = list(run.logs.glob("events.out.tfevents.*"))  # now: later this run's own are among them
        self._held: int | None = None
        self.quality: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, dict[str, Any]] = {}
        self.table = ""
        self._metrics: dict[str, dict[str, Metric]] = {}
        self._samples: list[tuple[str, str]] = []
        self.curve: list[list[float]] = []
        self.seconds = 0.0
        self.peak_memory = 0.0
        self._operations: dict[Path, list[Operation]] = {}

    # -- before and during training ------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the configuration, and scores what the result will be compared with unless a checkpoint brought that."""
        assert isinstance(pl_module, Method)
        if trainer.is_global_zero:
            self._lock()
            self._prepare_folder()
        self.fresh = self.fresh and trainer.ckpt_path is None  # which FSDP2 sets after this
        if self.fresh:
            for label, model in pl_module.references.items():
                weights = whole_weights(model)
                with self._scratch(trainer) as folder:
                    if folder is not None:
                        save_model(model, pl_module.data.tokenizer, folder, weights)
                        self._score(trainer, pl_module, folder, label)
            weights = whole_weights(pl_module.model)
            with self._scratch(trainer) as folder:
                if folder is not None:
                    pl_module.save(folder, pl_module.data.tokenizer, weights)
                    self._samples = self._score(trainer, pl_module, folder, "before")

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
        self.fresh = trainer.ckpt_path is None
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
        assert isinstance(pl_module, Method)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            value = float(trainer.callback_metrics[f"val/{pl_module.task.primary}"])
            self.curve.append([trainer.global_step, value])

    # -- the artefact --------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the artefact; the last checkpoint is written after it, so no finished run lacks one."""
        assert isinstance(pl_module, Method)
        self.seconds = time.monotonic() - self._started
        self.peak_memory = max(self.peak_memory, peak_mb(torch.cuda.is_available()))
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, method: Method) -> None:
        weights = whole_weights(method.model)  # on all processes: they gather the weights together or not at all
        self._operations = {self.run.model: []}
        if not trainer.is_global_zero:
            return
        for stale in self.run.derived():  # of the artefact that is replaced
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        self._operations = method.save(self.run.model, method.data.tokenizer, weights)
        self._count_zeros(method)
        self._write_ledger(trainer, method)

    def _count_zeros(self, method: Method) -> None:
        """Completes the ledger's records of prunings by what lies on disk."""
        for operation in method.held.prunings:
            names = list(prunable(method.model, operation["targets"], "targets"))
            weights, pruned = method.held.masks.counts(names)
            zeros = method.zeros(self.run.model, names)
            if zeros < pruned:
                raise RuntimeError(f"{pruned} weights were pruned and {zeros} are zero on disk")
            operation |= {"tensors": len(names), "weights": weights, "pruned": pruned, "achieved": zeros / weights}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the artefact from disk and prints the table."""
        assert isinstance(pl_module, Method)
        unsaved = not self._operations and (self.fresh or not self.run.model.exists())
        if trainer.strategy.broadcast(unsaved):  # no step was to be taken, or none was left
            if trainer.is_global_zero:
                self._begin(trainer)
            self._save(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        if not (self._operations or self.fresh):
            print(f"Nothing was left to train: {self.run.folder} is at step {trainer.global_step}.", flush=True)
        after = self._score(trainer, pl_module, self.run.model, "after")
        self._write_ledger(trainer, pl_module, after)
        write_scores(self.run.model, self._metrics)
        student = "student " if pl_module.teacher_source else ""
        names = {"before": f"{student}before", "after": f"{student}after"}
        rows = {names.get(label, label): {**scored, **self.sizes[label]} for label, scored in self.quality.items()}
        self.table = comparison(rows)
        print(self.table, flush=True)
        code = any(self.run.model.glob("modeling_*.py"))
        how = " (in plain transformers with trust_remote_code=True)" if code else ""
        print(f"\nmodel: {self.run.model}{how}", flush=True)
        if isinstance(trainer.logger, TensorBoardLogger):
            metrics = {name: metric.value() for name, metric in self._metrics["after"].items()}
            final = {**metrics, "megabytes": float(self.sizes["after"]["megabytes"])}
            settings = {key: _plain(value) for key, value in flat(self.config).items() if value is not None}
            trainer.logger.log_hyperparams(settings, {f"final/{key}": value for key, value in final.items()})
            trainer.logger.save()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets others into the run's folder."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets others into the run's folder."""
        self._release()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the method's arguments, by which `load_from_checkpoint` makes the method again."""
        arguments = self.config["model"]["init_args"]
        checkpoint["hyper_parameters"] = {"_instantiator": "lightning.pytorch.cli.instantiate_module", **arguments}

    def state_dict(self) -> dict[str, Any]:
        """Figures so far, and seconds trained."""
        seconds = time.monotonic() - self._started if hasattr(self, "_started") else self.seconds
        peak = max(self.peak_memory, peak_mb(torch.cuda.is_available()))
        figures = {"quality": self.quality, "sizes": self.sizes, "samples": self._samples, "curve": self.curve}
        arrays = {
            label: {n: [m.numerators.tolist(), m.denominators.tolist()] for n, m in metrics.items()}
            for label, metrics in self._metrics.items()
        }
        return {**figures, "arrays": arrays, "seconds": seconds, "peak_memory": peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self.quality, self.sizes, self.curve = (state_dict[key] for key in ("quality", "sizes", "curve"))
        self._samples = [(prompt, text) for prompt, text in state_dict["samples"]]
        self.seconds, self.peak_memory = state_dict["seconds"], state_dict["peak_memory"]
        self._metrics = {
            label: {name: Metric.restored(name, self.quality[label][name], *parts) for name, parts in metrics.items()}
            for label, metrics in state_dict["arrays"].items()
        }

    # -- inside --------------------------------------------------------------------------------------------------------

    def _scratch(self, trainer: Trainer) -> "_Scratch":
        return _Scratch(self.run.folder if trainer.is_global_zero else None)

    def _score(self, trainer: Trainer, method: Method, folder: Path, label: str) -> list[tuple[str, str]]:
        """Scores a model as it loads from disk; returns its samples."""
        model = load_model(str(folder), "model", method.trust_remote_code)
        self.sizes[label] = measure_sizes(model, folder).as_dict()
        model.to(device=trainer.strategy.root_device)
        self._metrics[label] = method.task.evaluate(model, method.data, "valid", f"Scoring {label}")
        self.quality[label] = method.task.quality(self._metrics[label])
        if label not in ("before", "after"):
            return []
        prompts = method.task.prompts(method.data)
        return method.task.samples(model, method.data.tokenizer, prompts) if prompts else []

    def _write_ledger(self, trainer: Trainer, method: Method, after: list[tuple[str, str]] | None = None) -> None:
        entry = Entry(
            operations=[],
            stage=self.run.name,
            method=self.config["model"]["class_path"].rpartition(".")[2],
            config=self.config,
            parent=method.parent_record(),
            data=method.data.describe(),
            seed=torch.initial_seed(),
            steps=trainer.global_step,
            seconds=round(self.seconds, 1),
            quality=self.quality,
            sizes=self.sizes.get("after", {}),
            curve=self.curve,
            training={"peak_memory_mb": round(self.peak_memory, 1)} if self.peak_memory else {},
            teacher=Parent.of(method.teacher_source) if method.teacher_source else None,
            samples=_paired(self._samples, after or []),
            reference_sizes={label: sizes for label, sizes in self.sizes.items() if label != "after"},
        )
        source = Ledger.read(method.start.source)
        for folder, operations in self._operations.items():
            entry.operations = operations
            source.extended(entry).write(folder)
        if not self._operations:  # of the same weights, which were not trained any further
            for folder in (self.run.model, self.run.folder / "adapter"):
                if old := Ledger.read(folder):
                    old.amended(quality=entry.quality, sizes=entry.sizes).write(folder)


class _Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder for a model that is scored and removed; None on all processes but the first."""

    def __init__(self, parent: Path | None) -> None:
        self._active = parent is not None
        if parent is not None:
            super().__init__(dir=parent, prefix=".scoring-")

    def __enter__(self) -> Path | None:  # type: ignore[override]
        return Path(super().__enter__()) / "model" if self._active else None

    def __exit__(self, *exception: Any) -> None:
        if self._active:
            super().__exit__(*exception)


def _paired(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Samples of two models on the same prompts, side by side."""
    texts = dict(before)
    return [{"prompt": prompt, "before": texts.get(prompt), "after": text} for prompt, text in after]


def _plain(value: Any) -> Any:
    """A setting as TensorBoard's hparams want it."""
    return value if isinstance(value, bool | int | float | str) else yaml.safe_dump(value).strip()
