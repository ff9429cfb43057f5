"""What an adaptation is: it changes what of a model is trained and computed, and how the result is saved."""

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lightgpt2.errors import Problem
from lightgpt2.functional.pruning import Masks
from lightgpt2.functional.schedules import Progress
from lightgpt2.models.operations import Operation
from lightgpt2.tasks.base import Task


@dataclass(frozen=True)
class Context:
    """What an adaptation works with.

    Attributes:
        task: The task.
        plain: Loads the model that the run started from anew, in full precision and without adaptations.
        adapter: The adapter folder to go on with, if the start is one.
        others: The other adaptations.
        masks: Which weights are held at zero, filled after all adaptations were applied.
        training: Whether the run will train, and not only score.
        total_steps: Optimizer steps of the run.
    """

    task: Task
    plain: Callable[[], PreTrainedModel]
    adapter: str | None
    others: Sequence["Adaptation"]
    masks: Masks
    training: bool
    total_steps: int


@dataclass(frozen=True)
class Saved:
    """The weights of a folder as they lie on disk.

    Attributes:
        weights: By name; integers times their scales.
    """

    weights: Mapping[str, Tensor]

    def zeros(self, names: Iterable[str]) -> int:
        """How many elements of the named tensors are zero."""
        return sum(self.weights[name].numel() - int(self.weights[name].count_nonzero()) for name in names)


@dataclass
class Result:
    """An artefact while it is put together: each adaptation in turn changes it.

    Attributes:
        model: The model of the artefact.
        weights: Its weights by name, tied ones once, whole.
        folder: Where it will be written.
        tokenizer: Its tokenizer.
        operations: What was done to the model so far, for the ledger.
        steps: What to do with the written folder before it is put in its place.
        checks: What to count in the written weights.
        folders: Further folders that were written, each with its operations.
    """

    model: PreTrainedModel
    weights: dict[str, Tensor]
    folder: Path
    tokenizer: PreTrainedTokenizerFast
    operations: list[Operation] = field(default_factory=list)
    steps: list[Callable[[Path], None]] = field(default_factory=list)
    checks: list[Callable[[Saved], None]] = field(default_factory=list)
    folders: dict[Path, list[Operation]] = field(default_factory=dict)

    def replace_model(self, model: PreTrainedModel) -> None:
        """Goes on with another model and its weights."""
        untied = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
        self.model = model
        self.weights = {name: value for name, value in model.state_dict().items() if name in untied}


class Adaptation(nn.Module, ABC):
    """Changes what of a model is trained and computed. Its parameters and buffers are in the checkpoints.

    Attributes:
        key: The config key that names it, for messages.
        order: Adaptations are applied and finished in ascending order: adapters 10, gates 20, rounding 30.
        accepts: Precisions of a start that it can train on.
        precision: What it quantizes the artefact to; None: nothing.
        removes: Whether the artefact lacks parts of what was trained.
        changes_start: Whether the model computes something else before the first step already.
        freezes: Whether the model's own weights stay as they are, so that checkpoints leave them out.
        shards: Whether it works with parameters that are spread over processes (FSDP2).
    """

    key: str = "adaptations"
    order: ClassVar[int] = 0
    accepts: ClassVar[frozenset[str]] = frozenset({"fp32"})
    shards: ClassVar[bool] = True
    changes_start: ClassVar[bool] = False
    freezes: ClassVar[bool] = False

    @property
    def precision(self) -> str | None:
        """What it quantizes the artefact to."""
        return None

    @property
    def removes(self) -> bool:
        """Whether the artefact lacks parts of what was trained."""
        return False

    def problems(self, config: PretrainedConfig | None, others: Sequence["Adaptation"]) -> list[Problem]:
        """What of the settings contradicts itself, the model (if it can be loaded) or another adaptation; keys in full."""
        return []

    def step_problems(self, total_steps: int) -> list[Problem]:
        """What the number of optimizer steps does not allow."""
        return []

    def apply_to(self, model: PreTrainedModel, context: Context) -> list[Operation]:
        """Changes the model in place, before the optimizer exists; what was done, for the ledger.

        Raises:
            UserError: It does not fit the model.
        """
        return []

    def check(self, model: PreTrainedModel) -> None:
        """Looks at the model once all adaptations and the zeros of earlier stages are in place.

        Raises:
            UserError: Something does not fit.
        """

    def parameter_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The optimizer's groups, with this adaptation's own settings for its parameters."""
        return groups

    def before_step(self, progress: Progress) -> None:
        """Called before each micro-batch, with the steps taken so far."""

    def mask_gradients(self, model: PreTrainedModel) -> None:
        """Called when the gradients of a step are complete, before they are clipped."""

    def penalty(self, progress: Progress) -> Tensor | None:
        """A term to add to the loss of each supervised item; None: nothing."""
        return None

    def after_step(self, model: PreTrainedModel, progress: Progress) -> Mapping[str, float]:
        """Called after each optimizer step, which counts as taken; figures to log."""
        return {}

    def write_images(self, board: SummaryWriter, step: int) -> None:
        """Shows in TensorBoard, at each validation, what no single number says."""

    def finish(self, result: Result) -> None:
        """Puts its part into the artefact."""

    def zeros(self, folder: Path, names: Sequence[str]) -> int | None:
        """How many elements of the named parameters are zero in what it wrote itself; None: they are in the artefact."""
        return None
