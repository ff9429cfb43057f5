"""Figures of ledgers: read whatever they hold, compared and written for people."""

import math
from collections.abc import Mapping
from typing import Any

from lightgpt2.models.quality import metric_names

MISSING = "–"
SAMPLE_COLUMNS = ("prompt", "reference", "before", "after")
SIZES = {"parameters": "parameters", "nonzero": "non-zero", "disk": "MB on disk"}  # the same on every machine
_LABELS = SIZES | {"weights": "weights in memory, MB", "peak": "peak memory, MB", "training": "training, s"}


def number(value: Any) -> float | None:
    """A figure of a ledger as a number, infinity and NaN included; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def numbers(named: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, raw in named.items() if (value := number(raw)) is not None}


def part(value: Any, *keys: str) -> dict[str, Any]:
    """A nested dictionary of an entry, empty where it lacks that."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def dicts(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a list, empty where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def is_throughput(key: str) -> bool:
    """True if a higher figure is the better one: `tokens/s 128`."""
    return "/s " in key


def is_latency(key: str) -> bool:
    """True if it is the time of one call: `forward 1x128`."""
    return " " in key and not is_throughput(key)


def workloads(arm: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of each workload of an arm by its key, `forward 1x128`, in the order in which they were measured."""
    places = ((key, *key.split(" ", 1)) for key in part(arm, "ratio") if " " in key)
    return {key: part(arm, section, setting) for key, section, setting in places}


def label(key: str) -> str:
    """What a resource is called, with its unit."""
    return key.replace(" ", " at ", 1) if is_throughput(key) else f"{key}, ms" if is_latency(key) else _LABELS[key]


def change(before: float | None, after: float | None) -> float | None:
    """By how many per cent `after` is more than `before`: NaN from or to NaN, None if one is missing."""
    if before is None or after is None:
        return None
    if not math.isfinite(before):
        return -100.0 if before == math.inf and math.isfinite(after) else math.nan
    if before == after:
        return 0.0
    return 100 * (after - before) / abs(before) if before else math.copysign(math.inf, after)


def better(key: str, before: float | None, after: float | None) -> float | None:
    """By how many per cent a resource is better, negative where it is worse; None where that cannot be said."""
    more = change(before, after)
    return None if more is None or not math.isfinite(more) else more if is_throughput(key) else -more


def title(metric: str) -> str:
    """A metric's name in tables: `bits_per_byte` is `bits/byte`."""
    return metric.replace("_per_", "/").replace("_", " ")


def primary(scored: Mapping[str, Any]) -> str:
    """The metric that decides; empty where the ledger has no value of it."""
    name = scored.get("primary")
    return name if isinstance(name, str) and number(part(scored, name).get("value")) is not None else ""


def metrics(scored: Mapping[str, Any]) -> list[str]:
    """The metrics that have a value, the primary one first."""
    return [name for name in metric_names(scored) if number(scored[name]["value"]) is not None]


def interval(about: Mapping[str, Any]) -> list[float]:
    """The ends of a metric's interval; empty if it has none."""
    ends = about.get("interval_95")
    known = [end for bound in ends if (end := number(bound)) is not None] if isinstance(ends, list | tuple) else []
    return known if len(known) == 2 else []


def write_metric(about: Mapping[str, Any], bounds: bool = True) -> str:
    """A metric, with its interval if it has one: `44.22 (39.80 to 48.64)`."""
    asked, known = number(about.get("digits")), interval(about)
    places = int(asked) if asked is not None and 0 <= asked <= 9 else 4
    text = _write(number(about.get("value")), places)
    return f"{text} ({' to '.join(_write(end, places) for end in known)})" if bounds and known else text


def _write(value: float | None, places: int) -> str:
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.{places}f}"


def write(key: str, value: float | None) -> str:
    if value is not None and key in ("parameters", "nonzero"):
        return f"{_write(value / 1e6, 2)} M" if abs(value) >= 1e5 else _write(value, 0)
    return _write(value, 1 if value is None or abs(value) >= 100 else 2 if abs(value) >= 1 else 3)


def write_change(per_cent: float | None) -> str:
    if per_cent is None or not math.isfinite(per_cent):
        return _write(per_cent, 1)
    return "0.0 %" if abs(per_cent) < 0.05 else f"{per_cent:+,.1f} %"


def plain(text: Any) -> str:
    """Text of a ledger on one line, without the control characters that XML forbids."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))
