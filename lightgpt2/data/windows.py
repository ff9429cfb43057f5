"""Where windows lie in a stream of tokens: those of training, of scoring, and of prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lightgpt2.data.store import TokenSplit

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """The places of windows in a token stream.

    Window i feeds the tokens `[start, start + length)` to the model and asks for those one further on. Only the predictions
    from `scored` on count.
    """

    starts: "Numbers | Tiles"  # first token fed [n]
    lengths: Numbers  # number of tokens fed [n]
    scored: Numbers  # number of leading predictions that are context only [n]
    documents: Numbers  # document of each window [n]; -1 where a window may span several
    sources: Sequence[int]  # of the windows' parts, in their order
    counts: Sequence[int]  # number of windows of each part
    slack: Sequence[int]  # how many tokens the windows of each part together may be shifted by

    def __len__(self) -> int:
        return len(self.starts)

    def part(self, rows: Numbers) -> Numbers:
        """The part of each window."""
        return np.searchsorted(np.cumsum(self.counts), rows, side="right")

    def tokens(self) -> Numbers:
        """The number of tokens fed of each part."""
        ends = np.cumsum([0, *self.counts])
        return np.array([self.lengths[first:last].sum() for first, last in pairwise(ends)], np.int64)


class Tiles:
    """Beginnings of windows that follow each other in each of several parts, computed as they are asked for."""

    def __init__(self, firsts: Sequence[int], counts: Sequence[int], length: int) -> None:
        self._firsts, self._ends, self._length = np.array(firsts, np.int64), np.cumsum([0, *counts]), length

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Numbers) -> Numbers:
        part = np.searchsorted(self._ends, rows, side="right") - 1
        starts: Numbers = self._firsts[part] + (rows - self._ends[part]) * self._length
        return starts


def _parts(split: TokenSplit) -> Iterator[tuple[int, int, int]]:
    """Each part's source, its first document and one past its last."""
    first = 0
    for source, last in split.parts or [(0, len(split.ends))]:
        yield source, first, last
        first = last


def packed_windows(split: TokenSplit, length: int) -> Windows:
    """Tile the stream of each source with windows, across documents and without pads; each predicts `length` tokens.

    Where there are several, the last is left out so that there is room to shift them: an epoch that cuts the same text at other
    places teaches more than one that repeats the cuts.
    """
    sources, firsts, counts, slack = [], [], [], []
    for source, first, last in _parts(split):
        begin, end = int(split.offsets[first]), int(split.offsets[last])
        predictable = max(0, end - begin - 1)
        count = predictable // length
        count -= count > 1
        sources.append(source)
        firsts.append(begin)
        counts.append(count)
        slack.append(predictable - count * length)
    lengths, scored, documents = (np.broadcast_to(np.int64(value), sum(counts)) for value in (length, 0, -1))
    return Windows(Tiles(firsts, counts, length), lengths, scored, documents, sources, counts, slack)


def document_windows(split: TokenSplit, length: int, stride: int, closed: bool = False) -> Windows:
    """Slide windows over each document, so that every token of it is predicted exactly once; `closed`: and then its end.

    As in transformers' own guide to perplexity: a window spans `length` tokens, at least 2; the next begins `stride` further,
    at most `length - 1`, and counts only what the one before did not reach. A document's first token, the separator, is given.
    """
    begins, ends = split.offsets[:-1], split.ends + closed
    sizes = ends - begins
    counts = np.where(sizes < 2, 0, 1 + np.maximum(0, sizes - length + stride - 1) // stride)
    documents = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins, ends = begins[documents], ends[documents]
    starts = begins + number * stride
    reached = np.where(number == 0, begins + 1, starts - stride + length)  # first token not yet predicted
    lengths, scored = np.minimum(starts + length, ends) - 1 - starts, reached - 1 - starts
    return Windows(starts, lengths, scored, documents, *_grouped(split, counts))


def _grouped(split: TokenSplit, counts: Numbers) -> tuple[list[int], list[int], list[int]]:
    """The sources, the numbers of windows and the slack of the parts, from the number of windows of each document."""
    parts = [*_parts(split)]
    return [part[0] for part in parts], [int(counts[a:b].sum()) for _, a, b in parts], [0] * len(parts)


def prompt_windows(split: TokenSplit, length: int, longest: int) -> Windows:
    """The beginning of each document, at most `length` tokens, separator included, with nothing to predict.

    That of a conversation goes up to its first answer, and is at most `longest` tokens.
    """
    begins = split.offsets[:-1]
    lengths = np.minimum(split.ends - begins, length)
    if split.answers is not None:
        for number, (begin, end) in enumerate(zip(begins, split.ends, strict=True)):
            learnt = split.answers[begin + 1 : end].nonzero()[0]
            if len(learnt) and learnt[0]:  # the first token of a text behind the separator is learnt
                lengths[number] = min(learnt[0] + 1, longest)
    documents = np.arange(len(lengths), dtype=np.int64)
    return Windows(begins, lengths, lengths, documents, *_grouped(split, np.ones(len(lengths), np.int64)))
