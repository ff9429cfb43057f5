"""The report's tables, as Markdown."""

from collections.abc import Sequence
from typing import Any

from lightgpt2.report.chain import Model, arms, operations, part
from lightgpt2.report.figures import (
    MISSING,
    NOT_APPLICABLE,
    change,
    escape,
    label,
    name_of,
    number,
    write,
    write_change,
    write_interval,
)
from lightgpt2.report.savings import Saving
from lightgpt2.report.verdicts import Comparison, against

_QUALITY = ("perplexity", "interval", "bits_per_byte")
_WRITTEN = ("well formed", "repeated", "repeated text")
_SIZES = ("parameters", "embedding", "nonzero", "disk", "weights", "peak")
_SPENT = ("seconds ", "cpu ", "share ")
_TRAINING = ("training seconds", "training memory")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are figures, or text where the header ends with a space."""
    lines = [header, ["---", *("---" if name.endswith(" ") else "---:" for name in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in line)} |" for line in lines)


def _setting(key: str) -> list[int]:
    return [int(n) for n in key.split()[1].split("x") if n.isdigit()]


def columns(rows: Sequence[Model]) -> list[str]:
    """The figures of the chain's table; batches and lengths are those that were measured."""
    speeds = dict.fromkeys(key for row in rows for key in row.figures if key.startswith(("forward ", "tokens ")))
    forward = sorted((key for key in speeds if key.startswith("forward ")), key=_setting)
    tokens = sorted((key for key in speeds if key.startswith("tokens ")), key=_setting)
    written = [key for key in _WRITTEN if any(key in row.figures for row in rows)]
    speed = [*(forward or ["forward 1x128"]), "first token", *(tokens or ["tokens 128"])]
    spent = list(dict.fromkeys(key for row in rows for key in row.figures if key.startswith(_SPENT)))
    return [*_QUALITY, *written, *_SIZES, *speed, *(spent or [f"{kind}128" for kind in _SPENT]), *_TRAINING]


def chain_table(rows: Sequence[Model]) -> str:
    """One row a model; what no run measured is named below instead of filling a column."""
    measured = [key for key in columns(rows) if any(_cell(key, row) not in (MISSING, NOT_APPLICABLE) for row in rows)]
    absent = [name_of(key) for key in columns(rows) if key not in measured]
    cells = [[escape(row.name), *(_cell(key, row) for key in measured)] for row in rows]
    text = table(["model", *map(label, measured)], cells)
    return f"{text}\n\nNot measured in any of these runs: {', '.join(absent)}." if absent else text


def _cell(key: str, row: Model) -> str:
    if key == "interval":
        return write_interval(row.interval)
    if key.startswith("training") and row.kind != "stage":
        return NOT_APPLICABLE
    return write(key, row.figures.get(key))


def bought_table(comparisons: Sequence[Comparison]) -> str:
    """Each stage against the model before it, then against the beginning of its chain, in per cent."""
    keys = list(dict.fromkeys(key for c in comparisons for key in c.gains)) or ["disk"]
    header = ["stage", "verdict ", "made of ", *(f"{name_of(key)} against before" for key in ("perplexity", *keys))]
    header += ["perplexity above the source's", *(f"{name_of(key)} against the source" for key in keys)]
    rows = []
    for c in comparisons:
        origin = escape(c.model.parent.name) if c.model.parent else "random weights"
        first = [
            write_change(change(c.before, c.perplexity)),
            *(_against(key, c.model, c.model.parent) for key in keys),
        ]
        root = c.model.root if c.model.root is not c.model else None
        last = ["-" if root is None else _rise(c), *(_against(key, c.model, root) for key in keys)]
        rows.append(
            [escape(c.model.name), c.verdict, origin, *(first if c.model.parent else ["-"] * len(first)), *last]
        )
    return table(header, rows)


def _against(key: str, model: Model, other: Model | None) -> str:
    return NOT_APPLICABLE if other is None else write_change(against(key, model, other))


def _rise(comparison: Comparison) -> str:
    if comparison.rise is None:
        return MISSING
    sign = "+" if comparison.rise > 0 else ""
    return sign + write("perplexity", comparison.rise)


def savings_table(savings: Sequence[Saving]) -> str:
    """What quantization saves, split into what half precision alone does and the rest."""
    header = ["model", "of ", "FP32, MB", "half precision, MB", "quantized, MB", "saved"]
    header += ["by half precision alone", "by the rest", "saved against half precision"]
    rows = [
        [
            escape(s.model.name),
            "disk" if s.key == "disk" else "weights in memory",
            *(write("disk", value) for value in (s.full, s.half, s.quantized)),
            *(_share(value) for value in (s.total, s.by_half, s.rest, s.against_half)),
        ]
        for s in savings
    ]
    return table(header, rows)


def _share(per_cent: float | None) -> str:
    return MISSING if per_cent is None else f"{per_cent:.1f} %"


# -- details ---------------------------------------------------------------------------------------------------------------


def operations_table(model: Model) -> str:
    """What was done to the model, with what it matched."""
    rows = [[escape(o.get("op", "")), _values(_told(o))] for o in operations(model.entry)]
    return table(["operation", "parameters and coverage "], rows)


