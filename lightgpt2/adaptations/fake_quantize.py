"""Quantization-aware training: a model learns with its weights rounded to integers, and ships as those integers.

Rounding in the forward pass, a gradient that passes it by (Jacob et al. 2018, arXiv:1712.05877); see
`functional.quantization`. What is scored and saved computes what was trained, bit for bit.
"""

from collections.abc import Sequence

from jsonargparse.typing import ClosedUnitInterval
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.adaptations.base import Adaptation, Context, Result
from lightgpt2.errors import Problem
from lightgpt2.functional.schedules import Progress
from lightgpt2.models.integers import Integers, integer_tensors, operation, round_weights
from lightgpt2.models.operations import Operation


class FakeQuantize(Adaptation):
    """Rounds weights to integers in every forward pass, and saves the integers.

    Args:
        quantization: What weights are rounded to.
        delay: Share of the optimizer steps that are taken before rounding starts. (Validation always rounds.) With 1 none of
            them sees it.
    """

    order = 30
    changes_start = True

    def __init__(self, quantization: Integers = Integers(), delay: ClosedUnitInterval = 0.0) -> None:
        super().__init__()
        self.quantization, self.delay, self.precision = quantization, float(delay), quantization.name
        self._rounds = True

    def problems(self, config: PretrainedConfig | None, others: Sequence[Adaptation]) -> list[Problem]:
        """The problems of the format with the model, and with the parts that are removed from it."""
        key = f"{self.key}.quantization"
        found = [] if config is None else [each.under(key) for each in self.quantization.problems(config)]
        if any(other.removes for other in others):
            if self.quantization.bits == 4:
                what = "groups of inputs share a scale, and removing heads and neurons moves them into other groups"
                found.append(Problem(f"{key}.bits", what, "give 8, or a pruning.granularity of weight"))
            if self.quantization.activations:
                what = "a token's inputs share a scale, which removed heads and neurons have a part in"
                found.append(Problem(f"{key}.activations", what, "give false"))
        return found

    def apply_to(self, model: PreTrainedModel, context: Context) -> list[Operation]:
        round_weights(model, self.quantization, lambda: self._rounds or not model.training)
        return [operation(model, self.quantization)]

    def before_step(self, progress: Progress) -> None:
        """Decides from the number of steps whether this one rounds, so that a resumed run does the same."""
        self._rounds = progress.step >= self.delay * progress.total

    def finish(self, result: Result) -> None:
        _, write = integer_tensors(result.model, self.quantization, result.weights)
        result.steps.append(write)
