"""LightGPT2: make a small language model smaller and faster, and prove what each stage bought."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightgpt2.cli.api import fit
    from lightgpt2.runtime.loading import load

__all__ = ["__version__", "fit", "load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Imports `fit` or `load`, and what it needs, when it is asked for: the command starts without."""
    if name == "fit":
        from lightgpt2.cli.api import fit

        return fit
    if name == "load":
        from lightgpt2.runtime.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
