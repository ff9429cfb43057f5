"""The figures that a report knows: what they are called, which way is better, and how they are written."""

import math
import re
from collections.abc import Sequence
from typing import Any

MISSING, NOT_NOTED = "not measured", "not noted"
NOT_APPLICABLE = "-"

LABELS = {
    "perplexity": "perplexity",
    "interval": "95 % interval",
    "bits_per_byte": "bits/byte",
    "parameters": "parameters",
    "embedding": "of them embedding",
    "nonzero": "non-zero",
    "disk": "MB on disk",
    "weights": "weights in memory, MB",
    "embedding_memory": "of them embedding, MB",
    "peak": "peak memory, MB",
    "first token": "first token, ms",
    "well formed": "well-formed, %",
    "repeated": "tokens repeated, %",
    "repeated text": "the text's own, %",
    "training seconds": "training, s",
    "training memory": "training peak, MB",
}

_SPEED = {
    "forward": "forward {} p50, ms",
    "tokens": "tokens/s at {}",
    "seconds": "generation of {}, s",
    "cpu": "CPU time at {}, s",
    "share": "CPU share at {}, %",
}


def number(value: Any) -> float | None:
    """A figure of a ledger as a number; infinity and not-a-number are kept, what is no number is not."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def listing(words: Sequence[str]) -> str:
    """Words as a sentence lists them."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])


def label(key: str) -> str:
    """What a figure is called, with its unit."""
    kind, _, setting = key.partition(" ")
    return _SPEED[kind].format(setting) if kind in _SPEED else LABELS[key]


def phrase(key: str, old: float | None, new: float | None) -> str:
    """A figure before and after, in a sentence."""
    name, _, unit = label(key).partition(", ")
    values = (
        write(key, new)
        if old is None or write(key, old) == write(key, new)
        else f"{write(key, old)} to {write(key, new)}"
    )
    return f"{name}: {values}{f' {unit}' if unit else ''}"


def name_of(key: str) -> str:
    """What a figure is called, without its unit."""
    return label(key).partition(", ")[0]


def more_is_better(key: str) -> bool:
    """Whether a higher figure is the better one."""
    return key.startswith("tokens ")


def write(key: str, value: float | None) -> str:
    """A figure as a person reads it."""
    if value is None:
        return MISSING
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if key in ("parameters", "embedding", "nonzero"):
        return f"{value:,.0f}"
    if key == "bits_per_byte":
        return f"{value:.4f}"
    if key == "perplexity":
        return f"{value:.2f}" if abs(value) < 1e5 else f"{value:,.0f}"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def write_interval(bounds: tuple[float, float] | None) -> str:
    """An interval as a person reads it."""
    return MISSING if bounds is None else " to ".join(write("perplexity", bound) for bound in bounds)


def change(before: float | None, after: float | None) -> float | None:
    """By how many per cent `after` is more than `before`; None where that cannot be said."""
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return None
    return 100 * (after - before) / before


def better(key: str, before: float | None, after: float | None) -> float | None:
    """By how many per cent `after` betters `before`, negative where it is worse; None where that cannot be said."""
    difference = change(before, after)
    return difference if difference is None or more_is_better(key) else -difference


def write_change(per_cent: float | None) -> str:
    """A change in per cent as a person reads it."""
    if per_cent is None:
        return MISSING
    return "0.0 %" if abs(per_cent) < 0.05 else f"{per_cent:+,.1f} %"


def plain(text: Any) -> str:
    """Text of a ledger on one line, without the control characters that XML forbids."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))


def escape(text: Any) -> str:
    """Text of a ledger as Markdown that shows just that text, in a table too, and as HTML made of it.

    What only one of the two dialects (GitHub's and the `markdown` package's) lets a backslash escape is written as an entity.
    """
    escaped = re.sub(r"([\\`*_\[\]#!])", r"\\\1", plain(text).replace("&", "&amp;"))
    for character in "<>|~$":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped
