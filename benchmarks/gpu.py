"""A CUDA card, in one run of a few minutes: classifiers by precision, memory of training, steps of distillation.

    python -m benchmarks.gpu [--parts inference memory training] [--rounds 3] [--length 128] [--batch 32]

BERT-base and DistilBERT with random weights, which neither change speed nor memory. Inference is `lightgpt2 benchmark`'s, which
checks that all weights lie and all matrix products run on the card: p50 of one text of 32 and of `--length` tokens, texts a
second in batches of 16 and 128 of mixed lengths. Memory is that of `benchmarks.memory` with BERT-base, batches of `--batch`
texts of `--length` tokens. Training is `benchmarks.training`, GPT-2 medium into GPT-2, in bf16; the card's
products of large matrices are measured beside it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks import memory, training
from benchmarks.common import machine, markdown, parser
from lightgpt2.measure.benchmark import choose_device, measure
from lightgpt2.measure.plan import plan

_SHAPES = {"BERT-base": "bert", "DistilBERT": "distilbert"}
_PRECISIONS = ["fp32", "fp16", "bf16", "int8", "nf4"]
_BATCHES = [16, 128]
_MATRIX, _PRODUCTS = 8192, 50
_STEP = {"batch": 16, "length": 512, "width": 768, "heads": 12, "student_layers": 12, "teacher_layers": 24}
_STEP |= {"teacher_width": 1024, "teacher_heads": 16, "vocabulary": 50257, "warmup": 3}


def inference(options: argparse.Namespace) -> str:
    """A row for each shape and precision; ratios are to the first precision of the same shape."""
    device, rows = choose_device(options.device), []
    lengths = [32, options.length]
    settings = {"batches": _BATCHES, "forward_tokens": lengths, "concurrency": [1]}
    with tempfile.TemporaryDirectory() as name:
        for shape, kind in _SHAPES.items():
            model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind))
            model.save_pretrained(folder := Path(name) / kind)
            arms, workloads = plan([str(folder)], options.precisions, ["sdpa"], settings, device=device)
            found = measure(arms, workloads, options.rounds, device, Path(name) / "traces")
            rows += [[shape, arm["precision"], *_figures(arm, lengths)] for arm in found["arms"]]
    header = ["model", "precision", *(f"ms, 1x{n} tokens" for n in lengths)]
    header += [f"texts/s, batches of {n}" for n in _BATCHES]
    return markdown([*header, "weights MB", "peak MB", "attention"], rows)


def _figures(arm: dict[str, Any], lengths: list[int]) -> list[str]:
    if "error" in arm:
        return [arm["error"], *[""] * (len(lengths) + len(_BATCHES) + 2)]
    times = [f"{arm['forward'][f'1x{n}']['p50_ms']:.2f}" for n in lengths]
    speeds = [f"{arm['texts'][f'batch {n}']['texts_per_s']:,.0f}" for n in _BATCHES]
    kernel = arm["attention_kernel"].removeprefix("aten::_scaled_dot_product_")
    return [*times, *speeds, f"{arm['weights_mb']:.0f}", f"{arm['peak_memory_mb']:.0f}", kernel]


def training_memory(options: argparse.Namespace) -> str:
    """BERT-base, all weights and adapters."""
    shape = {"layers": 12, "width": 768, "heads": 12, "vocabulary": 30522}
    return memory.table(argparse.Namespace(**{**vars(options), **shape, "model_type": "bert"}))


def distillation(options: argparse.Namespace) -> str:
    """A step of `benchmarks.training`, and the share that it makes of the card's products of matrices."""
    settings = argparse.Namespace(
        **_STEP, device=options.device, bf16=True, compile=options.compile, rounds=options.rounds * 5
    )
    with tempfile.TemporaryDirectory() as name:
        result = training.measure(settings, Path(name))
    rate = settings.batch * settings.length / sorted(result["lightgpt2"]["times"])[settings.rounds // 2]
    # Kaplan et al. 2020, section 2.1: 6 operations a parameter and token for a step, 2 for reading; without attention's.
    weights = 12 * 12 * settings.width**2 + settings.width * settings.vocabulary
    taught = 12 * 24 * settings.teacher_width**2 + settings.teacher_width * settings.vocabulary
    done, most = (6 * weights + 2 * taught) * rate / 1e12, peak_tflops(options.device)
    return (
        f"{training.table(result, settings)}\nproducts of matrices: {done:.0f} TFLOP/s of {most:.0f}, {done / most:.0%}"
    )


def peak_tflops(device: str) -> float:
    """Products of large matrices in bf16 a second."""
    a, b = (torch.randn(_MATRIX, _MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    for count in (3, _PRODUCTS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            a @ b
        torch.cuda.synchronize()
    return 2 * _MATRIX**3 * _PRODUCTS / (time.perf_counter() - started) / 1e12


_PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "inference": inference, "memory": training_memory, "training": distillation,
}  # fmt: skip


def main() -> None:
    parts = {"nargs": "+", "choices": [*_PARTS], "default": [*_PARTS], "metavar": "PART"}
    settings = {
        "parts": parts,
        "precisions": _PRECISIONS,
        "rounds": 3,
        "length": 128,
        "batch": 32,
        "jobs": 3,
        "compile": False,
    }
    options = parser(__doc__, **settings, device="cuda").parse_args()
    print(machine(), flush=True)
    for name in options.parts:
        print(f"\n{name}\n\n{_PARTS[name](options)}", flush=True)


if __name__ == "__main__":
    main()
