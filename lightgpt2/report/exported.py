"""What an export has to say when it is there, in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightgpt2.report.figures import numbers, title
from lightgpt2.report.table import metric_text

_SHARES = {"source": "outputs as in PyTorch", "cache": "as without the cache"}


def exported_line(folder: Path, about: Mapping[str, Any]) -> str:
    """Sizes and figures of an exported folder, of what its `export.json` says, in one line."""
    before, after = (about["quality"][label] for label in ("before", "after"))
    mine, source = (metric_text(scored[after["primary"]]) for scored in (after, before))
    counts = "".join(f" ({count:g} {what} of {about['validation']})" for what, count in [*numbers(after).items()][:1])
    shares = [f"{said} {about['agreement'][key]:.1%}" for key, said in _SHARES.items() if key in about["agreement"]]
    quality = f"{title(after['primary'])} {mine}, the source's {source}{counts}"
    return "; ".join(filter(None, [f"{folder}: {_megabytes(about)}", quality, ", ".join(shares)]))


def encoder_line(folder: Path, about: Mapping[str, Any]) -> str:
    """The same of an encoder."""
    cosine, texts = about["cosine"], f"({about['cosine']['texts']} texts of {about['validation']})"
    said = f"cosine to PyTorch {cosine['mean']:.5f}, {cosine['least']:.5f} at least {texts}"
    return f"{folder}: {_megabytes(about)}; {said}"


def _megabytes(about: Mapping[str, Any]) -> str:
    return f"{sum(about['bytes'].values()) / 1e6:.2f} MB"
