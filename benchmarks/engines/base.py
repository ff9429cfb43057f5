"""What every engine answers. Nothing here imports an engine: a process holds the one that it measures and no other."""

import time
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class Engine(ABC):
    """A model in one engine, on a CPU.

    Args:
        folder: The engine's own files.
        threads: How many threads it computes with.
        options: What the arm sets beside them.
    """

    def __init__(self, folder: Path, threads: int, options: dict[str, str]) -> None:
        self.folder, self.threads, self.options = folder, threads, options

    def prepare(self) -> None:  # noqa: B027 - most have imported everything
        """Loads what an engine loads late of its own: no part of a model's memory."""

    @abstractmethod
    def load(self, capacity: int) -> None:
        """Reads the model.

        Args:
            capacity: The longest sequence that will be decoded, in tokens.
        """

    @abstractmethod
    def start(self, prompt: Ids) -> int:
        """Forgets everything, reads a prompt `[S]` and answers the most likely next token."""

    @abstractmethod
    def step(self, token: int) -> int:
        """Reads one more token and answers the most likely next one."""

    @abstractmethod
    def forward(self, ids: Ids) -> Logits:
        """The logits `[B, T, V]` of all positions of a batch `[B, T]`; they may be overwritten by the next pass."""

    def release(self) -> None:  # noqa: B027 - most have nothing to give back
        """Gives back what only `forward` needs."""

    def describe(self) -> str:
        """What the table says of the engine beside its name: its version, and the precision that it computes in."""
        return ""

    def decode(self, prompt: Ids, count: int) -> tuple[list[int], list[float]]:
        """Greedy text from a prompt.

        Args:
            prompt: Tokens, `[S]`.
            count: How many new tokens after the first.

        Returns:
            All `count + 1` tokens, and milliseconds of each one after the first: the pass over one token and the choice of
            the next.
        """
        tokens, times = [self.start(prompt)], []
        for _ in range(count):
            started = time.perf_counter()
            tokens.append(self.step(tokens[-1]))
            times.append((time.perf_counter() - started) * 1e3)
        return tokens, times
