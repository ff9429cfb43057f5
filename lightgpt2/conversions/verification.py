"""What was exported, held against the model that it was made from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lightgpt2.runtime.engines import Engine, Floats, Ints
from lightgpt2.tasks.scoring import score_logits

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 20, 16, 64
_TIE = 1e-3  # logits that are this close may change places by rounding alone
_LOGITS = 0.01  # by how much logits in FP32 may be off, all rounding of deep models included

# By how much the perplexity may exceed the source's.
BOUNDS = {"fp32": 0.001, "f16": 0.005, "int8": 0.05, "int4": 0.5}


@dataclass(frozen=True)
class Agreement:
    """Greedy tokens, of all those that were generated with the cache.

    Attributes:
        cache: The share that is also the likeliest without the cache.
        source: The share that is also the likeliest for the model that was exported, in PyTorch.
        error: How far their logits are from PyTorch's, as a share of those without their mean (L2); the largest.
        tokens: How many there were.
    """

    cache: float
    source: float
    error: float
    tokens: int


def agreement(engine: Engine, model: PreTrainedModel, prompts: list[list[int]]) -> Agreement:
    """Continues prompts greedily with the cache, and asks whether the same tokens come without it, and from PyTorch.

    Each token is compared given those before it, so that one that differs does not make all that follow differ. Of two tokens
    whose logits are within 1e-3 either will do.

    Args:
        engine: What was exported.
        model: The model that it was made from.
        prompts: Tokens, as many in each.
    """
    ids = np.array(prompts, np.int64)
    length, new = ids.shape[1], min(NEW_TOKENS, engine.context - ids.shape[1])
    logits = engine.prefill(ids, np.ones_like(ids), new)
    for left in range(new, 0, -1):
        tokens = logits.argmax(axis=1)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        if left > 1:
            logits = engine.decode(tokens)
    run, same, errors = torch_logits(model), [], []
    for row in ids:  # one at a time: the logits of all of GPT-2's are 260 MB
        text, chosen = row[None, :-1], row[length:, None]
        found, wanted = (logits[0, length - 1 :] for logits in (engine.logits(text, np.ones_like(text)), run(text)))
        same += [
            [
                np.take_along_axis(logits, chosen, axis=1)[:, 0] >= logits.max(axis=1) - _TIE
                for logits in (found, wanted)
            ]
        ]
        errors.append(_error(found, wanted).max())
    cache, source = (float(share) for share in np.mean(same, axis=(0, 2)))
    return Agreement(cache, source, float(np.max(errors)), ids[:, length:].size)


def _error(found: Floats, wanted: Floats) -> Floats:
    """The relative error of logits `[T, V]`, `[T]`; what is added to all of a token's logits says nothing."""
    found, wanted = (logits - logits.mean(axis=1, keepdims=True) for logits in (found, wanted))
    size: Floats = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return size


def torch_logits(model: PreTrainedModel) -> Callable[[Ints], Floats]:
    """A model's logits `[B, T, V]` for tokens `[B, T]`."""

    @torch.inference_mode()
    def run(ids: Ints) -> Floats:
        logits: Floats = model(input_ids=torch.from_numpy(ids), use_cache=False).logits.float().numpy()
        return logits

    return run


def verify(
    engine: Engine,
    model: PreTrainedModel,
    data: Any,
    documents: int | None,
    precision: str,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Figures of what was exported, and what is wrong with them.

    Args:
        engine: What was exported.
        model: The model that it was made from.
        data: Its validation split.
        documents: How many of its documents are scored, the first ones; None for all.
        precision: One of `BOUNDS`.
        before: The source's figures on the same documents, as in a ledger, if they are known.

    Returns:
        `quality` (`before`, `after`, `ratio` of the perplexities), `agreement`, and under `problems` what is out of bounds.
    """
    lengths = (min(PROMPT_TOKENS, engine.context // 2), 1)  # documents may all be shorter than a prompt
    prompts = next(filter(None, (data.prompts("valid", PROMPTS, length) for length in lengths)))
    found = agreement(engine, model, prompts)
    loader, sizes = first_documents(data, documents)
    if before is None:
        before = score_logits(torch_logits(model), loader, sizes, "Scoring the source").as_dict()
    after = score_logits(lambda ids: engine.logits(ids, np.ones_like(ids)), loader, sizes, "Scoring the export")
    ratio = after.perplexity / before["perplexity"]
    problems = []
    if not ratio <= 1 + BOUNDS[precision]:  # nor is one that is no number
        problems.append(
            f"its perplexity is {after.perplexity:.2f}, {ratio - 1:.1%} above the source's {before['perplexity']:.2f}; at most "
            f"{BOUNDS[precision]:.1%} is allowed"
        )
    if precision == "fp32" and min(found.cache, found.source) < 1:
        problems.append(
            f"of {found.tokens} greedy tokens {found.cache:.2%} come without the cache too and {found.source:.2%} from PyTorch"
        )
    if precision == "fp32" and not found.error <= _LOGITS:
        problems.append(f"its logits are up to {found.error:.2%} off PyTorch's; at most {_LOGITS:.0%} is allowed")
    return {
        "quality": {"before": before, "after": after.as_dict(), "ratio": ratio},
        "agreement": vars(found),
        "problems": problems,
    }


class _First:
    """The batches of a loader up to a document."""

    def __init__(self, loader: Any, documents: int) -> None:
        self.loader, self.documents = loader, documents

    def __iter__(self) -> Any:
        for batch in self.loader:
            kept = batch["document"] < self.documents
            if kept.any():
                yield {key: value[kept] for key, value in batch.items() if isinstance(value, torch.Tensor)}


def first_documents(data: Any, documents: int | None) -> tuple[Any, Any]:
    """Batches of scoring windows of the first documents of the validation split, and those documents' sizes in bytes."""
    loader, sizes = data.scoring_loader("valid"), data.document_sizes("valid")
    if documents is None or documents >= len(sizes):
        return loader, sizes
    return _First(loader, documents), sizes[:documents]
