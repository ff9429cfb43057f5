"""A benchmark's figures for people: as text for the terminal, as Markdown for TensorBoard."""

import itertools
from collections.abc import Sequence
from typing import Any

_PREFIX = "aten::_scaled_dot_product_"

Rows = list[tuple[str, ...]]


def benchmark_table(result: dict[str, Any]) -> str:
    """Tables with one row an arm: figures, what a generation takes, ratios to the first arm; then what failed.

    Args:
        result: What `inference.benchmark.measure` returned.
    """
    measured = [arm for arm in result["arms"] if "error" not in arm]
    lines = [""]
    if measured:
        lines += [*_text(_figures(measured)), "", _generation(result), "", *_text(_spent(measured)), ""]
        lines += [_headline(result, measured), "", *_text(_ratios(measured)), "", _machine(result)]
    return "\n".join([*lines, *_failures(result)])


def benchmark_markdown(result: dict[str, Any]) -> str:
    """The same in Markdown.

    Args:
        result: What `inference.benchmark.measure` returned.
    """
    measured = [arm for arm in result["arms"] if "error" not in arm]
    lines = []
    if measured:
        lines += [*_markdown(_figures(measured)), "", _generation(result), "", *_markdown(_spent(measured)), ""]
        lines += [_headline(result, measured), "", *_markdown(_ratios(measured)), "", _machine(result)]
    return "\n".join([*lines, *(f"\n{line}" for line in _failures(result))])


def operators_markdown(arm: dict[str, Any]) -> str:
    """The operators that took the most time of an arm, in Markdown.

    Args:
        arm: An arm's figures.
    """
    rows: Rows = [("operator", "calls", "self ms", "share", "device")]
    for op in arm["operators"]:
        rows.append((op["name"], str(op["calls"]), f"{op['self_ms']:.3f}", f"{op['share']:.1%}", op["device"]))
    return "\n".join([*_markdown(rows), "", f"attention: {arm['attention_kernel']}, trace: {arm['trace']}"])


def _text(rows: Rows) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(cells))

    return [line(rows[0]), "-" * len(line(rows[0])), *map(line, rows[1:])]


def _markdown(rows: Rows) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *lines[1:]]


def _figures(measured: list[dict[str, Any]]) -> Rows:
    speed = [*(f"{shape} ms" for shape in measured[0]["forward"]), "first token ms"]
    counts = [f"{count}: tokens/s" for count in measured[0]["generate"]]
    rows: Rows = [("", "weights MB", "peak MB", *speed, *counts, "attention")]
    for arm in measured:
        generate = list(arm["generate"].values())
        rows.append(
            (
                arm["name"],
                f"{arm['weights_mb']:.1f}",
                f"{arm['peak_memory_mb']:.1f}",
                *(f"{times['p50_ms']:.2f}" for times in arm["forward"].values()),
                f"{generate[0]['first_token_ms']:.2f}",  # the prompt is the same for all
                *(f"{speed['tokens_per_s']:.1f}" for speed in generate),
                arm["attention_kernel"].replace(_PREFIX, ""),
            )
        )
    return rows


def _spent(measured: list[dict[str, Any]]) -> Rows:
    heads = ((count, name) for count in measured[0]["generate"] for name in ("seconds", "CPU seconds", "CPU %"))
    rows: Rows = [("", *(f"{count}: {name}" for count, name in heads))]
    for arm in measured:
        cells = ((g["seconds"], g["cpu_seconds"], g["cpu_percent"]) for g in arm["generate"].values())
        texts = ((f"{wall:.3f}", f"{cpu:.3f}", f"{share:.0f}") for wall, cpu, share in cells)
        rows.append((arm["name"], *itertools.chain(*texts)))
    return rows


def _ratios(measured: list[dict[str, Any]]) -> Rows:
    rows: Rows = [("", *measured[0]["ratio"])]
    for arm in measured:
        ratios = arm["ratio"].values()
        rows.append((arm["name"], *(f"{r['median']:.2f} ({r['low']:.2f} - {r['high']:.2f})" for r in ratios)))
    return rows


def _generation(result: dict[str, Any]) -> str:
    prompt = result["settings"]["prompt_tokens"]
    return f"Generation, the prompt of {prompt} tokens too: wall clock; CPU time of all threads; 100 % is one core"


def _headline(result: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    rounds = result["settings"]["rounds"]
    return f"Times as fast as {measured[0]['name']}: median (lowest - highest) of the ratios inside {rounds} rounds"


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return (
        f"{machine['name']}, {machine['threads']} threads on the CPU, torch {machine['versions']['torch']}; each model in "
        "a process of its own"
    )


def _failures(result: dict[str, Any]) -> list[str]:
    return [f"{arm['name']}: not measured: {arm['error']}" for arm in result["arms"] if "error" in arm]
