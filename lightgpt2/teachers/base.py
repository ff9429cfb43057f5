"""The contract of a teacher."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.tasks.base import Task


@dataclass(frozen=True)
class Targets:
    """The outputs that a student is to match in one batch."""

    logits: Callable[[slice, torch.dtype], Tensor]  # [n, V] of a slice of the predictions; log probabilities will do
    states: Mapping[str, Tensor]  # hidden states [M, D] by name, those that were asked for


class Teacher(ABC):
    """The origin of targets. It is in no checkpoint, no optimizer and no gradient."""

    key = "objective.teacher"  # its config key, for messages
    sources: Sequence[str]  # the models that it reads: a resumed run must find them unchanged
    models: Sequence[PreTrainedModel] = ()  # to be moved to the device, spread over processes and compiled

    @abstractmethod
    def config(self, trust_remote_code: bool) -> PretrainedConfig:
        """A configuration with the depth, width and vocabulary of its targets; a `UserError` if it cannot be loaded."""

    @abstractmethod
    def load(self, task: Task, trust_remote_code: bool) -> None:
        """Loads what it needs, once, before the first step."""

    @abstractmethod
    def targets(self, batch: dict[str, Any], states: Sequence[str]) -> Targets:
        """The targets of a batch; called without gradients."""

    @property
    def reference(self) -> PreTrainedModel | None:
        """The model to score as `teacher` before the first step, if there is one."""
        return self.models[0] if len(self.models) == 1 else None
