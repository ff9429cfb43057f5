"""The artefact at fit end, and the table that says what the stage bought."""

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer
from transformers import PreTrainedModel

from lightgpt2.callbacks.board import Board
from lightgpt2.errors import UserError
from lightgpt2.measure.memory import peak_mb, reset_peak
from lightgpt2.methods.method import Method
from lightgpt2.models.adapters import ADAPTER
from lightgpt2.models.files import atomic_file, clear_leftovers, remove, scratch_folder
from lightgpt2.models.ledger import Entry, Ledger, Parent
from lightgpt2.models.loading import load_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.quality import Metric, value_of, write_scores
from lightgpt2.models.saving import measure_sizes, save_model, whole_weights
from lightgpt2.models.sources import stored_size
from lightgpt2.report.confusion import confusion_image
from lightgpt2.report.table import class_table, comparison, sample_table
from lightgpt2.runs.run import Run
from lightgpt2.runs.settings import flat


class Artefact(Callback):
    """Writes `checkpoints/<run>/model/` with its ledger, scores it from disk, and prints what changed.

    Teacher and starting model are scored before the first step. Each model is scored as it loads from disk, on the whole
    validation split, in FP32.

    Args:
        run: The run that the artefact belongs to.
        config: Its resolved configuration, kept beside the checkpoints, in the ledger and in the loggers.
        resuming: Whether a checkpoint will bring what was measured before. (With FSDP2 it is loaded after the fit has begun.)

    Attributes:
        quality: What a ledger says about each model that was scored, by label.
        sizes: Their sizes.
        table: The table that was printed.
    """

    def __init__(self, run: Run, config: dict[str, Any], resuming: bool) -> None:
        self.run, self.config, self.fresh = run, config, not resuming
        # Now: later this run's own are among them.
        self._stale_logs = [path for name in ("events.out.tfevents.*", "version_*") for path in run.logs.glob(name)]
        self._held: int | None = None
        self.quality: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, dict[str, Any]] = {}
        self.table = ""
        self._metrics: dict[str, dict[str, Metric]] = {}
        self._samples: dict[str, list[tuple[str, str]]] = {"before": [], "after": []}
        self._references: Mapping[str, str] = {}
        self.curve: list[list[float]] = []
        self._started: float | None = None  # while it trains
        self.seconds = 0.0
        self.peak_memory = 0.0
        self._operations: dict[Path, list[Operation]] = {}  # by the folder that was saved

    # -- before and during training ------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        """Writes the configuration, and scores what the result will be compared with unless a checkpoint brought that."""
        if trainer.is_global_zero:
            self._lock()
            clear_leftovers(self.run.folder)
            if not self.run.config.exists():
                self._write_config()
        self.fresh = self.fresh and trainer.ckpt_path is None  # which FSDP2 sets after this
        if self.fresh:
            for label, model in pl_module.references.items():
                self._score_start(trainer, pl_module, label, model)
            self._score_start(trainer, pl_module, "before")
            self._doubt_teacher(pl_module, "before")

    def _lock(self) -> None:
        """Keeps other processes out of the run's folder until the fit has ended, however it ends."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        self._held = os.open(self.run.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            what = f"another process is at work in {self.run.folder}; wait for it, or give this run another name"
            raise UserError(f"--run {self.run.name}: {what}") from error

    def teardown(self, trainer: Trainer, pl_module: Method, stage: str) -> None:
        self._unlock()

    def on_exception(self, trainer: Trainer, pl_module: Method, exception: BaseException) -> None:
        self._unlock()

    def _unlock(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _write_config(self) -> None:
        with atomic_file(self.run.config) as temporary:
            temporary.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        self.fresh = trainer.ckpt_path is None
        self._started = time.monotonic() - self.seconds
        reset_peak()  # which loading and scoring have raised
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        """Replaces what a finished run that is done again has left."""
        if not trainer.is_global_zero:
            return
        self._write_config()
        stale = [self.run.last, self.run.best, self.run.model, self.run.folder / ADAPTER, *self._stale_logs]
        for path in stale if self.fresh else []:
            remove(path)
        Board(trainer).text("config", f"```yaml\n{self.run.config.read_text(encoding='utf-8')}\n```")

    def on_validation_end(self, trainer: Trainer, pl_module: Method) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            value = float(trainer.callback_metrics[f"val/{pl_module.task.primary}"])
            self.curve.append([trainer.global_step, value])

    # -- the artefact --------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: Method) -> None:
        """Saves the artefact; the last checkpoint is written after it, so no finished run lacks one."""
        self._read_clock()
        self._started = None
        self._save(trainer, pl_module)

    def _read_clock(self) -> None:
        if self._started is not None:
            self.seconds = time.monotonic() - self._started
            self.peak_memory = max(self.peak_memory, peak_mb(torch.cuda.is_available()))

    def _save(self, trainer: Trainer, method: Method) -> None:
        weights = whole_weights(method.model)  # on all processes: they gather the weights together or not at all
        self._operations = {self.run.model: []}
        if not trainer.is_global_zero:
            return
        for stale in self.run.derived():  # of the artefact that is replaced
            remove(stale)
        self._operations = method.save(self.run.model, method.data.tokenizer, weights)
        method.count_zeros(self.run.model)
        self._write_ledger(trainer, method)

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        unsaved = not self._operations and (self.fresh or not self._is_whole())
        if trainer.strategy.broadcast(unsaved):  # no step was to be taken, or none was left
            self._begin(trainer)
            self._save(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        if not (self._operations or self.fresh):
            print(f"Nothing was left to train: {self.run.folder} is at step {trainer.global_step}.", flush=True)
        self._score(trainer, pl_module, self.run.model, "after")
        self._score_baselines(pl_module)
        self._write_ledger(trainer, pl_module)
        write_scores(self.run.model, self._metrics)
        student = "student " if pl_module.objective.teacher_source else ""
        names = {"before": f"{student}before", "after": f"{student}after"}
        scores = self.quality.items()
        rows = {names.get(label, label): {**scored, **self.sizes.get(label, {})} for label, scored in scores}
        self.table = comparison(rows)
        print(self.table, class_table(self.quality["after"]), sep="", flush=True)
        code = any(self.run.model.glob("modeling_*.py"))
        how = " (in plain transformers with trust_remote_code=True)" if code else ""
        print(f"\nmodel: {self.run.model}{how}", flush=True)
        if (adapter := self.run.folder / ADAPTER).is_dir():
            print(f"adapter: {adapter}", flush=True)
        self._doubt_teacher(pl_module, "after")
        source = _source(pl_module, "before")
        if source and not pl_module.precision and (types := stored_size(source)[1]) and types <= {"BF16", "F16"}:
            said = f"{source} is stored in {' and '.join(sorted(types))}"
            print(f"{said}, and this model in FP32: its file is twice as large.", flush=True)
        self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        """Shows what the run has come to beside its settings."""
        board = Board(trainer)
        if len(self.curve) == 1:
            metrics = {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
            }
            board.repeat(metrics, step=int(self.curve[0][0]))
        if self._references:
            board.text("compared", sample_table([self._sample(*pair) for pair in self._samples["after"]]))
        if (image := confusion_image(self.quality["after"])) is not None:
            board.picture("confusion", image)
        sizes = {key: float(self.sizes["after"][key]) for key in ("megabytes", "parameters")}
        final = sizes | {name: metric.value() for name, metric in self._metrics["after"].items()}
        settings = {key: _plain(value) for key, value in flat(self.config).items() if value is not None}
        board.settings(settings, {f"final/{name}": value for name, value in final.items()})

    def _doubt_teacher(self, method: Method, label: str) -> None:
        """Says so if the teacher is worse on this text than its student, before or after training."""
        teacher, student = self.quality.get("teacher"), self.quality.get(label)
        if teacher and student and method.task.is_better(value_of(student), value_of(teacher)):
            figures = f"{method.task.primary} {value_of(teacher):.4f} against {value_of(student):.4f}"
            print(f"The teacher is worse on this text than the student {label} training ({figures}).", flush=True)
            print("Train the teacher on this text first, or take another one.", flush=True)

    def _is_whole(self) -> bool:
        """True if there is an artefact, undamaged."""
        try:
            return self.run.model.exists() and not Ledger.read(self.run.model).altered(self.run.model)
        except UserError:
            return False

    def _score_start(
        self, trainer: Trainer, method: Method, label: str, reference: PreTrainedModel | None = None
    ) -> None:
        """Scores a reference, or else what the method would save before its first step, from a temporary folder."""
        weights = whole_weights(method.model if reference is None else reference)  # on all processes
        if not trainer.is_global_zero:
            return
        with scratch_folder(self.run.folder, "scoring") as scratch:
            folder, tokenizer = scratch / "model", method.data.tokenizer
            if reference is None:
                method.save(folder, tokenizer, weights)
            else:
                save_model(reference, tokenizer, folder, weights)
            self._score(trainer, method, folder, label)
        if (source := _source(method, label)) and (megabytes := stored_size(source)[0]):
            self.sizes[label]["megabytes"] = megabytes  # of the file that a person has, whatever it is computed in

    def _score(self, trainer: Trainer, method: Method, folder: Path, label: str) -> None:
        model = load_model(str(folder), "model", method.trust_remote_code)
        self.sizes[label] = measure_sizes(model, folder)
        model.to(device=trainer.strategy.root_device)
        self._metrics[label] = method.task.evaluate(model, method.data, "valid", f"Scoring {label}")
        self.quality[label] = method.task.quality(self._metrics[label])
        prompts = method.task.prompts(method.data)
        if prompts and label in self._samples:
            self._samples[label] = method.task.samples(model, method.data.tokenizer, prompts)
            self._references = method.task.references(prompts)

    def _score_baselines(self, method: Method) -> None:
        """Scores what needs no model, to stand beside the artefact."""
        for label, metrics in method.task.baselines(method.data, "valid").items():
            self._metrics[label] = metrics
            self.quality[label] = {**method.task.quality(metrics), "baseline": True}

    def _write_ledger(self, trainer: Trainer, method: Method) -> None:
        teacher = method.objective.teacher_source
        entry = Entry(
            operations=[],
            stage=self.run.name,
            method=self.config["model"]["class_path"].rpartition(".")[2],
            config=self.config,
            parent=Parent.of(method.start.source),
            data=method.data.describe(),
            seed=torch.initial_seed(),
            steps=trainer.global_step,
            seconds=round(self.seconds, 1),
            quality=self.quality,
            sizes=self.sizes.get("after", {}),
            curve=self.curve,
            training={"peak_memory_mb": round(self.peak_memory, 1)} if self.peak_memory else {},
            teacher=Parent.of(teacher) if teacher else None,
            samples=[self._sample(*pair) for pair in self._samples["after"]],
            reference_sizes={label: sizes for label, sizes in self.sizes.items() if label != "after"},
        )
        source = Ledger.read(method.start.source)
        for folder, operations in self._operations.items():
            entry.operations = operations
            source.extended(entry).write(folder)
        if not self._operations:  # of the same weights, which were not trained any further
            for folder in (self.run.model, self.run.folder / ADAPTER):
                if old := Ledger.read(folder):
                    old.amended(quality=entry.quality, sizes=entry.sizes).write(folder)

    def _sample(self, prompt: str, after: str) -> dict[str, str | None]:
        """A sample as the ledger keeps it; with what should have been written, where that is known."""
        reference = {"reference": self._references[prompt]} if prompt in self._references else {}
        return {"prompt": prompt, **reference, "before": dict(self._samples["before"]).get(prompt), "after": after}

    # -- in checkpoints ------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Method, checkpoint: dict[str, Any]) -> None:
        """Adds the method's arguments, by which `load_from_checkpoint` makes the method again, and the figures so far."""
        arguments = self.config["model"]["init_args"]
        checkpoint["hyper_parameters"] = {"_instantiator": "lightning.pytorch.cli.instantiate_module", **arguments}
        checkpoint["figures"] = self._figures()

    def _figures(self) -> dict[str, Any]:
        self._read_clock()
        arrays = {
            label: {n: [m.numerators.tolist(), m.denominators.tolist()] for n, m in metrics.items()}
            for label, metrics in self._metrics.items()
        }
        figures = {
            "quality": self.quality,
            "sizes": self.sizes,
            "samples": self._samples["before"],
            "curve": self.curve,
        }
        return {**figures, "arrays": arrays, "seconds": self.seconds, "peak_memory": self.peak_memory}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Method, checkpoint: dict[str, Any]) -> None:
        figures = checkpoint["figures"]
        for key in ("quality", "sizes", "curve", "seconds", "peak_memory"):
            setattr(self, key, figures[key])
        self._samples["before"] = [(prompt, text) for prompt, text in figures["samples"]]
        self._metrics = {
            label: {name: Metric.restored(name, self.quality[label][name], *parts) for name, parts in metrics.items()}
            for label, metrics in figures["arrays"].items()
        }


def _source(method: Method, label: str) -> str | None:
    """The model on disk that is scored under a label; None for one that the start has made anew."""
    start = method.start
    made = not start.rebuilds or any(part.changes_start for part in method.adaptations)
    if start.trims_vocabulary or (label == "before" and made):
        return None
    return method.objective.teacher_source if label == "teacher" else start.sources[0]


def _plain(value: Any) -> Any:
    """A setting as loggers take it."""
    return value if isinstance(value, bool | int | float | str) else yaml.safe_dump(value).strip()
