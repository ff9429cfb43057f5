"""Tasks: what is predicted and how it is scored."""

from transformers import PretrainedConfig

from lightgpt2.models.families import predicts
from lightgpt2.tasks.base import Predictions, Task
from lightgpt2.tasks.classification import Classification
from lightgpt2.tasks.language_modeling import LanguageModeling
from lightgpt2.tasks.summarization import Summarization

__all__ = ["Classification", "LanguageModeling", "Predictions", "Summarization", "Task", "task_of"]


def task_of(config: PretrainedConfig) -> Task:
    """The task of a model, with its defaults, by what its configuration says that it predicts."""
    predicted = predicts(config.architectures)
    return next(kind for kind in (LanguageModeling, Classification, Summarization) if predicted in kind.auto_classes)()
