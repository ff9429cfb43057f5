"""A model as teacher."""

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families import check_finite
from lightgpt2.models.loading import load_config, load_model
from lightgpt2.tasks.base import Task
from lightgpt2.teachers.base import Targets, Teacher


class ModelTeacher(Teacher):
    """A model that is in memory already, the uncut one that a student is made of; it is frozen."""

    models: Sequence[PreTrainedModel]

    def __init__(self, model: Any, source: str) -> None:
        # `Any`: shells' completion follows the classes that an argument may have, down to a model's configuration.
        self.sources, self.models = [source], [model.eval().requires_grad_(False)]

    def config(self, trust_remote_code: bool) -> PretrainedConfig:
        return self.models[0].config

    def load(self, task: Task, trust_remote_code: bool) -> None:
        self.task = task

    def targets(self, batch: dict[str, Any], states: Sequence[str]) -> Targets:
        found = self.task.predictions(self.models[0], batch, states)
        return Targets(found.logits, {name: state for name, (state, _) in found.states.items()})


class PretrainedTeacher(ModelTeacher):
    """A pretrained model as teacher.

    Args:
        model: Hub id, model folder or GGUF file.
        key: Its config key, for messages.
    """

    def __init__(self, model: str, key: str = Teacher.key) -> None:
        self.sources, self.key = [model], key

    def config(self, trust_remote_code: bool) -> PretrainedConfig:
        return load_config(self.sources[0], self.key, trust_remote_code)

    def load(self, task: Task, trust_remote_code: bool) -> None:
        super().load(task, trust_remote_code)
        model = load_model(self.sources[0], self.key, trust_remote_code, task.auto_classes)
        self.models = [model.eval().requires_grad_(False)]
        check_finite(self.models[0], self.key)