def _told(operation: dict[str, Any]) -> dict[str, Any]:
    """What a reader wants of an operation: masks of thousands of digits stay in the ledger."""
    masks = ("kept",) if operation.get("op") in ("trim", "trim_vocabulary", "remove") else ()
    return {key: value for key, value in operation.items() if key not in ("op", *masks) and value is not None}


def _values(values: dict[str, Any]) -> str:
    return "; ".join(f"{escape(key)}: {_value(key, value)}" for key, value in values.items()) or "-"


def _value(key: str, value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("left"), list):
        left = ", ".join(escape(count) for count in value["left"])
        return f"{escape(value.get('removed'))} of {escape(value.get('of'))} removed, left in each layer {left}"
    if isinstance(value, dict):
        return ", ".join(f"{escape(name)} ({_said(about)})" for name, about in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(escape(item) for item in value) or "none"
    if key == "achieved" and (share := number(value)) is not None:
        return f"{share:.4%}".replace("%", " %") + " measured on disk"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(value)


def _said(about: Any) -> str:
    return f"{about:.4f}" if isinstance(about, float) else escape(about)


def benchmark_table(model: Model) -> str:
    """Everything that a stage's benchmark measured, and what of it failed."""
    measured = arms(model.entry)
    forward = list(dict.fromkeys(key for arm in measured for key in part(arm, "forward")))
    generate = list(dict.fromkeys(key for arm in measured for key in part(arm, "generate")))
    ratios = list(dict.fromkeys(key for arm in measured for key in part(arm, "ratio")))
    plain = {"weights_mb": "weights, MB", "embedding_mb": "embedding, MB", "load_mb": "after loading, MB",
             "peak_memory_mb": "peak, MB", "peak_above_start_mb": "peak above start, MB",
             "peak_reserved_mb": "peak reserved, MB", "load_seconds": "load, s"}  # fmt: skip
    paths: dict[str, tuple[str, ...]] = {name: (key,) for key, name in plain.items()}
    paths |= {f"forward {k} {p}, ms": ("forward", k, f"{p}_ms") for k in forward for p in ("p50", "p95")}
    for length in generate:
        paths |= {
            f"first token at {length}, ms": ("generate", length, "first_token_ms"),
            f"tokens/s at {length}": ("generate", length, "tokens_per_s"),
            f"token p50 at {length}, ms": ("generate", length, "token_p50_ms"),
            f"token p95 at {length}, ms": ("generate", length, "token_p95_ms"),
            f"generation of {length}, s": ("generate", length, "seconds"),
            f"CPU time at {length}, s": ("generate", length, "cpu_seconds"),
            f"CPU share at {length}, %": ("generate", length, "cpu_percent"),
        }
    paths = {name: path for name, path in paths.items() if any(_figure(arm, path) is not None for arm in measured)}
    header = [
        "arm",
        "precision ",
        "attention ",
        *map(escape, paths),
        *(f"ratio to baseline, {escape(k)} " for k in ratios),
    ]
    return table(header, [_arm(arm, list(paths.values()), ratios) for arm in measured])


def _figure(arm: dict[str, Any], path: tuple[str, ...]) -> float | None:
    return number(part(arm, *path[:-1]).get(path[-1]))


def _arm(arm: dict[str, Any], paths: Sequence[tuple[str, ...]], ratios: Sequence[str]) -> list[str]:
    attention = " / ".join(escape(arm[key]) for key in ("attention", "attention_kernel") if arm.get(key))
    first = [escape(arm.get("name", "")), escape(arm.get("precision", "")), attention or "-"]
    if "error" in arm:
        return [*first, escape(arm["error"]), *([NOT_APPLICABLE] * (len(paths) + len(ratios) - 1))]
    figures = [write("ms", _figure(arm, path)) for path in paths]
    return [*first, *figures, *(_ratio(part(arm, "ratio", key)) for key in ratios)]


def _ratio(ratio: dict[str, Any]) -> str:
    median, low, high = (number(ratio.get(key)) for key in ("median", "low", "high"))
    if median is None:
        return MISSING
    return f"{median:.3f}" + ("" if low is None or high is None else f" ({low:.3f} to {high:.3f})")


def sweep_table(sweep: dict[str, Any]) -> str:
    """A sweep's perplexities by value, one column an arm."""
    values = sweep["values"] if isinstance(sweep.get("values"), list) else []
    named = part(sweep, "arms")
    rows = []
    for i, value in enumerate(values):
        cells = []
        for points in named.values():
            point = points[i] if isinstance(points, list) and i < len(points) and isinstance(points[i], dict) else {}
            bounds = point.get("interval_95")
            text = write("perplexity", number(point.get("perplexity")))
            ends = [number(b) for b in bounds] if isinstance(bounds, list) else []
            cells.append(
                text
                + (f" ({write('perplexity', ends[0])} to {write('perplexity', ends[1])})" if len(ends) == 2 else "")
            )
        rows.append([escape(value), *cells])
    return table([escape(sweep.get("key", "value")), *(escape(name) for name in named)], rows)
