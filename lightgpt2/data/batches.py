"""Batches of windows: what is in them, and the order in which they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightgpt2.data.store import TokenSplit
from lightgpt2.data.windows import Numbers, Windows
from lightgpt2.functional.divergence import IGNORE

Batch = dict[str, Any]


@dataclass(frozen=True)
class Slice:
    """One micro-batch."""

    indices: Numbers  # of its windows
    step_items: int = 0  # supervised tokens of all micro-batches of the optimizer step, over all processes
    shift: Numbers | int = 0  # tokens by which each of its windows is moved
    silent: bool = False  # True if it is not counted: it keeps the processes in step


class WindowDataset:
    """Batches of windows.

    A batch holds `input_ids [B, T]`, `labels [B, T]` (the next token, or IGNORE), `lengths [B]`, `document [B]`, `bytes [B]`
    (of the document, in its first window alone) and `step_items`. Shorter windows are padded on the right. No attention mask is
    needed: in a causal model a position never sees what is to its right, and the pads' own predictions are not counted.

    Args:
        split: The tokens.
        windows: Where the windows are.
        separator: The token that is fed at pads.
        answers_only: Whether of conversations only the answers are predicted.
        apart: Whether documents in one window are told apart: the batch then has `position_ids [B, T]`, which begin anew with
            each document, and transformers lets no document see another.
        names: The names of the sources, where a batch should say them: `sources`, one for each window.
    """

    def __init__(
        self,
        split: TokenSplit,
        windows: Windows,
        separator: int,
        answers_only: bool = True,
        apart: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self.split, self.windows, self.separator = split, windows, separator
        self.answers, self.sizes = (split.answers, split.answered) if answers_only else (None, split.sizes)
        self.apart, self.names = apart, names

    def __getitem__(self, index: Slice) -> Batch:
        windows, rows = self.windows, index.indices
        width = int(windows.lengths[rows].max())
        ids = np.full((len(rows), width), self.separator, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
        starts = windows.starts[rows] + index.shift
        for i, (start, length, first) in enumerate(
            zip(starts, windows.lengths[rows], windows.scored[rows], strict=True)
        ):
            tokens = self.split.tokens[start : start + length + 1].astype(np.int64)
            ids[i, :length] = tokens[:length]
            if not index.silent and first < length:
                labels[i, first:length] = self.separator  # which ends the last document of all
                labels[i, first : len(tokens) - 1] = tokens[first + 1 :]
                labels[i, self._ends(start + first + 1, start + length + 1) - start - 1] = self.separator
                if self.answers is not None:
                    learnt = self.answers[start + first + 1 : start + length + 1]
                    labels[i, first : first + len(learnt)][~learnt] = IGNORE
        columns = {
            "input_ids": ids,
            "labels": labels,
            "lengths": windows.lengths[rows],
            "document": windows.documents[rows],
            "bytes": self._bytes(rows) * (not index.silent),
        }
        if self.apart:
            columns["position_ids"] = self._positions(starts, width)
        batch: Batch = {name: torch.from_numpy(column) for name, column in columns.items()}
        batch["step_items"] = index.step_items
        if self.names:
            batch["sources"] = [self.names[windows.sources[part]] for part in windows.part(rows)]
        return batch

    def supervised(self, rows: Numbers, shift: Numbers) -> int:
        """The number of predictions that count in windows."""
        lengths, scored = self.windows.lengths[rows], self.windows.scored[rows]
        if self.answers is None:
            return int((lengths - scored).sum())
        starts = self.windows.starts[rows] + shift
        found = zip(starts + scored + 1, starts + lengths + 1, strict=True)
        # What follows the stream is the end of its last document.
        return sum(int(self.answers[a:b].sum()) + max(0, int(b) - max(int(a), len(self.answers))) for a, b in found)

    def _ends(self, start: int, stop: int) -> Numbers:
        """The places of a part of the stream at which the end of a document is asked for that has none among its tokens.

        There the next document begins: a text with the separator, which is that end, and a conversation as its template does.
        """
        if self.split.answers is None:  # there are no conversations
            return np.zeros(0, np.int64)
        first, last = np.searchsorted(self.split.offsets, [start, stop])
        begins = self.split.offsets[first:last]
        return begins[begins == self.split.ends[first - 1 : last - 1]]

    def _positions(self, starts: Numbers, width: int) -> Numbers:
        """Positions in the documents, `[B, T]`; that in which a window begins counts from there."""
        offsets, found = self.split.offsets, np.tile(np.arange(width), (len(starts), 1))
        for row, start in zip(found, starts, strict=True):
            first, last = np.searchsorted(offsets, [start, start + width], side="left")
            for begin in offsets[first:last]:
                row[begin - start :] = np.arange(width - (begin - start))
        return found

    def _bytes(self, rows: Numbers) -> Numbers:
        """The UTF-8 size of each window's document where the window begins it, else 0."""
        documents = self.windows.documents[rows]
        if not len(self.sizes):
            return np.zeros_like(documents)
        begins = (documents >= 0) & (self.windows.starts[rows] == self.split.offsets[documents])
        return np.where(begins, self.sizes[documents], 0)


