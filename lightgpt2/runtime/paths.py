"""All ways in which a model's tokens spell a text, with their probabilities.

A text that ends inside a word seldom ends where a token does. Its probability is the sum over all token sequences whose last
token reaches its end or passes it, and whose other tokens do not (Vieira et al. 2024, arXiv:2412.03719; Phan et al. 2024,
arXiv:2410.09303, have it for bytes). Those that begin with the same tokens share their forward passes.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightgpt2.runtime.reader import Ids, Node, Reader


class Cancelled(Exception):  # noqa: N818 - not an error
    """What was asked for is no longer wanted."""


@dataclass(frozen=True)
class Leaf:
    """Tokens that end a spelling of a text."""

    ids: Ids  # before them
    weight: float  # the probability of getting there
    node: Node
    places: slice | NDArray[np.int64]  # of the tokens, in `Spellings`
    passed: int  # bytes of each that belong to the text: the others are behind it


class Paths:
    """The spellings of texts by one model.

    Args:
        reader: What reads sequences.
        share: Beginnings of spellings that are at most as likely as this share of what was found are dropped; 0: none is.
        most: The most forward passes for one text.
    """

    def __init__(self, reader: Reader, share: float, most: int) -> None:
        self.reader, self.share, self.most = reader, share, most

    def spell(
        self, start: Ids, text: bytes, ended: bool = False, stop: Callable[[], bool] | None = None, read: bool = True
    ) -> tuple[list[Leaf], float]:
        """The spellings of a text behind `start`, and its probability.

        Args:
            start: Tokens that are given, at least one.
            text: What must follow; with `ended` it ends in a word.
            ended: True if the word must end there: with a token for what is behind it, or one that has that too.
            stop: Asked before each forward pass.
            read: False to do without forward passes, with what is known.
        """
        spellings, found, leaves = self.reader.spellings, 0.0, list[Leaf]()
        open_, passes = [(-1.0, 0, start)], 0
        while open_:
            weight, at, ids = heapq.heappop(open_)
            weight = -weight
            if weight <= self.share * found:
                break  # all others are less likely
            node = self.reader.known(ids)
            if node is None:
                if not read or passes == self.most or len(ids) > self.reader.engine.context:
                    continue
                if stop and stop():
                    raise Cancelled
                node, passes = self.reader.after(ids), passes + 1
            rest = text[at:]
            if ended and not rest:
                found += weight * node.ends
                leaves.append(Leaf(ids, weight, node, spellings.outside, 0))
                continue
            places: slice | NDArray[np.int64]
            places = np.array(spellings.ending(rest), np.int64) if ended else slice(*spellings.range(rest))
            if mass := float(node.spelled[places].sum(dtype=np.float64)):
                found += weight * mass
                leaves.append(Leaf(ids, weight, node, places, len(rest)))
            for end in range(1, len(rest) + ended):
                for place in range(*spellings.equal(rest[:end])):
                    if node.spelled[place] > 0:
                        token = int(spellings.ids[place])
                        heapq.heappush(open_, (-weight * float(node.spelled[place]), at + end, (*ids, token)))
        return leaves, found
