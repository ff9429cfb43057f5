"""What every engine answers. Nothing here imports an engine: a process holds the one that it measures and no other."""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[Any]


class Engine(ABC):
    """A model in one engine, on a CPU.

    Args:
        folder: The engine's files.
        threads: How many threads it computes with.
        options: What the arm sets beside them.
    """

    def __init__(self, folder: Path, threads: int, options: dict[str, str]) -> None:
        self.folder, self.threads, self.options = folder, threads, options

    def prepare(self) -> None:  # noqa: B027 - most have imported everything
        """Loads what an engine loads late by itself: no part of a model's memory."""

    @abstractmethod
    def load(self, capacity: int) -> None:
        """Reads the model; no sequence that is decoded will be longer than `capacity`."""

    def prefill(self, prompt: Ids) -> Logits:
        """Forgets everything, reads a prompt `[S]`; the logits `[V]` of the next token."""
        raise NotImplementedError

    def decode(self, token: int) -> Logits:
        """Reads one more token; the logits `[V]` of the next one."""
        raise NotImplementedError

    @abstractmethod
    def logits(self, ids: Ids) -> Logits:
        """The logits `[B, T, V]` of a batch `[B, T]`, an encoder's states; they may be overwritten by the next pass."""

    def release(self) -> None:  # noqa: B027 - most have nothing to give back
        """Gives back what only `logits` needs."""

    def describe(self) -> str:
        """Versions, and the precision that it computes in where it chose that."""
        return ""

    def greedy(self, prompt: Ids, count: int) -> list[float]:
        """Milliseconds of each of `count` tokens after the first: the pass over one token and the choice of the next."""
        token, times = int(self.prefill(prompt).argmax()), []
        for _ in range(count):
            started = time.perf_counter()
            token = int(self.decode(token).argmax())
            times.append((time.perf_counter() - started) * 1e3)
        return times
