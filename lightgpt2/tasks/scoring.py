"""Perplexity with its interval, of a model as it lies on disk."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from lightgpt2.functional.divergence import IGNORE
from lightgpt2.tasks.language_modeling import LanguageModeling

_RESAMPLES = 2000

Window = tuple[int, float, int]  # document, summed negative log likelihood in nats, scored tokens


@dataclass(frozen=True)
class Score:
    """What a model scored on a split, document by document.

    Attributes:
        nll: Summed negative log likelihood of each document, in nats, `[n]`.
        tokens: Scored tokens of each document, `[n]`.
        sizes: UTF-8 bytes of each document, `[n]`.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of_windows(cls, windows: Iterable[Window], sizes: NDArray[np.int64]) -> Self:
        """Adds up the scores of windows by document.

        Args:
            windows: The windows of all documents, in any order.
            sizes: UTF-8 bytes of each document `[n]`.
        """
        nll, tokens = np.zeros(len(sizes)), np.zeros(len(sizes), dtype=np.int64)
        for document, value, count in windows:
            nll[document] += value
            tokens[document] += count
        return cls(nll, tokens, sizes)

    @property
    def perplexity(self) -> float:
        """`exp` of the token-weighted mean negative log likelihood."""
        return _exp(self.nll.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for each byte of the text: comparable between tokenizers."""
        return float(self.nll.sum() / math.log(2) / self.sizes.sum())

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Bootstrap percentile interval of the perplexity over documents (Efron 1979), with a fixed seed; none of one."""
        if len(self.nll) < 2:
            return None
        generator = np.random.default_rng(0)
        count = len(self.nll)
        means = []
        for _ in range(_RESAMPLES):  # one at a time: together they would take 16 KB a document
            draw = generator.multinomial(count, np.full(count, 1 / count))
            means.append(float(draw @ self.nll) / max(1.0, float(draw @ self.tokens)))
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return _exp(low), _exp(high)

    def against(self, other: Self) -> Self:
        """The score whose perplexity is this one's divided by another's, its interval of the documents in pairs.

        Args:
            other: What another model scored on the same documents.
        """
        return replace(self, nll=self.nll - other.nll)

    def rows(self) -> list[dict[str, Any]]:
        """Each document's own figures: `document`, `nll`, `tokens`, `perplexity`."""
        return [
            {"document": i, "nll": float(nll), "tokens": int(tokens), "perplexity": _exp(nll / tokens)}
            for i, (nll, tokens) in enumerate(zip(self.nll, self.tokens, strict=True))
        ]

    def as_dict(self) -> dict[str, Any]:
        """The figures for the ledger."""
        return {
            "perplexity": self.perplexity,
            "interval_95": self.interval(),
            "bits_per_byte": self.bits_per_byte,
            "tokens": int(self.tokens.sum()),
            "documents": len(self.tokens),
        }


def _exp(value: float) -> float:
    """`exp` that is infinite, and not an error, where a model knows nothing."""
    with np.errstate(over="ignore"):
        return float(np.exp(value))


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    task: LanguageModeling,
    loader: Iterable[dict[str, Any]],
    sizes: NDArray[np.int64],
    label: str,
) -> Score:
    """Scores a model on all windows of a split, with a progress bar.

    Args:
        model: The model, on the device to use; put in eval mode.
        task: How windows are scored.
        loader: Batches with `input_ids`, `labels` and `document`.
        sizes: UTF-8 bytes of each document `[n]`.
        label: What the progress bar says.
    """
    model.eval()
    windows: list[Window] = []
    for batch in tqdm(loader, desc=label, leave=False):
        moved = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        tokens = (batch["labels"] != IGNORE).sum(dim=1)
        windows += as_windows({"document": batch["document"], "nll": task.nll(model, moved), "tokens": tokens})
    return Score.of_windows(windows, sizes)


def score_logits(
    run: Callable[[NDArray[np.int64]], NDArray[Any]],
    loader: Iterable[dict[str, Any]],
    sizes: NDArray[np.int64],
    label: str,
) -> Score:
    """Scores whatever gives logits on all windows of a split, with a progress bar.

    Args:
        run: Logits `[B, T, V]` for tokens `[B, T]`.
        loader: As for `score`, with `lengths` too.
        sizes: As for `score`.
        label: What the progress bar says.
    """
    windows: list[Window] = []
    for batch in tqdm(loader, desc=label, leave=False):
        # One window at a time: the logits of one with 1024 tokens are 200 MB.
        keys = ("input_ids", "labels", "lengths", "document")
        for row, padded, length, document in zip(*(batch[key] for key in keys), strict=True):
            ids, labels = row[:length], padded[:length]
            logits = torch.from_numpy(run(ids[None].numpy())).float()[0]
            nll = (
                torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").double().sum()
            )
            windows.append((int(document), float(nll), int((labels != IGNORE).sum())))
    return Score.of_windows(windows, sizes)


def as_windows(scored: dict[str, torch.Tensor]) -> list[Window]:
    """The scores of a batch of windows, as plain numbers.

    Args:
        scored: `document`, `nll` and `tokens` of each window, `[B]` each.
    """
    return list(zip(*(scored[key].tolist() for key in ("document", "nll", "tokens")), strict=True))
