"""Which documents occurred before: equal ones, and near duplicates."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.errors import UserError

_PERMUTATIONS, _WORDS = 128, 5  # of MinHash, and in a shingle: as usual for text (Lee et al. 2022, arXiv:2107.06499)
_FEW = 4096  # digests that are kept unsorted


class Digests:
    """A set of digests of 64 bits in 8 bytes each, as sorted arrays that grow by merging."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted: list[NDArray[np.uint64]] = []

    def __contains__(self, text: str) -> bool:
        digest = _digest(text)
        return digest in self._recent or any(self._holds(run, digest) for run in self._sorted)

    def add(self, text: str) -> bool:
        """Adds a text; True if it was not there."""
        if text in self:
            return False
        self._recent.add(_digest(text))
        if len(self._recent) == _FEW:
            merged = np.sort(np.fromiter(self._recent, np.uint64, _FEW))
            while self._sorted and len(self._sorted[-1]) <= len(merged):
                merged = np.sort(np.concatenate([self._sorted.pop(), merged]))
            self._sorted.append(merged)
            self._recent = set()
        return True

    @staticmethod
    def _holds(run: NDArray[np.uint64], digest: int) -> bool:
        place = int(run.searchsorted(np.uint64(digest)))
        return place < len(run) and int(run[place]) == digest


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


class NearDuplicates:
    """Finds texts that share most of their sequences of five words, by MinHash and locality-sensitive hashing (Broder 1997).

    Args:
        threshold: The Jaccard similarity from which on a text is a near duplicate.

    Raises:
        UserError: The package `datasketch` is missing.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise UserError(
                "data.near_duplicates: needs the package datasketch; pip install lightgpt2[near-duplicates]"
            ) from error
        self._hash, self._index = MinHash(num_perm=_PERMUTATIONS), MinHashLSH(threshold, num_perm=_PERMUTATIONS)
        self._threshold, self._texts = threshold, list[Any]()

    def add(self, text: str) -> bool:
        """Adds a text unless it is like one that was added; True if it is not."""
        words = text.split()
        shingles = {" ".join(words[i : i + _WORDS]).encode() for i in range(max(1, len(words) - _WORDS + 1))}
        found = self._hash.copy()
        found.update_batch(shingles)
        if any(found.jaccard(self._texts[number]) >= self._threshold for number in self._index.query(found)):
            return False
        self._index.insert(len(self._texts), found, check_duplication=False)
        self._texts.append(found)
        return True
