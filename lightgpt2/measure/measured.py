"""What is measured of an arm, whatever runs its model."""

import contextlib
import itertools
import platform
import time
from abc import ABC, abstractmethod
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightgpt2.measure.arms import Arm, Settings
from lightgpt2.measure.memory import Meter
from lightgpt2.models.ledger import versions

PROFILED_TOKENS = 4

_REPEATS, _SECONDS = 10, 2.0  # of a forward pass in a round: so many, or as many as fit into this time
_WARM_TOKENS = 8


class Measured(ABC):
    """One arm's model and what can be asked of it.

    Args:
        arm: What to load, and how.
        settings: What to measure.
        device: `cpu` or `cuda:N`.
    """

    meter: Meter

    def __init__(self, arm: Arm, settings: Settings, device: str) -> None:
        self.arm, self.settings, self.device = arm, settings, device

    @abstractmethod
    def load(self) -> dict[str, Any]:
        """Loads the model and warms it up; its sizes, and the machine's description."""

    @abstractmethod
    def profile(self, trace: str) -> dict[str, Any]:
        """Profiles a forward pass at batch 1 and a few decode steps.

        Args:
            trace: Where the Chrome trace goes.
        """

    def round(self) -> dict[str, Any]:
        """Measures everything once: milliseconds of passes, of first tokens and between tokens; CPU seconds; peak memory."""
        return {
            "forward": {shape: self._forward_times(ids) for shape, ids in self.batches.items()},
            "generate": {str(count): self._token_times(count) for count in self.settings.new_tokens},
            "peaks": self.meter.peaks(),
        }

    # -- what a subclass runs ----------------------------------------------------------------------------------------

    @abstractmethod
    def _forward(self, ids: Tensor) -> None:
        """The logits at all positions of `[B, T]`."""

    @abstractmethod
    def _generate(self, count: int) -> tuple[list[float], float]:
        """Generates exactly so many tokens; the times of the start and of each token, and CPU seconds up to the last.

        They are those of all threads of the process, in its own code and in the system's.
        """

    def _synchronize(self) -> None:  # noqa: B027 - most devices are done when a call returns
        """Waits until the device is done."""

    # -- inside ------------------------------------------------------------------------------------------------------

    def _prepare(self, vocabulary: int) -> None:
        """Makes the tokens to run on; all lengths have a prompt in common."""
        self.vocabulary = vocabulary
        self.prompt = self._random(1, self.settings.prompt_tokens)
        length = self.settings.forward_tokens
        self.batches = {f"{batch}x{length}": self._random(batch, length) for batch in self.settings.batches}

    def _random(self, batch: int, length: int) -> Tensor:
        """The same random tokens in every process."""
        generator = torch.Generator().manual_seed(length)
        return torch.randint(self.vocabulary, (batch, length), generator=generator).to(self.device)

    def _warm_up(self) -> None:
        for ids in self.batches.values():
            self._forward(ids)
        self._generate(min(_WARM_TOKENS, *self.settings.new_tokens))

    def _forward_times(self, ids: Tensor) -> list[float]:
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


def machine(device: str) -> dict[str, Any]:
    """What the figures belong to.

    Args:
        device: `cpu` or `cuda:N`.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    cuda = device.startswith("cuda")
    found = versions()
    for package in ("bitsandbytes", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return {
        "name": f"{torch.cuda.get_device_name()}, {name}" if cuda else name,
        "device": "cuda" if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "versions": found,
    }
