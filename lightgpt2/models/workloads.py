"""What is run on a model to measure its speed: a task says which of these, a process that holds the model runs them."""

import itertools
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from lightgpt2.errors import Problem

_SECONDS = 2.0  # after which a pass is not repeated in a round
_STEP_TOKENS = 4  # that a step generates


@dataclass(frozen=True)
class Positions:
    """How many positions a model has."""

    count: int
    owner: str = "the model's"  # whose they are, a genitive

    def __str__(self) -> str:
        return f"{self.owner} {self.count} positions"

    def problems(self, key: str, tokens: Sequence[int]) -> list[Problem]:
        """The problem with a setting that lists lengths of texts."""
        if (longest := max(tokens, default=0)) <= self.count:
            return []
        return [Problem(key, f"must be within {self}, got {longest}", f"give at most {self.count}")]


class Runner(Protocol):
    """A model in the process that measures it."""

    device: str
    vocabulary: int

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> None:
        """Compute the logits of tokens `[B, T]`, and wait until they are there; `mask` is 0 at pads."""

    def encode(self, ids: Tensor) -> None:
        """Read sources `[B, S]` up to where the first token can be written, and wait until that is done."""

    def generate(self, prompt: Tensor, count: int) -> tuple[list[float], float]:
        """Generate exactly `count` tokens; the times of the start and of each token, and CPU seconds up to the last.

        CPU seconds are those of all threads of the process, in its own code and in the system's.
        """

    def search(self, prompt: Tensor, count: int, beams: int) -> None:
        """Generate exactly `count` tokens by beam search, and wait until they are there."""


class Workload(ABC):
    """One thing that is measured in every round."""

    section: ClassVar[str]  # of the results

    @property
    @abstractmethod
    def setting(self) -> str:
        """Its name in the section."""

    @property
    def key(self) -> str:
        return f"{self.section} {self.setting}"

    @property
    def about(self) -> dict[str, Any]:
        """What the key does not say: figures are compared where it is the same."""
        return {}

    @abstractmethod
    def step(self, runner: Runner) -> None:
        """Run a short part of it: to warm the model up, and to be profiled."""

    @abstractmethod
    def measure(self, runner: Runner) -> Any:
        """Run it once, and return what was measured."""

    @abstractmethod
    def speed(self, measured: Any) -> float:
        """How fast one round was; twice as much is twice as fast."""

    @abstractmethod
    def figures(self, rounds: Sequence[Any]) -> dict[str, float]:
        """Its figures over all rounds: `p50_ms` is the median latency, `X_per_s` how many X a second."""


@dataclass(frozen=True)
class Forward(Workload):
    """Passes over `batch` texts of `tokens` tokens each."""

    batch: int
    tokens: int
    repeats: int = 10  # in a round

    section = "forward"

    @property
    def setting(self) -> str:
        return f"{self.batch}x{self.tokens}"

    def step(self, runner: Runner) -> None:
        runner.forward(random_tokens(runner, self.batch, self.tokens))

    def measure(self, runner: Runner) -> list[float]:
        """Milliseconds of each pass."""
        ids = random_tokens(runner, self.batch, self.tokens)
        return self._timed(lambda: runner.forward(ids))

    def _timed(self, call: Callable[[], None]) -> list[float]:
        times = list[float]()
        while len(times) <= self.repeats and sum(times) < _SECONDS * 1e3:
            times.append(_milliseconds(call))
        # The others have used the caches since the last round, which the first pass suffers for.
        return times[1:] or times

    def speed(self, measured: Sequence[float]) -> float:
        return 1e3 / statistics.median(measured)

    def figures(self, rounds: Sequence[Sequence[float]]) -> dict[str, float]:
        return _percentiles("", [*itertools.chain(*rounds)])