class StepSampler:
    """The training order and cuts: a pure function of (seed, epoch), in whole optimizer steps.

    One optimizer step takes `batch * accumulate * world` windows. A last step that would be short is left out of its epoch, so
    every step weighs the same. Where to begin follows from the number of optimizer steps taken, which `step` returns: nothing
    else has to be remembered to resume.

    Args:
        dataset: The windows.
        batch: Windows of a micro-batch.
        accumulate: Micro-batches of a step.
        rank: The number of this process.
        world: The number of processes.
        seed: Seed of the order.
        step: Returns the number of steps taken.
        shares: How many windows of each part an epoch takes, drawn anew in each; more than there are come several times. None:
            all of them.
        bucket: The number of steps whose windows are sorted by length, so that those of a micro-batch need few pads; 0: they
            come as they fall.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        batch: int,
        accumulate: int,
        rank: int,
        world: int,
        seed: int,
        step: Callable[[], int],
        shares: Sequence[int] | None = None,
        bucket: int = 0,
    ) -> None:
        self.dataset, self.batch, self.accumulate, self.rank, self.world = dataset, batch, accumulate, rank, world
        self.seed, self.step, self.shares, self.bucket = seed, step, shares, bucket
        self.step_windows = batch * accumulate * world
        self.epoch_windows = len(dataset.windows) if shares is None else sum(shares)
        self.steps_per_epoch = self.epoch_windows // self.step_windows

    def __len__(self) -> int:
        return self.steps_per_epoch * self.accumulate

    def __iter__(self) -> Iterator[Slice]:
        epoch, first = divmod(self.step(), self.steps_per_epoch)
        generator = np.random.default_rng([self.seed, epoch])
        windows = self.dataset.windows
        shifts = np.array([generator.integers(slack + 1) for slack in windows.slack])
        order = self._order(generator)
        for step in range(first, self.steps_per_epoch):
            rows = order[step * self.step_windows :][: self.step_windows].astype(np.int64)
            shift = shifts[windows.part(rows)]
            items = self.dataset.supervised(rows, shift)
            for micro in range(self.accumulate):
                begin = (micro * self.world + self.rank) * self.batch
                mine = slice(begin, begin + self.batch)
                yield Slice(rows[mine], items or 1, shift[mine])  # there may be no answer in a whole step

    def _order(self, generator: np.random.Generator) -> NDArray[Any]:
        """The windows of an epoch, in 4 bytes each."""
        windows = self.dataset.windows
        if self.shares is None:
            chosen = np.arange(len(windows), dtype=np.uint32)
        else:
            drawn, first = [], 0
            for count, share in zip(windows.counts, self.shares, strict=True):
                numbers = first + np.arange(count, dtype=np.uint32)
                whole, rest = divmod(share, count) if count else (0, 0)
                drawn += [*[numbers] * whole, generator.permutation(numbers)[:rest]]
                first += count
            chosen = np.concatenate(drawn)
        generator.shuffle(chosen)
        return self._bucketed(chosen, generator) if self.bucket else chosen

    def _bucketed(self, order: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """The same windows with those of similar length next to each other, in shuffled micro-batches of all processes."""
        whole = order[: self.steps_per_epoch * self.step_windows]
        lengths, size = self.dataset.windows.lengths, self.bucket * self.step_windows
        for start in range(0, len(whole), size):
            part = whole[start : start + size]
            batches = part[np.argsort(lengths[part], kind="stable")].reshape(-1, self.batch * self.world)
            whole[start : start + size] = generator.permutation(batches).ravel()
        return whole


def epoch_shares(windows: Windows, weights: Sequence[float], budget: int | None = None) -> list[int]:
    """How many windows of each part an epoch takes, so that the sources' tokens are in proportion to their weights.

    Args:
        windows: All windows.
        weights: The weight of each source.
        budget: The tokens of an epoch. None: as many as there are without repeating any source.
    """
    tokens = windows.tokens()
    shares = np.array([weights[source] for source in windows.sources]) * (tokens > 0)
    shares /= shares.sum() or 1.0
    budget = budget or min((all_ / share for all_, share in zip(tokens, shares, strict=True) if share), default=0)
    parts = zip(windows.counts, tokens, shares, strict=True)
    return [round(budget * share * count / size) if size else 0 for count, size, share in parts]


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
