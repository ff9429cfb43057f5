"""Speed and memory of a distillation step at GPT-2's vocabulary.

    python -m benchmarks.training [--rounds 10] [--width 768 --teacher-width 768] [--device cuda --bf16 --compile]

The arms of `benchmarks.steps`, each in a process of its own, so that steps interleave and memory is each arm's alone. All take
the same batches from the same weights with the same optimizer, and their losses must agree.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import gpt2, machine, markdown, parser, ratios
from benchmarks.steps import ARMS
from lightgpt2.measure.child import Children, turns

Result = dict[str, dict[str, Any]]


def measure(options: argparse.Namespace, folder: Path) -> Result:
    """Runs all arms step by step in rounds."""
    torch.manual_seed(0)
    positions = max(options.length, 128)
    shape = (options.teacher_layers, options.teacher_width, options.teacher_heads)
    gpt2(*shape, positions, options.vocabulary).save_pretrained(folder / "teacher")
    student = gpt2(options.student_layers, options.width, options.heads, positions, options.vocabulary)
    student.save_pretrained(folder / "student")
    optimizer_mb = 2 * 4 * sum(p.numel() for p in student.parameters()) / 1e6
    del student
    result: Result = {arm: {"times": [], "losses": []} for arm in ARMS}
    with Children("benchmarks.steps", ARMS, required=ARMS) as children:
        # One after the other: loading is not what is measured.
        resident = {arm: children.ask(arm, "load", **vars(options), arm=arm, folder=str(folder)) for arm in ARMS}
        for number, arm in enumerate(turns([*ARMS], options.warmup + options.rounds)):
            step = children.ask(arm, "step")
            result[arm]["losses"].append(step["loss"])
            result[arm]["memory_mb"] = step["peak_mb"] - resident[arm]["resident_mb"] - optimizer_mb
            if number >= options.warmup * len(ARMS):
                result[arm]["times"].append(step["seconds"])
    return result


def table(result: Result, options: argparse.Namespace) -> str:
    """A row for each arm, and the ratios that are promised."""
    times = {arm: values["times"] for arm, values in result.items()}
    plain, rows = result["bare plain"], []
    for arm, (middle, low, high) in ratios(times, "bare plain").items():
        seconds, memory = statistics.median(times[arm]), result[arm]["memory_mb"]
        cells = (
            f"{seconds:.4f}",
            f"{options.batch * options.length / seconds:,.0f}",
            f"{middle:.3f} ({low:.3f} - {high:.3f})",
        )
        rows.append([arm, *cells, f"{memory:.0f}", f"{memory / plain['memory_mb']:.1%}"])
    header = ["arm", "s/step (median)", "tokens/s", "speed vs bare plain (range)"]
    header += ["memory above weights and optimizer, MB", "share"]
    worst = max(
        abs(a - b) / abs(b) for arm in ARMS for a, b in zip(result[arm]["losses"], plain["losses"], strict=True)
    )
    return "\n".join([
        markdown(header, rows), "",
        f"lightgpt2 vs transformers Trainer: {ratios(times, 'trainer plain')['lightgpt2'][0]:.3f}x",
        f"Lightning's loop on the same arithmetic: {1 / ratios(times, 'bare fused')['lightgpt2'][0] - 1:+.1%}",
        f"largest relative difference of any step's loss from the bare plain loop's: {worst:.1e}",
    ])  # fmt: skip


if __name__ == "__main__":
    _options = parser(
        __doc__, rounds=10, warmup=2, batch=8, length=128, width=768, heads=12, teacher_width=768, teacher_heads=12,
        teacher_layers=12, student_layers=6, vocabulary=50257, device="cpu", bf16=False, compile=False,
    ).parse_args()  # fmt: skip
    with tempfile.TemporaryDirectory() as _folder:
        _result = measure(_options, Path(_folder))
    print(f"\n{machine()}\n\n{table(_result, _options)}")
