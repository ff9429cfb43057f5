"""Tables in the terminal, and lines about exports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightgpt2.models.quality import metric_names
from lightgpt2.report.figures import numbers, title

Rows = Sequence[Sequence[str]]
Figures = Mapping[str, Mapping[str, Any]]

_SHARES = {"source": "outputs as in PyTorch", "cache": "as without the cache"}


def comparison(figures: Figures) -> str:
    """A table with one row a model: its metrics, the primary one with an interval, and sizes.

    Args:
        figures: For each model's name its quality as in a ledger, `parameters`, `embedding` and `megabytes`.
    """
    header = ["parameters", "embedding", "MB on disk"]
    sizes = [[f"{row['parameters']:,}", f"{row['embedding']:,}", f"{row['megabytes']:.2f}"] for row in figures.values()]
    return _with_metrics(figures, header, sizes)


def precisions(figures: Figures) -> str:
    """A table with one row a precision of one model: the primary metric, memory of the weights, and bytes on disk.

    Args:
        figures: For each precision its quality, and `megabytes` and `memory`, which may be None; `quantized` says how many of
            the linear layers are.
    """
    sizes = [
        [
            *("" if row[key] is None else f"{row[key]:.2f}" for key in ("memory", "megabytes")),
            row.get("quantized", "none"),
        ]
        for row in figures.values()
    ]
    header = ["weights MB", "MB on disk", "linear layers quantized"]
    return _with_metrics({name: _primary(row) for name, row in figures.items()}, header, sizes)


def sweep_table(found: Mapping[str, Any]) -> str:
    """A table with one row a value: the primary metric with its interval in each arm; then the largest value in the budget.

    Args:
        found: A sweep as the ledger has it; its `budget_percent` is by how many per cent the metric may be worse.
    """
    rows = [[found["key"]], *([f"{value:g}"] for value in found["values"])]
    for name, points in found["arms"].items():
        rows[0] += [f"{name} {title(points[0]['primary'])}", "95 % interval"]
        for row, point in zip(rows[1:], points, strict=True):
            row += _cells(point, [point["primary"]])
    largest = found["largest_inside_budget"]
    verdict = "no value is inside it" if largest is None else f"the largest value inside it is {largest:g}"
    return "\n".join(["", *aligned(rows), "", f"With a budget of {found['budget_percent']:g} % {verdict}."])


def exported_line(folder: Path, about: Mapping[str, Any]) -> str:
    """Sizes and figures of an exported folder, of what its `export.json` says, in one line."""
    before, after = (about["quality"][label] for label in ("before", "after"))
    mine, source = (_value(scored[after["primary"]]) for scored in (after, before))
    counts = "".join(f" ({count:g} {what} of {about['validation']})" for what, count in [*numbers(after).items()][:1])
    shares = [f"{said} {about['agreement'][key]:.1%}" for key, said in _SHARES.items() if key in about["agreement"]]
    quality = f"{title(after['primary'])} {mine}, the source's {source}{counts}"
    return "; ".join(filter(None, [_size(folder, about), quality, ", ".join(shares)]))


def encoder_line(folder: Path, about: Mapping[str, Any]) -> str:
    """The same of an encoder."""
    cosine = about["cosine"]
    said = f"cosine to PyTorch {cosine['mean']:.5f}, {cosine['least']:.5f} at least"
    return f"{_size(folder, about)}; {said} ({cosine['texts']} texts of {about['validation']})"


def _size(folder: Path, about: Mapping[str, Any]) -> str:
    return f"{folder}: {sum(about['bytes'].values()) / 1e6:.2f} MB"


def aligned(rows: Rows) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right, a rule below the first row."""
    first, *others = ([*map(len, column)] for column in zip(*rows, strict=True))
    form = "  ".join([f"{{:<{max(first)}}}", *(f"{{:>{max(lengths)}}}" for lengths in others)])
    lines = [form.format(*row) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _primary(row: Mapping[str, Any]) -> dict[str, Any]:
    return {row["primary"]: row[row["primary"]], "primary": row["primary"]}


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A row's metrics, with the interval of the first."""
    first = row[names[0]]
    bounds = " - ".join(f"{bound:.{first['digits']}f}" for bound in first["interval_95"] or ())
    return [_value(first), bounds, *(_value(row[name]) if name in row else "" for name in names[1:])]


def _value(about: Mapping[str, Any]) -> str:
    return f"{about['value']:.{about['digits']}f}"


def _with_metrics(figures: Figures, header: list[str], more: Rows) -> str:
    names = list(dict.fromkeys(name for row in figures.values() for name in metric_names(row)))
    rows = [[label, *_cells(row, names), *cells] for (label, row), cells in zip(figures.items(), more, strict=True)]
    return "\n".join(["", *aligned([["", title(names[0]), "95 % interval", *map(title, names[1:]), *header], *rows])])
