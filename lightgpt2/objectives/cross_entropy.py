"""Cross-entropy with the labels."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lightgpt2.functional.schedules import Progress
from lightgpt2.functional.vocabulary import LossWeights, vocabulary_loss
from lightgpt2.objectives.base import Binding, Objective


class CrossEntropy(Objective):
    """Cross-entropy with the labels."""

    def bind(self, binding: Binding) -> None:
        self.task = binding.task

    def forward(
        self, model: PreTrainedModel, batch: dict[str, Any], progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.task.predictions(model, batch)
        head = (found.bias, found.scale, found.weights)
        loss, _, _ = vocabulary_loss(found.hidden, found.weight, found.labels, LossWeights(), None, *head)
        return loss, {}
