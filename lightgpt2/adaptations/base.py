"""The contract of an adaptation: it changes what of a model is trained and computed, and how the result is saved."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import Problem
from lightgpt2.functional.pruning import Masks
from lightgpt2.functional.schedules import Progress
from lightgpt2.models.operations import Operation
from lightgpt2.tasks.base import Task


@dataclass(frozen=True)
class Context:
    """The facts that an adaptation works with."""

    task: Task
    plain: Callable[[], PreTrainedModel]  # loads the run's first model anew, in full precision and without adaptations
    adapter: str | None  # the adapter folder to go on with, if the start is one
    others: Sequence["Adaptation"]
    masks: Masks  # which weights are held at zero, filled after all adaptations were applied
    training: bool  # whether the run will train, and not only score
    total_steps: int  # optimizer steps of the run


@dataclass
class Result:
    """An artefact while it is put together: each adaptation in turn changes it."""

    model: PreTrainedModel
    weights: dict[str, Tensor]  # by name, tied ones once, whole
    folder: Path  # where it will be written
    tokenizer: PreTrainedTokenizerFast
    operations: list[Operation] = field(default_factory=list)  # done so far, for the ledger
    # called with the written folder before it is put in its place: first what changes it, then what counts in it
    steps: list[Callable[[Path], None]] = field(default_factory=list)
    checks: list[Callable[[Path], None]] = field(default_factory=list)
    # further ones that were written
    folders: dict[Path, list[Operation]] = field(default_factory=dict)

    def replace_model(self, model: PreTrainedModel) -> None:
        """Goes on with another model and its weights."""
        untied = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
        self.model = model
        self.weights = {name: value for name, value in model.state_dict().items() if name in untied}


class Adaptation(nn.Module, ABC):
    """Changes what of a model is trained and computed. Its parameters and buffers are in the checkpoints."""

    key: str = "adaptations"  # its config key, for messages
    order: ClassVar[int] = 0  # applied and finished in ascending order: adapters 10, gates 20, rounding 30, masks 40
    accepts: ClassVar[frozenset[str]] = frozenset({"fp32"})  # precisions of a start that it can train on
    shards: ClassVar[bool] = True  # whether it works with parameters that are spread over processes (FSDP2)
    changes_start: ClassVar[bool] = False  # whether the model computes something else before the first step already
    freezes: ClassVar[bool] = False  # whether the model's own weights stay as they are: checkpoints leave them out
    precision: str | None = None  # the format that the artefact is quantized to, if it is
    removes: bool = False  # whether the artefact lacks parts of what was trained

    def problems(self, config: PretrainedConfig | None, others: Sequence["Adaptation"]) -> list[Problem]:
        """The contradictions in the settings, with the model (if it can be loaded), with the others; keys in full."""
        return []

    def step_problems(self, total_steps: int) -> list[Problem]:
        """The problems with this number of optimizer steps."""
        return []

    def apply_to(self, model: PreTrainedModel, context: Context) -> list[Operation]:
        """Changes the model in place, before the optimizer exists; returns what was done, for the ledger.

        Raises:
            UserError: It does not fit the model.
        """
        return []

    def check(self, model: PreTrainedModel) -> None:
        """Raises a `UserError` if something does not fit, once all adaptations and zeros of earlier stages are in place."""

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The optimizer's groups, with this adaptation's settings for its own parameters."""
        return groups

    def before_step(self, progress: Progress) -> None:
        """Called before each micro-batch, with the steps taken so far."""

    def mask_gradients(self, model: PreTrainedModel) -> None:
        """Called when the gradients of a step are complete, before they are clipped."""

    def penalty(self, progress: Progress) -> Tensor | None:
        """A term to add to the loss of each supervised item, if there is one."""
        return None

    def after_step(self, model: PreTrainedModel, progress: Progress) -> Mapping[str, float]:
        """Called after each optimizer step, which counts as taken; returns figures to log."""
        return {}

    def histograms(self) -> dict[str, Tensor]:
        """The values whose distribution is shown at each validation, by name."""
        return {}

    def pictures(self) -> dict[str, Tensor]:
        """The pictures that are shown at each validation, by name: `[height, width]`, values in [0, 1], white is 1."""
        return {}

    def finish(self, result: Result) -> None:
        """Puts its part into the artefact."""

    def zeros(self, folder: Path, names: Sequence[str]) -> int | None:
        """The number of zeros among the named parameters in what it wrote itself; None if they are in the artefact."""
        return None


def contradictions(
    parts: Sequence[Adaptation], config: PretrainedConfig | None, precision: str, rebuilds: bool
) -> list[Problem]:
    """The problems of all adaptations of a run, and of each with the others and with the start; keys in full.

    The start loads the model in `precision`, and `rebuilds` says whether it can build the same model again.
    """
    found: list[Problem] = []
    for place, part in enumerate(parts):
        others, name = [other for other in parts if other is not part], type(part).__name__
        if any(type(other) is type(part) for other in parts[:place]):
            found.append(Problem(part.key, f"a run has one {name} at most", "remove one of them"))
        if precision not in part.accepts:
            what = f"{name} works on weights in full precision, and this start loads them in {precision.upper()}"
            found.append(Problem(part.key, what, "remove it, or start in full precision"))
        if part.freezes and not rebuilds:
            what = f"{name} trains on the frozen weights of a model that lies on disk, and this start builds a new one"
            found.append(Problem(part.key, what, "save that model in a stage before, or train all weights"))
        found += part.problems(config, others)
    return found
