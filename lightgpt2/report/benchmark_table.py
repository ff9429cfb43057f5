"""A benchmark's figures for people."""

from collections.abc import Callable, Sequence
from typing import Any

from lightgpt2.report.markup import table
from lightgpt2.report.table import aligned

_PREFIX = "aten::_scaled_dot_product_"
_SPENT = {"seconds": ("seconds", ".3f"), "CPU seconds": ("cpu_seconds", ".3f"), "CPU %": ("cpu_percent", ".0f")}

Arm = dict[str, Any]


def benchmark_table(result: dict[str, Any]) -> str:
    """Tables with one row an arm: figures, what a generation takes, ratios to the first arm; then what failed.

    Args:
        result: What `measure.benchmark.measure` returned.
    """
    failed = [f"{arm['name']}: not measured: {arm['error']}" for arm in result["arms"] if "error" in arm]
    measured = [arm for arm in result["arms"] if "error" not in arm]
    return "\n".join(["", *(_sections(result, measured) if measured else []), *failed])


def operators_markdown(arm: Arm) -> str:
    """The operators that took the most time of an arm, for TensorBoard."""
    rows = [
        [op["name"], str(op["calls"]), f"{op['self_ms']:.3f}", f"{op['share']:.1%}", op["device"]]
        for op in arm["operators"]
    ]
    shown = table(["operator", "calls", "self ms", "share", "device"], rows)
    return f"{shown}\n\nattention: {arm['attention_kernel']}, trace: {arm['trace']}"


def _sections(result: dict[str, Any], measured: list[Arm]) -> list[str]:
    settings, machine, first = result["settings"], result["machine"], measured[0]
    speeds = [*(f"{shape} ms" for shape in first["forward"]), "first token ms"]
    speeds += [f"{count}: tokens/s" for count in first["generate"]]
    spent = [f"{count}: {name}" for count in first["generate"] for name in _SPENT]

    def lines(header: Sequence[str], cells: Callable[[Arm], list[str]]) -> list[str]:
        return [*aligned([["", *header], *([arm["name"], *cells(arm)] for arm in measured)]), ""]

    return [
        *lines(["weights MB", "peak MB", *speeds, "attention"], _figures),
        f"Generation with its prompt of {settings['prompt_tokens']} tokens: wall clock; CPU time of all threads; "
        "100 % is one core\n",
        *lines(spent, _spent),
        f"Times as fast as {first['name']}: median (lowest - highest) of the ratios inside {settings['rounds']} rounds\n",
        *lines([*first["ratio"]], _ratios),
        f"{machine['name']}, {machine['threads']} threads on the CPU, torch {machine['versions']['torch']}; "
        "one process a model",
    ]


def _figures(arm: Arm) -> list[str]:
    generated = list(arm["generate"].values())
    forward = [f"{times['p50_ms']:.2f}" for times in arm["forward"].values()]
    first = f"{generated[0]['first_token_ms']:.2f}"  # the prompt is the same for all
    speeds = [*forward, first, *(f"{each['tokens_per_s']:.1f}" for each in generated)]
    memory = [f"{arm[key]:.1f}" for key in ("weights_mb", "peak_memory_mb")]
    return [*memory, *speeds, arm["attention_kernel"].replace(_PREFIX, "")]


def _spent(arm: Arm) -> list[str]:
    return [format(each[key], form) for each in arm["generate"].values() for key, form in _SPENT.values()]


def _ratios(arm: Arm) -> list[str]:
    return [f"{each['median']:.2f} ({each['low']:.2f} - {each['high']:.2f})" for each in arm["ratio"].values()]
