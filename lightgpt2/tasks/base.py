"""The contract of a task: what is predicted, how it is scored and shown."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem, refuse
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.functional.vocabulary import head_logits
from lightgpt2.models.quality import Better, Metric, quality
from lightgpt2.models.workloads import Forward, Positions, Workload

Batch = dict[str, Any]
Row = dict[str, Any]  # figures of a part of an example; `source` names where it comes from, if there are several


@dataclass(frozen=True)
class Predictions:
    """N decisions over V classes, not multiplied out: `logits = scale * hidden @ weight.T + bias`.

    `states` holds hidden states `[M, D]` and the weight of each in its loss `[M]`, by name: `decoder.3` is the output of block
    3, `decoder.0` the embedding's. The weights of an item's states add up to the item's: those of tokens are true or false.
    """

    hidden: Tensor  # what the head reads [N, D]: tokens of a decoder, pooled vectors of a classifier
    weight: Tensor  # [V, D]
    labels: Tensor  # the right class of each [N]; IGNORE where it is not supervised
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    states: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    weights: Tensor | None = None  # of each item in the loss [N]; None: all count alike

    def logits(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """The logits of a slice of the decisions `[n, V]`, computed in a dtype."""
        return head_logits(self.hidden[rows].to(dtype), self.weight.to(dtype), self.bias, self.scale)


class Task(ABC):
    """A kind of prediction and how it is scored; a method works with any task."""

    # Classes of transformers that load its models: the first one that a model's family has is taken.
    auto_classes: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]  # the metric that picks `best.ckpt`, budgets and verdicts
    better: ClassVar[Better] = "lower"  # whether a lower or a higher value of it is better
    unit: ClassVar[str] = "tokens"  # what the items are, for the speed of training
    predict: str = "scores"  # what `predict` writes: `scores`, or another output of the task
    prompt_length: int | None = None  # tokens of the prompts that `predict` reads; None if it scores

    def bind(self, data: Any) -> None:  # noqa: B027 - most need nothing
        """Takes what the task must know of the data, once that is set up and before a model is built."""

    def restore(self, config: PretrainedConfig) -> None:  # noqa: B027 - most need nothing
        """Takes what `bind` takes from the configuration of a model of this task, where there is no data."""

    def head_settings(self, config: PretrainedConfig | None) -> dict[str, Any] | None:
        """What a configuration says of the head that a model needs and does not have; None if it has one.

        `config` is of the model on disk; None: it is new.
        """
        return None

    def align(self, teacher: PreTrainedModel, student: PretrainedConfig) -> None:  # noqa: B027 - most need nothing
        """Changes a teacher's head in place so that its logits stand in the student's order."""

    def check(self, model: PreTrainedModel, key: str) -> None:  # noqa: B027 - most need nothing
        """Raises a `UserError` naming `key` if a model's logits are not what `predictions` says, or do not fit the data."""

    @abstractmethod
    def predictions(self, model: PreTrainedModel, batch: Batch, states: Sequence[str] = ()) -> Predictions:
        """Runs a model on a batch of the data module up to its head, and keeps the hidden states that are named."""

    @abstractmethod
    def rows(self, model: PreTrainedModel, batch: Batch) -> list[Row]:
        """Scores a batch: a row for each example, or part of one, with its number as `example`; `loss` and `items` are sums."""

    @abstractmethod
    def metrics(self, rows: Iterable[Row]) -> dict[str, Metric]:
        """The metrics of scored examples by name, the primary one first."""

    def scores(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """The lines that `predict` writes with `scores`: for each example the sums over its rows."""
        found: dict[int, dict[str, Any]] = {}
        for row in rows:
            mine = found.setdefault(int(row["example"]), {"example": int(row["example"])})
            for name, value in row.items():
                if name != "example":
                    mine[name] = mine.get(name, 0) + value
        return [found[example] for example in sorted(found)]

    def verify(
        self,
        engine: Any,
        model: PreTrainedModel,
        data: Any,
        documents: int | None,
        precision: str,
        before: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Scores an exported model and compares it with its source.

        Args:
            engine: The `runtime.engines.Engine` that runs the exported model.
            model: The source.
            data: The data module.
            documents: The number of examples of the validation split to score, the first ones; None for all.
            precision: What the weights were rounded to: `fp32`, `f16`, `int8` or `int4`.
            before: The source's quality on the same examples, if it is known.

        Returns:
            `quality` (`before`, `after`, `ratio`), `agreement`, `problems`, and `metrics` by label.
        """
        raise NotImplementedError(f"{type(self).__name__} verifies no exported model")

    def items(self, batch: Batch) -> Tensor:
        """The number of supervised items of a batch."""
        return (batch["labels"] != IGNORE).sum()

    def is_better(self, value: float, best: float | None) -> bool:
        """True if a value of the primary metric is better than the best so far; no value is NaN."""
        if math.isnan(value):
            return False
        return best is None or (value < best if self.better == "lower" else value > best)

    def counts(self, metrics: Mapping[str, Metric]) -> dict[str, int]:
        """The counts of what was scored, for the ledger."""
        return {"examples": len(metrics[self.primary].numerators)}

    def quality(self, metrics: Mapping[str, Metric]) -> dict[str, Any]:
        """The ledger's record of a model's quality."""
        return quality(metrics, self.primary, self.counts(metrics))

    def evaluate(self, model: PreTrainedModel, data: Any, split: str, label: str) -> dict[str, Metric]:
        """Scores a model, put in eval mode, on a whole split, with a progress bar of this label."""
        model.eval()
        rows: list[Row] = []
        with torch.inference_mode():
            for batch in tqdm(data.scoring_loader(split), desc=label, leave=False, disable=None):
                rows += self.rows(model, on_device(batch, model.device))
        return self.metrics(rows)

    def problems(self, configs: Mapping[str, PretrainedConfig], data: Any) -> list[Problem]:
        """The problems with the models or the data; keys relative to the task."""
        return []

    def workloads(
        self,
        positions: Positions,
        data: Any = None,
        *,
        batches: Sequence[int] = (1, 16),
        forward_tokens: Sequence[int] = (128,),
    ) -> list[Workload]:
        """What is measured of the speed of its models, the most telling settings first.

        The keywords are the settings of a benchmark that mean something to the task, with its defaults.

        Args:
            positions: Those of the model.
            data: The data module, once it is set up; None if there is none.
            batches: Batch sizes of the forward pass.
            forward_tokens: Lengths of its texts.

        Raises:
            UserError: Settings do not fit the model; with all such problems, their keys as here.
        """
        given = {"batches": batches, "forward_tokens": forward_tokens}
        found = [Problem(key, "must have at least one value") for key, values in given.items() if not values]
        refuse([*found, *positions.problems("forward_tokens", forward_tokens)])
        return [Forward(batch, tokens) for tokens in forward_tokens for batch in batches]

    def predicted(self, model: PreTrainedModel, tokenizer: Any, batch: Batch) -> list[dict[str, Any]]:
        """The lines that `predict` writes for a batch if those are not scores."""
        raise NotImplementedError(f"{type(self).__name__} predicts scores only")

    def next_step(self, model: Path, data: Any) -> str:
        """The command that uses the model which a run has written to a folder; empty if there is none."""
        return ""

    def baselines(self, data: Any, split: str) -> dict[str, dict[str, Metric]]:
        """The metrics of what needs no model, by its name, to stand beside every model's."""
        return {}

    def references(self, prompts: Sequence[Any]) -> Mapping[str, str]:
        """What should be made of the prompts of `samples`, by their text; empty if nothing is said of it."""
        return {}

    def prompts(self, data: Any) -> list[Any]:
        """The inputs whose outputs are shown during training, if any."""
        return []

    def samples(self, model: PreTrainedModel, tokenizer: Any, prompts: list[Any]) -> list[tuple[str, str]]:
        """Pairs of texts: each prompt and the model's output."""
        return []


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
