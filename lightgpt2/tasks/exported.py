"""What was exported, held against the language model that it was made from."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from lightgpt2.errors import Problem, UserError
from lightgpt2.functional.divergence import IGNORE
from lightgpt2.models.quality import Metric, value_of
from lightgpt2.tasks.base import Batch, Row, Task

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 20, 16, 64
TIE = 1e-3  # logits that are this close may change places by rounding alone

# By how much the primary metric, the perplexity, may exceed the source's.
BOUNDS = {"fp32": 0.001, "f16": 0.005, "int8": 0.05, "int4": 0.5}
# By how much logits may be off, all rounding of deep models included.
_LOGITS = {"fp32": 0.01, "f16": 0.1}
# The least share of greedy tokens that come without the cache too, and from PyTorch: a model that has learnt nothing has the
# perplexity of any other.
_SHARES = {"fp32": (1.0, 1.0), "f16": (0.9, 0.9), "int8": (0.5, 0.5), "int4": (0.5, 0.1)}

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """How many of the greedy tokens that were generated with the cache come otherwise too."""

    cache: float  # the share that is also the likeliest without the cache
    source: float  # the share that is also the likeliest for the model that was exported, in PyTorch
    error: float  # how far logits are from PyTorch's, as a share of those without their mean (L2); the largest
    tokens: int


def agreement(engine: Any, model: PreTrainedModel, prompts: list[list[int]]) -> Agreement:
    """Continue prompts greedily with a `runtime.engines.Engine`'s cache; compare with the tokens without and from PyTorch.

    Each token is compared given those before it, so that one that differs does not make all that follow differ. Of two tokens
    whose logits are within 1e-3 either will do. The logits are those of all tokens without the cache, and of the last with it.
    All prompts have as many tokens.
    """
    ids = np.array(prompts, np.int64)
    length, new = ids.shape[1], min(NEW_TOKENS, engine.context - ids.shape[1])
    logits = engine.prefill(ids, np.ones_like(ids), new)
    for left in range(new, 0, -1):
        tokens = logits.argmax(axis=1)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        if left > 1:
            logits = engine.decode(tokens)
    same, errors = [], []
    for row, last in zip(ids, logits, strict=True):  # one at a time: the logits of all of GPT-2's are 260 MB
        text, chosen = row[None, :-1], row[length:, None]
        both = engine.logits(text, np.ones_like(text)), torch_logits(model, text)
        pair = [logits[0, length - 1 :] for logits in both]
        likeliest = (np.take_along_axis(each, chosen, axis=1)[:, 0] >= each.max(axis=1) - TIE for each in pair)
        same.append([*likeliest])
        errors += [error_of(*pair).max(), error_of(last[None], pair[1][-1:]).max()]
    cache, source = (float(share) for share in np.mean(same, axis=(0, 2)))
    return Agreement(cache, source, float(np.max(errors)), ids[:, length:].size)


def error_of(found: Floats, wanted: Floats) -> Floats:
    """The relative error of logits `[T, V]`, `[T]`; what is added to all of a token's logits says nothing."""
    found, wanted = (logits - logits.mean(axis=1, keepdims=True) for logits in (found, wanted))
    size: Floats = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return size


def share_problems(found: Agreement, precision: str) -> Iterator[str]:
    """What of an agreement is out of bounds; NaN is."""
    least = _SHARES[precision]
    if not (found.cache >= least[0] and found.source >= least[1]):
        shares = f"{found.cache:.2%} come without the cache too and {found.source:.2%} from PyTorch"
        yield f"of {found.tokens} greedy tokens {shares}; at least {least[0]:.0%} and {least[1]:.0%} must"
    if not found.error <= (most := _LOGITS.get(precision, math.inf)):
        yield f"its logits are up to {found.error:.2%} off PyTorch's; at most {most:.0%} is allowed"


@torch.inference_mode()
def torch_logits(model: PreTrainedModel, ids: Ints) -> Floats:
    """A model's logits `[B, T, V]` for tokens `[B, T]`."""
    logits: Floats = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.float().numpy()
    return logits


def score_logits(run: Callable[[Ints], Floats], loader: Iterable[Batch], label: str) -> list[Row]:
    """Score whatever gives logits `[B, T, V]` for tokens `[B, T]`: one row a window, with a progress bar."""
    rows: list[Row] = []
    for batch in tqdm(loader, desc=label, leave=False, disable=None):
        # One window at a time: the logits of one with 1024 tokens are 200 MB.
        keys = ("input_ids", "labels", "lengths", "document", "bytes")
        for window, padded, length, document, size in zip(*(batch[key] for key in keys), strict=True):
            ids, labels = window[:length], padded[:length]
            logits = torch.from_numpy(run(ids[None].numpy())).float()[0]
            losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
            sums = {"loss": float(losses.double().sum()), "items": int((labels != IGNORE).sum()), "bytes": int(size)}
            rows.append({"example": int(document), **sums})
    return rows


def first_documents(loader: Iterable[Batch], documents: int | None) -> Iterator[Batch]:
    """The scoring windows of the first documents of a split; of all for None."""
    for batch in loader:
        kept = batch["document"] < (math.inf if documents is None else documents)
        if kept.any():
            yield {key: value[kept] for key, value in batch.items() if isinstance(value, Tensor)}


def verify(
    task: Task,
    engine: Any,
    model: PreTrainedModel,
    data: Any,
    documents: int | None,
    precision: str,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score what was exported, and say what is out of bounds; see `Task.verify`."""
    lengths = (min(PROMPT_TOKENS, engine.context // 2), 1)  # documents may all be shorter than a prompt
    prompts = next(filter(None, (data.prompts("valid", PROMPTS, length) for length in lengths)), None)
    nothing = Problem("", f"no text of {data.source} has two tokens to verify with", "give another with --data")
    if prompts is None:
        raise UserError(nothing)
    found = agreement(engine, model, prompts)
    metrics: dict[str, dict[str, Metric]] = {}

    def scored(run: Callable[[Ints], Floats], name: str) -> dict[str, Metric]:
        return task.metrics(score_logits(run, first_documents(data.scoring_loader("valid"), documents), name))

    if before is None:
        metrics["before"] = scored(partial(torch_logits, model), "Scoring the source")
        before = task.quality(metrics["before"])
    metrics["after"] = scored(lambda ids: engine.logits(ids, np.ones_like(ids)), "Scoring the export")
    if not metrics["after"][task.primary].denominators.sum():
        raise UserError(nothing)
    after = task.quality(metrics["after"])
    mine, theirs = value_of(after), value_of(before)
    ratio, problems = mine / theirs, []
    if not ratio <= 1 + BOUNDS[precision]:  # nor is NaN
        said = f"its {task.primary} is {mine:.2f}, {ratio - 1:.1%} above the source's {theirs:.2f}"
        problems.append(f"{said}; at most {BOUNDS[precision]:.1%} is allowed")
    problems += share_problems(found, precision)
    quality = {"before": before, "after": after, "ratio": ratio}
    return {"quality": quality, "agreement": vars(found), "problems": problems, "metrics": metrics}
