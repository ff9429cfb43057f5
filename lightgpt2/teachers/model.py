"""A model as teacher."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.loading import load_config, load_model
from lightgpt2.tasks.base import Task
from lightgpt2.teachers.base import Targets, Teacher


class ModelTeacher(Teacher):
    """A model that is in memory already, the uncut one that a student is made of; it is frozen."""

    def __init__(self, model: PreTrainedModel, source: str) -> None:
        self._models = [model.eval().requires_grad_(False)]
        self._source = source

    @property
    def sources(self) -> list[str]:
        """The model's source."""
        return [self._source]

    def config(self, trust_remote_code: bool) -> PretrainedConfig:
        """The model's configuration."""
        return self._models[0].config

    def load(self, task: Task, trust_remote_code: bool) -> None:
        """Takes the task."""
        self.task = task

    @property
    def models(self) -> list[PreTrainedModel]:
        """The model."""
        return self._models

    def targets(self, batch: dict[str, Any], states: Sequence[str]) -> Targets:
        """The model's logits and hidden states."""
        found = self.task.predictions(self._models[0], batch, states)
        return Targets(found.logits, {name: state for name, (state, _) in found.states.items()})


class PretrainedTeacher(ModelTeacher):
    """A pretrained model as teacher.

    Args:
        model: Hub id, model folder or GGUF file.
    """

    def __init__(self, model: str) -> None:
        self._models, self._source = [], model

    def config(self, trust_remote_code: bool) -> PretrainedConfig:
        """The model's configuration."""
        return load_config(self._source, self.key, trust_remote_code)

    def load(self, task: Task, trust_remote_code: bool) -> None:
        """Loads the model."""
        super().load(task, trust_remote_code)
        self._models = [load_model(self._source, self.key, trust_remote_code).eval().requires_grad_(False)]
