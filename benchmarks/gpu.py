"""The distillation step on CUDA: GPT-2 medium to GPT-2 shapes, bf16, 16x512 tokens, fused attention.

    python -m benchmarks.gpu [--compile] [--rounds 10]

The four arms of `benchmarks.training` on the card; then where a step's time goes, part by part, with the plain and with the
fused loss; the share of the card's measured matrix peak; and the tables of `benchmarks.chain` at the student's shapes.
`--device cpu` with small shapes runs the same code anywhere, of the chain the decoding only.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import chain
from benchmarks.common import machine, markdown, parser, plain_loss, random_batches
from benchmarks.steps import fused_head, fused_loss, load, states
from benchmarks.training import SHAPES, measure, table


def seconds(work: Callable[[], Any], device: str, repeats: int) -> float:
    """Median time of a piece of work, after one run to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def matrix_peak(device: str, dtype: torch.dtype, size: int) -> float:
    """The device's measured matrix rate in FLOP/s: the best of square products around `size`."""
    best = 0.0
    for n in (size // 2, size, 2 * size):
        a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
        best = max(best, 2 * n**3 / seconds(lambda a=a, b=b: a @ b, device, 10))  # type: ignore[misc]
    return best


def parts(folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Seconds of each part of a step, and the floating-point operations of the whole."""
    (student, teacher), device = load(folder, options), options.device
    batch = random_batches(1, options.batch, options.length, options.vocabulary)[0]
    ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

    def autocast() -> torch.autocast:
        return torch.autocast(device, torch.bfloat16, enabled=options.bf16)

    def teacher_forward() -> torch.Tensor:
        with autocast(), torch.no_grad():
            return states(teacher, ids)

    def student_both() -> None:
        with autocast():
            hidden = states(student, ids)
        hidden.backward(torch.ones_like(hidden))

    target = teacher_forward()
    with torch.no_grad(), autocast():
        hidden = states(student, ids)

    def head_fused() -> None:
        inputs = hidden.detach().requires_grad_()
        with autocast():
            loss = fused_head(inputs, target, student, teacher, labels)
        loss.backward()

    def whole(compute: Callable[..., torch.Tensor]) -> None:
        with autocast():
            loss = compute(student, teacher, ids, labels)
        loss.backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    work = {
        "teacher blocks, forward": teacher_forward,
        "student blocks, forward and backward": student_both,
        "heads and loss, fused, forward and backward": head_fused,
        "clip and AdamW": update,
        "all but the update, plain loss": lambda: whole(plain_loss),
        "all but the update, fused loss": lambda: whole(fused_loss),
    }
    with FlopCounterMode(display=False) as counter:
        whole(plain_loss)
    return {name: seconds(piece, device, options.rounds) for name, piece in work.items()}, counter.get_total_flops()


def main() -> None:
    """Prints the arms' table, the parts' table and the share of the peak."""
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
