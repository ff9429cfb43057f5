"""What the terminal shows at the end of a run, of a quantization, of a sweep and of an export."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightgpt2.models.quality import metric_names
from lightgpt2.report.figures import numbers, title

_SHARES = {"source": "outputs as in PyTorch", "cache": "as without the cache"}
Rows = Sequence[Sequence[str]]
Figures = Mapping[str, Mapping[str, Any]]


def comparison(figures: Figures) -> str:
    """A table with one row a model: of its quality as in a ledger, `parameters`, `embedding` and `megabytes`."""
    header = ["parameters", "embedding", "MB on disk"]
    sizes = [[f"{row['parameters']:,}", f"{row['embedding']:,}", f"{row['megabytes']:.2f}"] for row in figures.values()]
    return _with_metrics(figures, header, sizes)


def precisions(figures: Figures) -> str:
    """A table with one row a precision of one model: of its quality, `memory`, `megabytes` and the layers `quantized`."""
    sizes = []
    for row in figures.values():
        known = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("memory", "megabytes"))
        sizes.append([*known, row.get("quantized", "none")])
    header = ["weights MB", "MB on disk", "linear layers quantized"]
    return _with_metrics({name: _primary(row) for name, row in figures.items()}, header, sizes)


def sweep_table(found: Mapping[str, Any]) -> str:
    """A table of a sweep as the ledger has it, one row a value, and the largest value inside its `budget_percent`."""
    rows = [[found["key"]], *([f"{value:g}"] for value in found["values"])]
    for name, points in found["arms"].items():
        rows[0] += [f"{name} {title(points[0]['primary'])}", "95 % interval"]
        for row, point in zip(rows[1:], points, strict=True):
            row += _cells(point, [point["primary"]])
    largest = found["largest_inside_budget"]
    verdict = "no value is inside it" if largest is None else f"the largest value inside it is {largest:g}"
    return "\n".join(["", *aligned(rows), "", f"With a budget of {found['budget_percent']:g} % {verdict}."])


def aligned(rows: Rows) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right, a rule below the first row."""
    first, *others = ([*map(len, column)] for column in zip(*rows, strict=True))
    form = "  ".join([f"{{:<{max(first)}}}", *(f"{{:>{max(lengths)}}}" for lengths in others)])
    lines = [form.format(*row) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _primary(row: Mapping[str, Any]) -> dict[str, Any]:
    return {row["primary"]: row[row["primary"]], "primary": row["primary"]}


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    first = row[names[0]]
    bounds = " - ".join(f"{bound:.{first['digits']}f}" for bound in first["interval_95"] or ())
    return [metric_text(first), bounds, *(metric_text(row[name]) if name in row else "" for name in names[1:])]


def metric_text(about: Mapping[str, Any]) -> str:
    return f"{about['value']:.{about['digits']}f}"


def _with_metrics(figures: Figures, header: list[str], more: Rows) -> str:
    names = list(dict.fromkeys(name for row in figures.values() for name in metric_names(row)))
    rows = [[label, *_cells(row, names), *cells] for (label, row), cells in zip(figures.items(), more, strict=True)]
    return "\n".join(["", *aligned([["", title(names[0]), "95 % interval", *map(title, names[1:]), *header], *rows])])


def exported_line(folder: Path, about: Mapping[str, Any]) -> str:
    """Sizes and figures of an exported folder, of what its `export.json` says, in one line."""
    before, after = (about["quality"][label] for label in ("before", "after"))
    mine, source = (metric_text(scored[after["primary"]]) for scored in (after, before))
    counts = "".join(f" ({count:g} {what} of {about['validation']})" for what, count in [*numbers(after).items()][:1])
    shares = [f"{said} {about['agreement'][key]:.1%}" for key, said in _SHARES.items() if key in about["agreement"]]
    quality = f"{title(after['primary'])} {mine}, the source's {source}{counts}"
    return "; ".join(filter(None, [f"{folder}: {_megabytes(about)}", quality, ", ".join(shares)]))


def encoder_line(folder: Path, about: Mapping[str, Any]) -> str:
    cosine, texts = about["cosine"], f"({about['cosine']['texts']} texts of {about['validation']})"
    said = f"cosine to PyTorch {cosine['mean']:.5f}, {cosine['least']:.5f} at least {texts}"
    return f"{folder}: {_megabytes(about)}; {said}"


def _megabytes(about: Mapping[str, Any]) -> str:
    return f"{sum(about['bytes'].values()) / 1e6:.2f} MB"
