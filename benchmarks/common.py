"""What the measurements share: GPT-2 shapes, the plain loss, and the summary of interleaved rounds."""

import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

CE, KD, TEMPERATURE = 0.3, 0.7, 2.0
VOCABULARY = 50257


def gpt2(layers: int, width: int, heads: int, positions: int, vocabulary: int = VOCABULARY) -> GPT2LMHeadModel:
    """A randomly initialised GPT-2 without dropout, so that all arms compute the same numbers."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_layer=layers, n_embd=width, n_head=heads, n_positions=positions,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def plain_loss(student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Distillation as it is usually written, logits of both models and all: a mean over tokens."""
    logits = student(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
    with torch.no_grad():
        targets = teacher(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
    ce = F.cross_entropy(logits, labels.flatten())
    log_q, log_p = F.log_softmax(logits / TEMPERATURE, dim=-1), F.log_softmax(targets / TEMPERATURE, dim=-1)
    kd = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1).mean()
    return CE * ce + KD * TEMPERATURE**2 * kd


def random_batches(count: int, batch: int, length: int, vocabulary: int, seed: int = 0) -> list[dict[str, Any]]:
    """Batches of random tokens, as the data module makes them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (count, batch, length + 1), generator=generator)
    return [
        {"input_ids": t[:, :-1].contiguous(), "labels": t[:, 1:].contiguous(), "step_tokens": batch * length}
        for t in tokens
    ]


def ratios(times: dict[str, list[float]], baseline: str) -> dict[str, tuple[float, float, float]]:
    """For each arm, how many times faster than the baseline it is: median and range of the ratios inside rounds."""
    result = {}
    for arm, values in times.items():
        speedups = [b / t for b, t in zip(times[baseline], values, strict=True)]
        result[arm] = (statistics.median(speedups), min(speedups), max(speedups))
    return result


def machine() -> str:
    """The processor, the threads and the versions that a figure belongs to."""
    import lightning
    import transformers

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}, {name}"
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, lightning {lightning.__version__}, "
        f"transformers {transformers.__version__}"
    )
