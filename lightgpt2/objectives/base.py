"""The contract of an objective."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import Problem
from lightgpt2.functional.schedules import Progress
from lightgpt2.models.layers import Layers
from lightgpt2.tasks.base import Task


@dataclass(frozen=True)
class Binding:
    """The facts that an objective works with."""

    task: Task
    student: PreTrainedModel  # the model that is trained
    original: PreTrainedModel | None = None  # the model that the student was cut out of, if it was
    source: str = ""  # where the original came from
    layers: Layers | None = None  # the layers of the original that the student has, by stack
    trust_remote_code: bool = False  # whether code in a model's folder may run


class Objective(nn.Module, ABC):
    """The loss that is minimized. Its parameters are trained with the model's."""

    @property
    def sources(self) -> Mapping[str, str]:
        """The models that it reads and does not change, with their config keys."""
        return {}

    @property
    def teacher_source(self) -> str | None:
        """The model that the student learns from, for the ledger."""
        return next(iter(self.sources), None)

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        """Configurations of the models that it reads, by config key; a `UserError` if one cannot be loaded."""
        return {}

    def problems(
        self, student: PretrainedConfig, original: PretrainedConfig | None, layers: Layers | None, trust: bool
    ) -> list[Problem]:
        """The problems that show without weights; keys in full (`objective.loss`).

        `original` is of the model that the student is cut out of, if it is, and `layers` are those of it that the student has.
        """
        return []

    @abstractmethod
    def bind(self, binding: Binding) -> None:
        """Takes the task and the model, and loads what else is needed."""

    @abstractmethod
    def forward(
        self, model: PreTrainedModel, batch: dict[str, Any], progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms to log, each summed over the supervised items of a micro-batch."""

    @property
    def frozen_models(self) -> Sequence[PreTrainedModel]:
        """Models that it runs without training them."""
        return []

    @property
    def reference(self) -> PreTrainedModel | None:
        """The model to score as `teacher` before the first step, if there is one."""
        return None
