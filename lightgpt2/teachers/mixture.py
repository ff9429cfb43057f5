"""Several teachers as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.tasks.base import Task
from lightgpt2.teachers.base import Targets, Teacher


@dataclass
class WeightedTeacher:
    """One more teacher.

    Attributes:
        model: Hub id, model folder or GGUF file, with the tokenizer of the first teacher.
        weight: Its weight in the mixture; the first teacher's is 1.
    """

    model: str
    weight: PositiveFloat = 1.0


class Mixture(Teacher):
    """The weighted mean of the distributions of several teachers; its hidden states are those of the first.

        p = sum_k w_k * softmax(z_k) / sum_k w_k

    Where vocabularies are padded to different sizes, the distributions are over the rows that all have.

    Args:
        members: The teachers.
        weights: A positive weight for each.
    """

    def __init__(self, members: Sequence[Teacher], weights: Sequence[float]) -> None:
        self.members, self.weights = members, torch.tensor(weights, dtype=torch.float64)
        self.sources = [source for each in members for source in each.sources]

    @property
    def models(self) -> Sequence[PreTrainedModel]:  # type: ignore[override]
        return [model for each in self.members for model in each.models]

    @property
    def reference(self) -> PreTrainedModel | None:
        return self.members[0].reference

    def config(self, trust_remote_code: bool) -> PretrainedConfig:
        return self.members[0].config(trust_remote_code)

    def load(self, task: Task, trust_remote_code: bool) -> None:
        for each in self.members:
            each.load(task, trust_remote_code)

    def targets(self, batch: dict[str, Any], states: Sequence[str]) -> Targets:
        first, *others = self.members
        found = [first.targets(batch, states), *(each.targets(batch, []) for each in others)]
        shares = (self.weights / self.weights.sum()).log().tolist()

        def logits(rows: slice, dtype: torch.dtype) -> Tensor:
            each = [one.logits(rows, dtype) for one in found]
            common = min(one.shape[-1] for one in each)
            logs = [one[..., :common].float().log_softmax(-1) + share for one, share in zip(each, shares, strict=True)]
            return torch.stack(logs).logsumexp(0)

        return Targets(logits, found[0].states)
