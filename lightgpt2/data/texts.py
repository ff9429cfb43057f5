"""The texts of a split as tokens, and batches of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightgpt2.data.batches import Slice
from lightgpt2.data.examples import Example
from lightgpt2.data.windows import Windows
from lightgpt2.functional.divergence import IGNORE


class LabelledTexts:
    """The tokens of a split, one text behind the other, and their classes."""

    def __init__(
        self,
        ids: NDArray[np.int32],
        segments: NDArray[np.int8] | None,
        offsets: NDArray[np.int64],
        labels: NDArray[np.int64],
        examples: Sequence[Example],
        pad: int,
    ) -> None:
        self.ids, self.segments, self.offsets, self.labels = ids, segments, offsets, labels
        self.examples, self.pad = examples, pad

    @classmethod
    def of(cls, encoded: Any, labels: Sequence[int], examples: Sequence[Example], pad: int) -> "LabelledTexts":
        """From what a tokenizer returns for the texts."""
        rows = encoded["input_ids"]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        ids = np.fromiter((token for row in rows for token in row), np.int32, offsets[-1])
        segments = None
        if "token_type_ids" in encoded:
            segments = np.fromiter((each for row in encoded["token_type_ids"] for each in row), np.int8, offsets[-1])
        return cls(ids, segments, offsets, np.array(labels, np.int64), examples, pad)

    def tokens(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


class TextDataset:
    """Batches of texts.

    A batch holds `input_ids`, `attention_mask` and, where the tokenizer gives them, `token_type_ids` `[B, T]`; `lengths` and
    `example` `[B]`; `labels` `[B]`, or IGNORE; `texts`, each with its second one; `weights [B]` where classes are weighed; and
    `step_items`.

    Args:
        data: The texts.
        weights: The weight of each class.
    """

    def __init__(self, data: LabelledTexts, weights: NDArray[np.float64] | None = None) -> None:
        self.data, self.weights = data, weights
        count = len(data.labels)
        numbers, lengths = np.arange(count, dtype=np.int64), np.diff(data.offsets)
        none = np.zeros_like(numbers)
        self.windows = Windows(numbers, lengths, none, numbers, sources=[0], counts=[count], slack=[0])

    def supervised(self, rows: NDArray[np.int64], shift: Any) -> float:
        """What the losses of these texts are divided by: their number, or the sum of their weights."""
        return len(rows) if self.weights is None else float(self.weights[self.data.labels[rows]].sum())

    def __getitem__(self, index: Slice) -> dict[str, Any]:
        data, rows = self.data, index.indices
        lengths = self.windows.lengths[rows]
        shape = len(rows), int(lengths.max())
        ids, mask = np.full(shape, data.pad, np.int64), np.zeros(shape, np.int64)
        segments = np.zeros(shape, np.int64)
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[i, :length], mask[i, :length] = data.tokens(int(row)), 1
            if data.segments is not None:
                segments[i, :length] = data.segments[data.offsets[row] : data.offsets[row + 1]]
        labels = np.full(len(rows), IGNORE) if index.silent else data.labels[rows]
        columns = {"input_ids": ids, "attention_mask": mask, "lengths": lengths, "labels": labels, "example": rows}
        if data.segments is not None:
            columns["token_type_ids"] = segments
        if self.weights is not None:
            columns["weights"] = self.weights[data.labels[rows]].astype(np.float32)
        batch: dict[str, Any] = {name: torch.from_numpy(column) for name, column in columns.items()}
        texts = [(data.examples[row].text, data.examples[row].pair) for row in rows]
        return batch | {"texts": texts, "step_items": index.step_items}
