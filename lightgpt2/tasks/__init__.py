"""Tasks: what is predicted and how it is scored."""

from lightgpt2.tasks.base import Predictions, Task
from lightgpt2.tasks.classification import Classification
from lightgpt2.tasks.language_modeling import LanguageModeling

TASKS: dict[str, type[Task]] = {
    task.auto_class: task for task in (LanguageModeling, Classification)
}  # of models on disk

__all__ = ["TASKS", "Classification", "LanguageModeling", "Predictions", "Task"]
