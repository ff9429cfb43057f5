"""Windows of tokens for training and for scoring, and the order in which they are seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightgpt2.data.store import TokenSplit
from lightgpt2.functional.divergence import IGNORE

Batch = dict[str, Any]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """The places of windows in a token stream.

    Window i feeds the tokens `[start, start + length)` to the model and asks for those one further on. Only the predictions
    from `scored` on count.
    """

    starts: Numbers  # first token fed [n]
    lengths: Numbers  # number of tokens fed [n]
    scored: Numbers  # number of leading predictions that are context only [n]
    documents: Numbers  # document of each window [n]; -1 where a window may span several
    slack: int = 0  # how many tokens all windows together may be shifted by

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def supervised(self) -> Numbers:
        """The number of predictions that count in each window, `[n]`."""
        return self.lengths - self.scored


def packed_windows(split: TokenSplit, length: int) -> Windows:
    """Tile the stream with windows, across documents and without pads; each predicts `length` tokens.

    Where there are several, the last is left out so that there is room to shift them: an epoch that cuts the same text at other
    places teaches more than one that repeats the cuts.
    """
    predictable = max(0, len(split.tokens) - 1)
    count = predictable // length
    count -= count > 1
    starts = np.arange(count, dtype=np.int64) * length
    zeros = np.zeros(count, dtype=np.int64)
    return Windows(starts, np.full(count, length, dtype=np.int64), zeros, zeros - 1, predictable - count * length)


def document_windows(split: TokenSplit, length: int, stride: int, closed: bool = False) -> Windows:
    """Slide windows over each document, so that every token of it is predicted exactly once; `closed`: and then its end.

    As in transformers' own guide to perplexity: a window spans `length` tokens, at least 2; the next begins `stride` further,
    at most `length - 1`, and counts only what the one before did not reach. A document's first token, the separator, is given.
    """
    rows = []
    for document, (begin, end) in enumerate(zip(split.offsets[:-1], split.ends + closed, strict=True)):
        reached = begin + 1  # first token not yet predicted
        for start in range(begin, end, stride):
            stop = min(start + length, end)
            if stop > reached:
                rows.append((start, stop - 1 - start, reached - 1 - start, document))
                reached = stop
            if stop == end:
                break
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Windows(*columns)


def prompt_windows(split: TokenSplit, length: int) -> Windows:
    """The beginning of each document, at most `length` tokens, separator included, with nothing to predict."""
    lengths = np.minimum(split.ends - split.offsets[:-1], length)
    return Windows(split.offsets[:-1], lengths, lengths, np.arange(len(lengths), dtype=np.int64))


@dataclass(frozen=True)
class Slice:
    """One micro-batch."""

    indices: Numbers  # of its windows
    step_items: int = 0  # supervised tokens of all micro-batches of the optimizer step, over all processes
    shift: int = 0  # tokens by which its windows are moved
    silent: bool = False  # True if it is not counted: it keeps the processes in step


class WindowDataset:
    """Batches of windows.

    A batch holds `input_ids [B, T]`, `labels [B, T]` (the next token, or IGNORE), `lengths [B]`, `document [B]`, `bytes [B]`
    (of the document, in its first window alone) and `step_items`. Shorter windows are padded on the right. No attention mask is
    needed: in a causal model a position never sees what is to its right, and the pads' own predictions are not counted.
    """

    def __init__(self, split: TokenSplit, windows: Windows, separator: int) -> None:
        self.split, self.windows, self.separator = split, windows, separator

    def __getitem__(self, index: Slice) -> Batch:
        windows, rows = self.windows, index.indices
        width = int(windows.lengths[rows].max())
        ids = np.full((len(rows), width), self.separator, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
        for i, (start, length, first) in enumerate(
            zip(windows.starts[rows] + index.shift, windows.lengths[rows], windows.scored[rows], strict=True)
        ):
            tokens = self.split.tokens[start : start + length + 1].astype(np.int64)
            ids[i, :length] = tokens[:length]
            if not index.silent and first < length:
                labels[i, first:length] = self.separator  # which ends the last document of all
                labels[i, first : len(tokens) - 1] = tokens[first + 1 :]
        columns = {
            "input_ids": ids,
            "labels": labels,
            "lengths": windows.lengths[rows],
            "document": windows.documents[rows],
            "bytes": self._bytes(rows) * (not index.silent),
        }
        return {name: torch.from_numpy(column) for name, column in columns.items()} | {"step_items": index.step_items}

    def _bytes(self, rows: Numbers) -> Numbers:
        """The UTF-8 size of each window's document where the window begins it, else 0."""
        documents = self.windows.documents[rows]
        if not len(self.split.sizes):
            return np.zeros_like(documents)
        begins = (documents >= 0) & (self.windows.starts[rows] == self.split.offsets[documents])
        return np.where(begins, self.split.sizes[documents], 0)


class StepSampler:
    """The training order and cuts: a pure function of (seed, epoch), in whole optimizer steps.

    One optimizer step takes `batch * accumulate * world` windows. A last step that would be short is left out of its epoch, so
    every step weighs the same. Where to begin follows from the number of optimizer steps taken, which `step` returns: nothing
    else has to be remembered to resume.
    """

    def __init__(
        self, windows: Windows, batch: int, accumulate: int, rank: int, world: int, seed: int, step: Callable[[], int]
    ) -> None:
        self.windows, self.batch, self.accumulate, self.rank, self.world = windows, batch, accumulate, rank, world
        self.seed, self.step = seed, step
        self.step_windows = batch * accumulate * world
        self.steps_per_epoch = len(windows) // self.step_windows

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulate

    def __iter__(self) -> Iterator[Slice]:
        epoch, first = divmod(self.step(), self.steps_per_epoch)
        generator = np.random.default_rng([self.seed, epoch])
        shift = int(generator.integers(self.windows.slack + 1))
        order = generator.permutation(len(self.windows))
        supervised = self.windows.supervised
        for step in range(first, self.steps_per_epoch):
            rows = order[step * self.step_windows :][: self.step_windows]
            tokens = int(supervised[rows].sum())
            for micro in range(self.accumulate):
                begin = (micro * self.world + self.rank) * self.batch
                yield Slice(rows[begin : begin + self.batch], tokens, shift)


def evaluation_order(windows: Windows, batch: int, rank: int = 0, world: int = 1) -> list[Slice]:
    """Every window once, longest first so that little is padded, shared among the processes.

    All processes get the same number of batches (the strategies that gather parameters hang otherwise); a process that has none
    left repeats a batch that does not count.
    """
    order = np.argsort(-windows.lengths, kind="stable")
    batches = [Slice(order[i : i + batch]) for i in range(0, len(order), batch)]
    missing = -len(batches) % world
    return (batches + [Slice(first.indices, silent=True) for first in batches[:1] * missing])[rank::world]


class WindowLoader:
    """Batches of windows in an order.

    A plain iterable and no torch DataLoader: a batch is slices of a memory-mapped file, for which worker processes would only
    cost, and a DataLoader draws from the global random generator at every epoch. Its position is the optimizer step, which
    `StepSampler` reads from the trainer: restoring it is the trainer's own doing.
    """

    def __init__(self, dataset: WindowDataset, order: StepSampler | list[Slice]) -> None:
        # Not named `sampler`: Lightning would take the object for a DataLoader and look for what those have.
        self.dataset, self.order = dataset, order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        return (self.dataset[index] for index in self.order)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see the class. Lightning warns when a loader without this is resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores nothing: see the class."""
