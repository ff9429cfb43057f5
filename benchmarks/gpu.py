"""The distillation step on CUDA: GPT-2 medium to GPT-2 shapes, bf16, 16x512 tokens, fused attention.

    python -m benchmarks.gpu [--compile] [--rounds 10]

The four arms of `benchmarks.training` on the card; then where a step's time goes, part by part, with the plain and with the
fused loss; the share of the card's measured matrix peak; and the tables of `benchmarks.chain` at the student's shapes.
`--device cpu` with small shapes runs the same code anywhere, of the chain the decoding only.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import chain
from benchmarks.common import machine, markdown, parser, plain_loss, random_batches
from benchmarks.steps import autocast, fused_head, fused_loss, load, states
from benchmarks.training import SHAPES, measure, table


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Mean time of a piece of work, after some to warm up."""
    return Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads()).timeit(repeats).mean


def matrix_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """The device's measured matrix rate in FLOP/s: the best of square products around `size`."""
    best = 0.0
    for n in (size // 2, size, 2 * size):
        a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
        best = max(best, 2 * n**3 / seconds(partial(torch.mm, a, b), 10))
    return best


def parts(folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Seconds of each part of a step, and the floating-point operations of the whole."""
    (student, teacher), device = load(folder, options), options.device
    batch = random_batches(1, options.batch, options.length, options.vocabulary)[0]
    ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    forward, head, plain, fused = map(autocast(options), (states, fused_head, plain_loss, fused_loss))
    target, hidden = forward(teacher, ids), forward(student, ids).detach().requires_grad_()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        plain(student, teacher, ids, labels).backward()
    work: dict[str, Callable[[], Any]] = {
        "teacher blocks, forward": lambda: forward(teacher, ids),
        "student blocks, forward and backward": lambda: forward(student, ids).sum().backward(),
        "heads and loss, fused, forward and backward": lambda: head(
            hidden, target, student, teacher, labels
        ).backward(),
        "clip and AdamW": update,
        "all but the update, plain loss": lambda: plain(student, teacher, ids, labels).backward(),
        "all but the update, fused loss": lambda: fused(student, teacher, ids, labels).backward(),
    }
    return {name: seconds(piece, options.rounds) for name, piece in work.items()}, counter.get_total_flops()


def main() -> None:
    cuda = torch.cuda.is_available()
    shapes = SHAPES | {
        "batch": 16, "length": 512, "student_layers": 12, "teacher_width": 1024, "teacher_heads": 16, "teacher_layers": 24,
        "device": "cuda" if cuda else "cpu", "bf16": cuda,
    }  # fmt: skip
    options = parser(__doc__, **shapes).parse_args()
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    with tempfile.TemporaryDirectory() as name:
        result = measure(options, Path(name))
        times, flops = parts(Path(name), options)
    peak = matrix_peak(options.device, dtype, 8192 if options.device == "cuda" else 256)
    print(f"\n{machine()}\n\n{table(result, options)}\n")
    print(markdown(["part", "ms"], ([part, f"{value * 1e3:.2f}"] for part, value in times.items())))
    step = statistics.median(result["lightgpt2"]["times"])
    print(f"\nmatrix peak, measured: {peak / 1e12:.2f} TFLOP/s ({dtype})")
    print(f"operations of a step: {flops / 1e12:.4f} TFLOP; lightgpt2 runs at {flops / step / peak:.1%} of the peak")
    options.layers, options.prompt, options.new_tokens = (
        options.student_layers, min(32, options.length // 2), options.length // 4
    )  # fmt: skip
    chain.tables([*chain.PARTS] if cuda else ["decode"], options)


if __name__ == "__main__":
    main()
