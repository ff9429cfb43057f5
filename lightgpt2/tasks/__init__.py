"""Tasks: what is predicted and how it is scored."""

from lightgpt2.tasks.base import Predictions, Task
from lightgpt2.tasks.language_modeling import LanguageModeling

__all__ = ["LanguageModeling", "Predictions", "Task"]
