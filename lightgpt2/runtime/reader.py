"""What follows a sequence of tokens, with the work of sequences before it: what was read is not read again."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightgpt2.runtime.engines import Engine
from lightgpt2.runtime.sampling import check_finite
from lightgpt2.runtime.spellings import Spellings

Ids = tuple[int, ...]

_BYTES = 64 << 20  # of the distributions that are kept
_FEWEST = 64  # of them, however large they are


@dataclass(frozen=True)
class Node:
    """The distribution of the token behind a sequence."""

    spelled: NDArray[np.float32]  # the probabilities of tokens that spell something, in the order of `Spellings`
    special: float  # of all others together
    ends: float  # of all that do not go on with the word that the sequence ends in


class Reader:
    """Reads sequences of one model, and keeps the distributions that it has found: the last ones, in at most 64 MB.

    Args:
        engine: What runs the model.
        spellings: What its tokens spell.
    """

    def __init__(self, engine: Engine, spellings: Spellings) -> None:
        self.engine, self.spellings = engine, spellings
        self.passes = 0  # forward passes so far
        self._read: Ids = ()
        self._nodes: OrderedDict[Ids, Node] = OrderedDict()
        self._most = max(_FEWEST, _BYTES // (4 * max(1, len(spellings.ids))))

    def known(self, ids: Ids) -> Node | None:
        """What follows a sequence, if that is kept."""
        if ids in self._nodes:
            self._nodes.move_to_end(ids)
        return self._nodes.get(ids)

    def after(self, ids: Ids) -> Node:
        """What follows a sequence of tokens, at least one."""
        if found := self.known(ids):
            return found
        shared = next((at for at, (a, b) in enumerate(zip(ids, self._read, strict=False)) if a != b), None)
        kept = min(len(ids), len(self._read)) if shared is None else shared
        kept = min(kept, len(ids) - 1)  # one token is read in any case
        self._read = ()  # unknown, should the engine fail
        logits = self.engine.resume(np.array(ids[kept:], np.int64), kept)
        self._read = ids
        self.passes += 1
        check_finite(logits[None])
        weights = np.exp(logits - logits.max())
        total = float(weights.sum(dtype=np.float64))
        spelled = (weights / total)[self.spellings.ids].astype(np.float32)
        whole, inside = (float(part.sum(dtype=np.float64)) for part in (spelled, spelled[self.spellings.inside]))
        node = Node(spelled, max(0.0, 1 - whole), max(0.0, 1 - inside))
        self._nodes[ids] = node
        if len(self._nodes) > self._most:
            self._nodes.popitem(last=False)
        return node
