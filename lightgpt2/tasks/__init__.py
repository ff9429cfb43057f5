"""Tasks: what is predicted and how it is scored."""

from lightgpt2.tasks.base import Predictions, Task
from lightgpt2.tasks.classification import Classification
from lightgpt2.tasks.language_modeling import LanguageModeling

__all__ = ["Classification", "LanguageModeling", "Predictions", "Task"]
