"""What an export has to say when it is there."""

from pathlib import Path
from typing import Any


def exported_line(folder: Path, about: dict[str, Any]) -> str:
    """Sizes and figures of an exported folder, in one line.

    Args:
        folder: Where it is.
        about: What its `export.json` says.
    """
    quality, found = about["quality"], about["agreement"]
    megabytes = sum(about["bytes"].values()) / 1e6
    return (
        f"{folder}: {megabytes:.2f} MB; perplexity {quality['after']['perplexity']:.2f}, the source's "
        f"{quality['before']['perplexity']:.2f} ({quality['after']['tokens']} tokens of {about['validation']}); greedy tokens "
        f"as in PyTorch {found['source']:.1%}, as without the cache {found['cache']:.1%}"
    )


def encoder_line(folder: Path, about: dict[str, Any]) -> str:
    """The same of an encoder.

    Args:
        folder: Where it is.
        about: What its `export.json` says.
    """
    cosine, megabytes = about["cosine"], sum(about["bytes"].values()) / 1e6
    return (
        f"{folder}: {megabytes:.2f} MB; cosine to PyTorch {cosine['mean']:.5f}, {cosine['least']:.5f} at least "
        f"({cosine['texts']} texts of {about['validation']})"
    )
