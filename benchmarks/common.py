"""What the measurements share: options, tables, GPT-2 shapes, the plain loss, and the summary of interleaved rounds."""

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from lightgpt2.measure import benchmark

ROOT = Path(__file__).parents[1]
CE, KD, TEMPERATURE = 0.3, 0.7, 2.0
VOCABULARY = 50257


def parser(text: str | None, **options: Any) -> argparse.ArgumentParser:
    """A command line whose help is a module's docstring; transformers is silenced.

    `options` are defaults, whose type the options have (`steps=200`, `seeds=[1, 2]`, `fast=False`), a type alone for an option
    that must be given (`folder=Path`), or what argparse takes (`folder={"type": Path}`).
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            found.add_argument(flag, **value)
        elif isinstance(value, type):
            found.add_argument(flag, type=value, required=True)
        elif isinstance(value, bool):
            found.add_argument(flag, action="store_true", default=value)
        elif isinstance(value, list):
            found.add_argument(flag, type=type(value[0]) if value else str, nargs="+", default=value)
        else:
            found.add_argument(flag, type=type(value), default=value)
    return found


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = [*header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows))


def place(name: str) -> str:
    """A path as another folder sees it; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def gpt2(layers: int, width: int, heads: int, positions: int, vocabulary: int = VOCABULARY) -> GPT2LMHeadModel:
    """A randomly initialised GPT-2 without dropout, so that all arms compute the same numbers."""
    shape = {"vocab_size": vocabulary, "n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": positions}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**shape, **dropout, bos_token_id=0, eos_token_id=0))


def plain_loss(student: PreTrainedModel, teacher: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Distillation as it is usually written, logits of both models and all: a mean over tokens."""
    logits = student(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
    with torch.no_grad():
        targets = teacher(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
    ce = F.cross_entropy(logits, labels.flatten())
    log_q, log_p = F.log_softmax(logits / TEMPERATURE, dim=-1), F.log_softmax(targets / TEMPERATURE, dim=-1)
    kd = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1).mean()
    return CE * ce + KD * TEMPERATURE**2 * kd


def random_batches(count: int, batch: int, length: int, vocabulary: int) -> list[dict[str, Any]]:
    """Batches of random tokens, as the data module yields them."""
    tokens = torch.randint(vocabulary, (count, batch, length + 1), generator=torch.Generator().manual_seed(0))
    inputs, labels = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()
    return [{"input_ids": x, "labels": y, "step_items": batch * length} for x, y in zip(inputs, labels, strict=True)]


def ratios(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, tuple[float, float, float]]:
    """How many times faster than the baseline each arm is: median and range of the ratios inside rounds."""
    inside = {arm: [b / t for b, t in zip(times[baseline], values, strict=True)] for arm, values in times.items()}
    return {arm: (statistics.median(found), min(found), max(found)) for arm, found in inside.items()}


def machine() -> str:
    """The processor, the threads and the versions that a figure belongs to."""
    found = benchmark.machine("cuda" if torch.cuda.is_available() else "cpu")
    versions = [f"{name} {found['versions'][name]}" for name in ("torch", "lightning", "transformers")]
    return f"{found['name']}, {found['threads']} threads, {', '.join(versions)}"
