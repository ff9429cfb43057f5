"""Data modules, corpora and tokenizers, one a file."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightgpt2.data.base import TaskData
    from lightgpt2.data.language_modeling import LanguageModelingData

__all__ = ["LanguageModelingData", "TaskData"]


def __getattr__(name: str) -> Any:
    """Imports a data module on demand: a corpus's fingerprint must not wait for Lightning."""
    if name == "LanguageModelingData":
        from lightgpt2.data.language_modeling import LanguageModelingData

        return LanguageModelingData
    if name == "TaskData":
        from lightgpt2.data.base import TaskData

        return TaskData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
