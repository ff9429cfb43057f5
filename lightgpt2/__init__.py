"""LightGPT2: make a small language model smaller and faster, and prove what each stage bought."""

from importlib import import_module

TYPE_CHECKING = False  # `typing` would take most of the time in which nothing hears a Ctrl-C yet
if TYPE_CHECKING:
    from typing import Any

    from lightgpt2.cli.api import fit
    from lightgpt2.runtime.completion import complete
    from lightgpt2.runtime.loading import load

__all__ = ["__version__", "complete", "fit", "load"]
__version__ = "0.2.0"

_WHERE = {
    "complete": "lightgpt2.runtime.completion",
    "fit": "lightgpt2.cli.api",
    "load": "lightgpt2.runtime.loading",
}


def __getattr__(name: str) -> "Any":
    """Import `fit`, `load` or `complete`, and what it needs, when it is asked for: the command starts without."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
