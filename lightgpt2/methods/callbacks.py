"""Which of Lightning's own callbacks a run cannot have, and which metrics the others may watch."""

from collections.abc import Iterable, Iterator

from lightning import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)

from lightgpt2.errors import Problem
from lightgpt2.tasks.base import Task

_REFUSED: dict[type[Callback], tuple[str, str]] = {
    BaseFinetuning: ("methods have no backbone to thaw", "use lightgpt2.methods.LoRA, or FineTune"),
    BatchSizeFinder: ("batches decide the order of the text, so they are chosen before a run", "set data.batch_size"),
    GradientAccumulationScheduler: (
        "the loss is a mean over a step's items, which are counted for one number of micro-batches",
        "set trainer.accumulate_grad_batches",
    ),
    LearningRateFinder: ("a run has one learning rate", "set model.optimizer.lr, or compare some with lightgpt2 sweep"),
    ModelPruning: ("its masks are lost when a run is resumed or saved", "use lightgpt2.callbacks.GlobalL1Pruning"),
    OnExceptionCheckpoint: ("it has a new run go on from an old file", "remove it; a run that fails keeps last.ckpt"),
    SpikeDetection: (
        "it loses what it has seen when a run is resumed",
        "remove it; a loss that is not finite stops a run",
    ),
    StochasticWeightAveraging: ("it would average a model that is not built yet", "remove it"),
    WeightAveraging: ("a run goes on from its own weights, and not from their average", "remove it"),
}


def callback_problems(callbacks: Iterable[Callback], task: Task) -> Iterator[Problem]:
    """What is wrong with the callbacks of a trainer: those that are refused, and metrics that are not there."""
    known = [*callbacks]
    for callback in known:
        name = f"trainer.callbacks.{type(callback).__name__}"
        for kind, (what, fix) in _REFUSED.items():
            if isinstance(callback, kind):
                yield Problem(name, what, fix)
        watches = isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor
        if watches and all(type(each).__module__.startswith(("lightning.", "lightgpt2.")) for each in known):
            names = ["loss", f"{task.unit}/s", "val/loss", *(f"val/{metric}" for metric in task.metrics([]))]
            if watches not in names:
                yield Problem(f"{name}.monitor", f"must be one of {', '.join(names)}, got {watches}", "correct it")
