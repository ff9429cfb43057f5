"""Data modules, corpora and tokenizers, one a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightgpt2.data.base import TaskData
    from lightgpt2.data.classification import ClassificationData
    from lightgpt2.data.language_modeling import LanguageModelingData
    from lightgpt2.data.text_to_text import TextToTextData

__all__ = ["ClassificationData", "LanguageModelingData", "TaskData", "TextToTextData"]
_MODULES = {
    "ClassificationData": "classification",
    "LanguageModelingData": "language_modeling",
    "TaskData": "base",
    "TextToTextData": "text_to_text",
}


def __getattr__(name: str) -> Any:
    """Imports a data module on demand: a corpus's fingerprint must not wait for Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
