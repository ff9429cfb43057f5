"""What a person reads while a run goes on: what is trained, how far it is, and what to do next."""

import sys
import time
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lightgpt2.callbacks.board import places
from lightgpt2.methods.method import Method
from lightgpt2.models.ledger import Ledger
from lightgpt2.models.quality import metric_names, value_of
from lightgpt2.runs.run import Run

_SECONDS = 10  # between two lines of progress where there is no terminal


class Header(Callback):
    """Prints what is about to be trained, on what, and where; it comes before all other callbacks."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero:
            return
        (total, trained), about = parameters(pl_module), pl_module.data.describe()
        filled = {name: s for name, s in about["splits"].items() if s["documents"]}
        splits = [f"{name} {s['documents']:,} documents, {s['tokens']:,} tokens" for name, s in filled.items()]
        share = f" ({trained / total:.2%})" if trained < total else ""
        model = f"{pl_module.model.config.model_type}, {total:,} parameters, {trained:,}{share} trained"
        processes = f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
        shown = "".join(f"   curves: {place}" for place in places(trainer))
        print(
            f"model   {model} by {type(pl_module).__name__}",
            f"text    {about['source']}: {'; '.join(splits)}",
            f"device  {trainer.strategy.root_device}, {processes}, precision {trainer.precision}",
            f"folder  {self.run.folder}{shown}",
            sep="\n",
            flush=True,
        )


class Progress(ProgressBar):
    """One bar for the steps of the whole run; where standard error is no terminal, a line every ten seconds or more."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] = tqdm(disable=True)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        """Begins at the step that a checkpoint has brought."""
        self._total, self._first, self._started = pl_module.total_steps, trainer.global_step, time.monotonic()
        self._step, self._line = self._first, (self._started, self._first)  # when the last line was printed
        self._bar = tqdm(
            total=self._total,
            initial=self._first,
            desc="Training",
            unit="step",
            dynamic_ncols=True,
            disable=None if self._enabled else True,  # None: where there is no terminal
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Method, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not self._enabled or step == self._step:
            return
        now, self._step, before = time.monotonic(), step, self._step
        metrics: dict[str, Any] = {**self.get_metrics(trainer, pl_module)}
        named = sorted(metrics.items(), key=lambda metric: metric[0].endswith("/s"))  # speeds come last
        shown = ", ".join(_metric(name, float(value)) for name, value in named if name != "v_num")
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(step - before)
        # Of a run of hours a line each per cent, at least one a minute, is enough.
        due = _SECONDS if step - self._line[1] >= self._total / 100 else 60
        if self._bar.disable and now - self._line[0] >= due:
            left = tqdm.format_interval((now - self._started) / (step - self._first) * (self._total - step))
            done = f"step {step:,}/{self._total:,} ({step / self._total:.0%})"
            print(f"{done}, {left} left, {shown}", file=sys.stderr, flush=True)
            self._line = (now, step)

    def on_validation_start(self, trainer: Trainer, pl_module: Method) -> None:
        self._bar.set_description("Validating")

    def on_validation_end(self, trainer: Trainer, pl_module: Method) -> None:
        self._bar.set_description("Training")

    def on_train_end(self, trainer: Trainer, pl_module: Method) -> None:
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: Method, exception: BaseException) -> None:
        self._bar.close()


class Checked(Exception):  # noqa: N818 - not an error: it ends the fit before its first step
    """Everything has been built."""


class Check(Callback):
    """Prints what would be trained, once data, model and optimizer stand, and ends the fit: for `lightgpt2 check`.

    It comes after all other callbacks, which may refuse the run until its first step.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Method) -> None:
        if pl_module.total_steps == 0:  # nothing of a training begins
            self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: Method) -> None:
        if trainer.is_global_zero:
            total, trained = parameters(pl_module)
            print(f"trainable parameters: {trained:,} of {total:,} ({trained / total:.4%})")
            print(f"optimizer steps: {pl_module.total_steps:,}\nok", flush=True)
        raise Checked


class Closing(Callback):
    """Prints what the run has changed in per cent, and what to do next; it comes after all other callbacks."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_fit_end(self, trainer: Trainer, pl_module: Method) -> None:
        if not trainer.is_global_zero:
            return
        if changes := changed(Ledger.read(self.run.model)):
            print(f"\nchanged {changes[0]}", *(f"        {change}" for change in changes[1:]), sep="\n")
        page, model = self.run.folder / "report.html", self.run.model
        first, export = pl_module.task.next_step(model, pl_module.data), f"lightgpt2 export {model} --format onnx-int8"
        print(
            f"report  {page if page.is_file() else f'lightgpt2 report {self.run.folder}'}",
            "next    " + "\n        ".join(filter(None, [first, export])),
            sep="\n",
            flush=True,
        )


def parameters(method: Method) -> tuple[int, int]:
    """The parameters of a method's model, and those of them that are trained."""
    counts = [(p.numel(), p.requires_grad) for p in method.model.parameters()]
    return sum(n for n, _ in counts), sum(n for n, grad in counts if grad)


def changed(ledger: Ledger) -> list[str]:
    """What the last stage of a ledger has changed: its quality against that before it, its sizes against its parent's."""
    quality = ledger.last.get("quality", {})
    before, after = quality.get("before", {}), quality.get("after", {})
    pairs = [(name, value_of(before, name), value_of(after, name)) for name in metric_names(after) if name in before]
    sizes = [entry.get("sizes", {}) for entry in ledger[-2:]]
    if len(sizes) == 2:
        names = {"parameters": "parameters", "megabytes": "MB on disk"}
        pairs += [(text, *(each[key] for each in sizes)) for key, text in names.items() if all(key in s for s in sizes)]
    return [
        f"{name} {_figure(old)} -> {_figure(new)} ({new / old - 1:+.1%})"
        for name, old, new in pairs
        if old and new != old
    ]


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def _metric(name: str, value: float) -> str:
    return f"{value:,.0f} {name}" if name.endswith("/s") else f"{name} {value:.4g}"
