"""Pairs as tokens, for encoder-decoders and for decoders, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightgpt2.data.batches import Slice
from lightgpt2.data.pairs import Pair
from lightgpt2.data.windows import Windows
from lightgpt2.functional.divergence import IGNORE

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class EncodedPairs:
    """The tokens of a split."""

    sources: Sequence[Tokens]  # what an encoder reads; or what a decoder reads before the target
    targets: Sequence[Tokens]  # their end included
    pairs: Sequence[Pair]
    pad: int


class PairDataset:
    """Batches of pairs.

    All have `example [B]`, `lengths [B]` (of the sources), `texts` and `references` (whole texts, never truncated) and
    `step_items`.

    For an encoder-decoder: `input_ids` and `attention_mask` `[B, S]`, and `labels [B, T]`, the target's tokens. For a decoder
    (`joined`): `input_ids` and `attention_mask` `[B, T]`, source and target behind it, and `labels [B, T]`, the next token
    where it is one of the target's. Other labels are IGNORE. Pads are on the right.
    """

    def __init__(self, data: EncodedPairs, joined: bool) -> None:
        self.data, self.joined = data, joined
        sizes = [np.array([len(each) for each in part], np.int64) for part in (data.sources, data.targets)]
        self._lengths, self._targets = sizes
        numbers = np.arange(len(data.pairs), dtype=np.int64)
        none = np.zeros_like(numbers)
        self.windows = Windows(
            numbers, sizes[0] + sizes[1], none, numbers, sources=[0], counts=[len(numbers)], slack=[0]
        )

    def supervised(self, rows: NDArray[np.int64], shift: Any) -> int:
        """The number of target tokens."""
        return int(self._targets[rows].sum())

    def __getitem__(self, index: Slice) -> dict[str, Any]:
        data, rows = self.data, index.indices
        sources, targets = ([part[int(row)] for row in rows] for part in (data.sources, data.targets))
        if self.joined:
            inputs = [np.concatenate([a, b[:-1]]) for a, b in zip(sources, targets, strict=True)]
            hidden = [np.full(len(each) - 1, IGNORE) for each in sources]
            labels = [np.concatenate([a, b]) for a, b in zip(hidden, targets, strict=True)]
        else:
            inputs, labels = sources, targets
        columns = {
            "input_ids": _padded(inputs, data.pad),
            "attention_mask": _padded([np.ones(len(each)) for each in inputs], 0),
            "labels": _padded(labels, IGNORE),
            "lengths": self._lengths[rows],
            "example": rows,
        }
        if index.silent:
            columns["labels"][:] = IGNORE
        batch: dict[str, Any] = {name: torch.from_numpy(column) for name, column in columns.items()}
        pairs = [data.pairs[int(row)] for row in rows]
        texts = {"texts": [pair.source for pair in pairs], "references": [pair.target for pair in pairs]}
        return batch | texts | {"step_items": index.step_items}


def _padded(rows: Sequence[NDArray[Any]], value: int) -> NDArray[np.int64]:
    """Rows of different lengths, padded on the right."""
    found = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
