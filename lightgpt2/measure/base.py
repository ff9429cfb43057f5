"""What is measured of an arm, whatever runs its model."""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightgpt2.measure.arms import Arm, Settings
from lightgpt2.measure.memory import now_mb, peak_mb, reserved_mb, reset_peak

PROFILED_STEPS, PROFILED_TOKENS = 3, 4

_REPEATS, _SECONDS = 10, 2.0  # a forward pass is repeated this often in a round, or for this time
_WARM_TOKENS = 8
_TOP = 10  # operators in the table

Operator = tuple[str, int, float]  # name, calls, own milliseconds


class Worker(ABC):
    """One arm's model, whatever runs it."""

    vocabulary: int

    def __init__(self, arm: Arm, settings: Settings, device: str) -> None:
        self.arm, self.settings, self.device, self.cuda = arm, settings, device, device.startswith("cuda")

    def load(self) -> dict[str, float | None]:
        """Load the model and warm it up; returns megabytes of its weights, of the process, and seconds."""
        settings = self.settings
        self._prepare()
        reset_peak()  # forgets the imports'
        self._start_mb, started = now_mb(self.cuda), time.perf_counter()
        sizes = self._load()
        seconds = time.perf_counter() - started
        grown = now_mb(self.cuda) - self._start_mb
        self.prompt = self._random(1, settings.prompt_tokens)  # all lengths of generation have it in common
        for batch in settings.batches:
            self._forward(self._random(batch, settings.forward_tokens))
        self._generate(min(_WARM_TOKENS, *settings.new_tokens))
        return {**sizes, "load_mb": grown, "load_seconds": seconds}

    def round(self) -> dict[str, Any]:
        """Measure everything once: milliseconds of passes, of first tokens and between tokens; CPU seconds; peak memory."""
        length = self.settings.forward_tokens
        forward = {f"{batch}x{length}": self._forward_times(batch, length) for batch in self.settings.batches}
        generate = {str(count): self._token_times(count) for count in self.settings.new_tokens}
        peak = peak_mb(self.cuda)
        memory = {"peak_memory_mb": peak, "peak_above_start_mb": peak - self._start_mb}
        peaks = memory | {"peak_reserved_mb": reserved_mb() if self.cuda else None}
        return {"forward": forward, "generate": generate, "peaks": peaks}

    def profile(self, trace: Path) -> dict[str, Any]:
        """Profile a forward pass at batch 1 and a few decode steps, and write a Chrome trace (it opens in Perfetto)."""
        own, attention = self._profile(self._random(1, self.settings.forward_tokens), trace)
        return {
            "operators": top(own, self.device.partition(":")[0]),
            "attention_kernel": attention,
            "trace": str(trace),
        }

    def _prepare(self) -> None:  # noqa: B027 - most have imported everything
        """Import what loading will need, so that it does not count as memory of the model."""

    @abstractmethod
    def _load(self) -> dict[str, float | None]:
        """Load the model and set `vocabulary`; returns `weights_mb` and `embedding_mb`."""

    @abstractmethod
    def _forward(self, ids: Tensor) -> None:
        """Compute the logits at all positions of `[B, T]`."""

    @abstractmethod
    def _generate(self, count: int) -> tuple[list[float], float]:
        """Generate exactly `count` tokens; the times of the start and of each token, and CPU seconds up to the last.

        CPU seconds are those of all threads of the process, in its own code and in the system's.
        """

    @abstractmethod
    def _profile(self, ids: Tensor, trace: Path) -> tuple[list[Operator], str]:
        """Write the trace; returns the operators, and the kind of attention that ran."""

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _random(self, batch: int, length: int) -> Tensor:
        """The same random tokens in every process."""
        generator = torch.Generator().manual_seed(length)
        return torch.randint(self.vocabulary, (batch, length), generator=generator).to(self.device)

    def _forward_times(self, batch: int, length: int) -> list[float]:
        ids = self._random(batch, length)
        times: list[float] = []
        while len(times) <= _REPEATS and sum(times) < _SECONDS * 1e3:
            self._synchronize()
            started = time.perf_counter()
            self._forward(ids)
            self._synchronize()
            times.append((time.perf_counter() - started) * 1e3)
        # The others have used the caches since the last round, which the first pass suffers for.
        return times[1:] or times

    def _token_times(self, count: int) -> dict[str, Any]:
        self._generate(2)
        times, spent = self._generate(count)
        gaps = [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
        return {"first": gaps[0], "others": gaps[1:], "cpu_seconds": spent}


def top(own: Iterable[Operator], device: str) -> list[dict[str, Any]]:
    """The operators with the most own time, and their share of all operators' time."""
    longest = sorted(own, key=lambda operator: -operator[2])
    total = sum(spent for _, _, spent in longest) or 1.0
    return [
        {"name": name, "calls": calls, "self_ms": spent, "share": spent / total, "device": device}
        for name, calls, spent in longest[:_TOP]
    ]
