"""What is measured of an arm, whatever runs its model."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import Arm
from lightgpt2.measure.memory import now_mb, peak_mb, reserved_mb, reset_peak
from lightgpt2.models.workloads import Workload

PROFILED_STEPS = 3

_TOP = 10  # operators in the table

Operator = tuple[str, int, float]  # name, calls, own milliseconds
Steps = dict[str, Callable[[], None]]  # what is profiled, by its name in the trace


class Worker(ABC):
    """One arm's model, whatever runs it: a `workloads.Runner`."""

    vocabulary: int

    def __init__(self, arm: Arm, workloads: Sequence[Workload], device: str) -> None:
        self.arm, self.workloads, self.device, self.cuda = arm, workloads, device, device.startswith("cuda")

    def load(self) -> dict[str, float | None]:
        """Load the model and warm it up; returns megabytes of its weights, of the process, and seconds."""
        self._prepare()
        reset_peak()  # forgets the imports'
        self._start_mb, started = now_mb(self.cuda), time.perf_counter()
        sizes = self._load()
        seconds = time.perf_counter() - started
        grown = now_mb(self.cuda) - self._start_mb
        if self.cuda and grown <= 0:
            raise UserError("the memory of the card has not grown: the model is not on it")
        for workload in self.workloads:
            workload.step(self)
        return {**sizes, "load_mb": grown, "load_seconds": seconds}

    def round(self) -> dict[str, Any]:
        """Measure everything once: what each workload says, by its key, and the peaks of the memory."""
        measured = {workload.key: workload.measure(self) for workload in self.workloads}
        peak = peak_mb(self.cuda)
        memory = {"peak_memory_mb": peak, "peak_above_start_mb": peak - self._start_mb}
        return {**measured, "peaks": memory | {"peak_reserved_mb": reserved_mb() if self.cuda else None}}

    def profile(self, trace: Path) -> dict[str, Any]:
        """Profile a step of the first workload of each section, and write a Chrome trace (it opens in Perfetto)."""
        steps = {each.section: partial(each.step, self) for each in reversed(self.workloads)}
        own, attention = self._profile(dict(reversed(steps.items())), trace)
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
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> None: ...

    @abstractmethod
    def encode(self, ids: Tensor) -> None: ...

    @abstractmethod
    def generate(self, prompt: Tensor, count: int) -> tuple[list[float], float]: ...

    @abstractmethod
    def search(self, prompt: Tensor, count: int, beams: int) -> None: ...

    @abstractmethod
    def _profile(self, steps: Steps, trace: Path) -> tuple[list[Operator], str]:
        """Run all steps a few times and write the trace; returns the operators, and the kind of attention that ran."""

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def top(own: Iterable[Operator], device: str) -> list[dict[str, Any]]:
    """The operators with the most own time, and their share of all operators' time."""
    longest = sorted(own, key=lambda operator: -operator[2])
    total = sum(spent for _, _, spent in longest) or 1.0
    return [
        {"name": name, "calls": calls, "self_ms": spent, "share": spent / total, "device": device}
        for name, calls, spent in longest[:_TOP]
    ]