@dataclass(frozen=True)
class Generation(Workload):
    """`tokens` new tokens after a prompt of `prompt` tokens."""

    prompt: int
    tokens: int

    section = "generate"

    @property
    def setting(self) -> str:
        return str(self.tokens)

    @property
    def about(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt}

    def step(self, runner: Runner) -> None:
        runner.generate(random_tokens(runner, 1, self.prompt), _STEP_TOKENS)

    def measure(self, runner: Runner) -> dict[str, Any]:
        """Milliseconds of the `first` token and of the `others`; CPU seconds."""
        prompt = random_tokens(runner, 1, self.prompt)
        runner.generate(prompt, 2)
        times, spent = runner.generate(prompt, self.tokens)
        gaps = [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
        return {"first": gaps[0], "others": gaps[1:], "cpu_seconds": spent}

    def speed(self, measured: dict[str, Any]) -> float:
        """New tokens a second after the first."""
        return len(measured["others"]) / sum(measured["others"]) * 1e3

    def figures(self, rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
        whole = [(each["first"] + sum(each["others"])) / 1e3 for each in rounds]
        spent = [each["cpu_seconds"] for each in rounds]
        return {
            "first_token_ms": statistics.median(each["first"] for each in rounds),
            "tokens_per_s": statistics.median(map(self.speed, rounds)),
            **_percentiles("token_", [gap for each in rounds for gap in each["others"]]),
            "seconds": statistics.median(whole),
            "cpu_seconds": statistics.median(spent),
            "cpu_percent": statistics.median(100 * cpu / wall for cpu, wall in zip(spent, whole, strict=True)),
        }


@dataclass(frozen=True)
class Texts(Workload):
    """Texts of these lengths: in batches, padded to the longest text of each; or one by one from several threads."""

    lengths: tuple[int, ...]
    batch: int = 1
    threads: int = 1  # that share the model

    section = "texts"

    @property
    def setting(self) -> str:
        if self.batch > 1:
            return f"batch {self.batch}"
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def about(self) -> dict[str, Any]:
        return {"count": len(self.lengths), "tokens": sum(self.lengths), "longest": max(self.lengths)}

    def step(self, runner: Runner) -> None:
        runner.forward(*self._batches(runner)[0])

    def measure(self, runner: Runner) -> dict[str, Any]:
        """Seconds for all texts, and milliseconds of each call."""
        batches = self._batches(runner)
        with ThreadPoolExecutor(self.threads) as pool:
            started = time.perf_counter()
            calls = [*pool.map(lambda batch: _milliseconds(lambda: runner.forward(*batch)), batches)]
            return {"seconds": time.perf_counter() - started, "calls": calls}

    def speed(self, measured: dict[str, Any]) -> float:
        return len(self.lengths) / float(measured["seconds"])

    def figures(self, rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
        speed = statistics.median(map(self.speed, rounds))
        return {"texts_per_s": speed, **_percentiles("", [call for each in rounds for call in each["calls"]])}

    def _batches(self, runner: Runner) -> list[tuple[Tensor, Tensor]]:
        batches = []
        for lengths in torch.tensor(self.lengths).split(self.batch):
            ids = random_tokens(runner, len(lengths), int(lengths.max()))
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            batches.append((ids, mask.to(runner.device)))
        return batches


@dataclass(frozen=True)
class Encoding(Forward):
    """Sources that are read: passes of the encoder over `batch` texts; of a decoder, over prompts."""

    section = "encode"

    def step(self, runner: Runner) -> None:
        runner.encode(random_tokens(runner, self.batch, self.tokens))

    def measure(self, runner: Runner) -> list[float]:
        ids = random_tokens(runner, self.batch, self.tokens)
        return self._timed(lambda: runner.encode(ids))


@dataclass(frozen=True)
class Documents(Workload):
    """Documents of these lengths, one by one: tokens that are read, and tokens that are written."""

    lengths: tuple[tuple[int, int], ...]
    beams: int = 1  # 1: greedy

    section = "documents"

    @property
    def setting(self) -> str:
        return "greedy" if self.beams == 1 else f"{self.beams} beams"

    @property
    def about(self) -> dict[str, Any]:
        read, new = (sum(column) for column in zip(*self.lengths, strict=True))
        return {"count": len(self.lengths), "tokens": read, "new_tokens": new}

    def step(self, runner: Runner) -> None:
        self._write(runner, self.lengths[0][0], _STEP_TOKENS)

    def measure(self, runner: Runner) -> list[float]:
        """Milliseconds of each document."""
        return [_milliseconds(partial(self._write, runner, *each)) for each in self.lengths]

    def speed(self, measured: Sequence[float]) -> float:
        return len(measured) / sum(measured) * 1e3

    def figures(self, rounds: Sequence[Sequence[float]]) -> dict[str, float]:
        speed = statistics.median(map(self.speed, rounds))
        return {"documents_per_s": speed, **_percentiles("", [*itertools.chain(*rounds)])}

    def _write(self, runner: Runner, read: int, new: int) -> None:
        prompt = random_tokens(runner, 1, read)
        if self.beams > 1:
            runner.search(prompt, new, self.beams)
        else:
            runner.generate(prompt, new)


def random_tokens(runner: Runner, batch: int, length: int) -> Tensor:
    """The same random tokens `[B, T]` in every process."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(runner.vocabulary, (batch, length), generator=generator).to(runner.device)


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _percentiles(prefix: str, values: Sequence[float]) -> dict[str, float]:
    middle, high = np.quantile(values, [0.5, 0.95])
    return {f"{prefix}p50_ms": float(middle), f"{prefix}p95_ms": float(high)}
