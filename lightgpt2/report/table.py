"""The table at the end of a run."""

from typing import Any

_PRECISION_HEADER = ("", "perplexity", "95 % interval", "weights MB", "MB on disk", "linear layers quantized")
_HEADER = ("", "perplexity", "95 % interval", "bits/byte", "parameters", "embedding", "MB on disk")


def comparison(figures: dict[str, dict[str, Any]]) -> str:
    """A table with one row a model: quality with its interval, and sizes.

    Args:
        figures: For each model's name its `perplexity`, `interval_95`, `bits_per_byte`, `parameters`, `embedding`
            and `megabytes`.
    """
    return _aligned([_HEADER, *(_row(name, values) for name, values in figures.items())])


def precisions(figures: dict[str, dict[str, Any]]) -> str:
    """A table with one row a precision of one model: quality with its interval, memory of the weights, and bytes on disk.

    Args:
        figures: For each precision what `comparison` wants, and `memory`; `megabytes` and `memory` may be None; `quantized`
            says how many of the linear layers are.
    """
    return _aligned([_PRECISION_HEADER, *(_precision_row(name, values) for name, values in figures.items())])


def sweep_table(found: dict[str, Any]) -> str:
    """A table with one row a value: perplexity with its interval in each arm; and the largest value inside the budget.

    Args:
        found: A sweep as the ledger has it.
    """
    arms = found["arms"]
    rows = [(found["key"], *(title for arm in arms for title in (f"{arm} perplexity", "95 % interval")))]
    for i, value in enumerate(found["values"]):
        cells = ((f"{arm[i]['perplexity']:.2f}", _interval(arm[i])) for arm in arms.values())
        rows.append((f"{value:g}", *(text for pair in cells for text in pair)))
    largest = found["largest_inside_budget"]
    verdict = "no value is" if largest is None else f"the largest value inside it is {largest:g}"
    return f"{_aligned(rows)}\n\nWith a budget of {found['budget']:g} of perplexity above the first row {verdict}."


def _interval(values: dict[str, Any]) -> str:
    return " - ".join(f"{bound:.2f}" for bound in values["perplexity"]["interval_95"] or ())


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(["", lines[0], "-" * len(lines[0]), *lines[1:]])


def _row(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{values['perplexity']['value']:.2f}",
        _interval(values),
        f"{values['bits_per_byte']['value']:.4f}",
        f"{values['parameters']:,}",
        f"{values['embedding']:,}",
        f"{values['megabytes']:.2f}",
    )


def _precision_row(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{values['perplexity']['value']:.2f}",
        _interval(values),
        *("" if values[key] is None else f"{values[key]:.2f}" for key in ("memory", "megabytes")),
        values.get("quantized", "none"),
    )
