"""Speed and memory of models, each in a fresh process, measured in turns.

Every arm (a model in a precision with a kind of attention) has a process of its own that stays alive and waits while the others
measure. Rounds interleave the arms: a machine that is slower for a minute is slower for all of them, and the ratio of two arms
is taken inside a round, where both saw the same machine.
"""

import contextlib
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import Arm, Settings
from lightgpt2.measure.child import ArmFailed, Child

Round = dict[str, Any]


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda:0`, from what the person asked for.

    Args:
        wanted: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: there is no CUDA device that torch can use; give cpu")
    return "cuda:0" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def measure(arms: Sequence[Arm], settings: Settings, device: str, traces: Path, bar: bool = True) -> dict[str, Any]:
    """Measures all arms; one that fails is reported, and the others go on.

    Args:
        arms: What to measure. Ratios are to the first.
        settings: How much.
        device: `cpu` or `cuda:N`.
        traces: Folder for the profiler's traces.
        bar: Whether to show a progress bar.

    Returns:
        Figures of the machine, the settings and every arm, for JSON.
    """
    with _Session(arms, settings, device) as session:
        progress = tqdm(total=len(arms) * settings.rounds, desc="Loading", leave=False, disable=not bar)
        with progress:
            for arm in arms:
                progress.set_description(f"Loading {arm.name}")
                session.load(arm)
            for number in range(settings.rounds):
                # Every second round backwards: an arm does not always follow the same other one.
                for arm in list(arms)[:: 1 if number % 2 == 0 else -1]:
                    progress.set_description(f"Measuring {arm.name}")
                    session.measure(arm)
                    progress.update()
            for arm in arms:
                progress.set_description(f"Profiling {arm.name}")
                session.profile(arm, traces / f"{arm.file_name}.json")
        return session.result()


class _Session(contextlib.AbstractContextManager["_Session"]):
    """The children, and what they have reported so far."""

    def __init__(self, arms: Sequence[Arm], settings: Settings, device: str) -> None:
        self._arms, self._settings, self._device = arms, settings, device
        self._children: dict[str, Child] = {}
        self._machine: dict[str, Any] = {"device": device.partition(":")[0]}
        self._sizes: dict[str, dict[str, float]] = {}
        self._rounds: dict[str, list[Round]] = {arm.name: [] for arm in arms}
        self._profiles: dict[str, dict[str, Any]] = {}
        self._errors: dict[str, str] = {}

    def __exit__(self, *exception: object) -> None:
        for child in self._children.values():
            child.close()

    def load(self, arm: Arm) -> None:
        self._children[arm.name] = Child()
        settings = self._settings.as_dict()
        if loaded := self._ask(arm, "load", spec=asdict(arm), settings=settings, device=self._device):
            self._sizes[arm.name], self._machine = loaded["sizes"], loaded["machine"]

    def measure(self, arm: Arm) -> None:
        if measured := self._ask(arm, "round"):
            self._rounds[arm.name].append(measured)

    def profile(self, arm: Arm, trace: Path) -> None:
        if found := self._ask(arm, "profile", trace=str(trace)):
            self._profiles[arm.name] = found

    def _ask(self, arm: Arm, do: str, **request: Any) -> dict[str, Any] | None:
        """What an arm's child answers; nothing once it has failed."""
        if arm.name in self._errors:
            return None
        try:
            return self._children[arm.name].ask(do, **request)
        except ArmFailed as failure:
            self._errors[arm.name] = str(failure)
            self._children[arm.name].close()  # what it holds is the others' again
            return None

    def result(self) -> dict[str, Any]:
        speeds = {arm.name: speeds_of(self._rounds[arm.name]) for arm in self._arms if arm.name not in self._errors}
        shown = ratios(speeds)
        arms: list[dict[str, Any]] = []
        for arm in self._arms:
            about: dict[str, Any] = {key: getattr(arm, key) for key in ("name", "source", "precision", "attention")}
            if arm.name in self._errors:
                arms.append(about | {"error": self._errors[arm.name]})
                continue
            figures = summary(self._rounds[arm.name])
            whole = about | self._sizes[arm.name] | figures | {"ratio": shown[arm.name]} | self._profiles[arm.name]
            arms.append(_rounded(whole))
        return {"machine": self._machine, "settings": self._settings.as_dict(), "arms": arms}


def speeds_of(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """One arm's speed in each round, by what was measured: forward passes and new tokens a second.

    Args:
        rounds: What its worker measured in each.
    """
    speeds: dict[str, list[float]] = {}
    for measured in rounds:
        for shape, times in measured["forward"].items():
            speeds.setdefault(f"forward {shape}", []).append(1e3 / statistics.median(times))
        for count, tokens in measured["generate"].items():
            speeds.setdefault(f"generate {count}", []).append(_decoding(tokens))
    return speeds


def _decoding(tokens: Mapping[str, Any]) -> float:
    """New tokens a second after the first."""
    return len(tokens["others"]) / sum(tokens["others"]) * 1e3


def ratios(speeds: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """How many times faster than the first arm each arm is: median and range of the ratios inside rounds.

    Args:
        speeds: For each arm and each thing measured the speed in each round.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    first = next(iter(speeds.values()), {})
    for arm, mine in speeds.items():
        result[arm] = {}
        for name, values in mine.items():
            inside = [value / base for value, base in zip(values, first[name], strict=True)]
            result[arm][name] = {"median": statistics.median(inside), "low": min(inside), "high": max(inside)}
    return result


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """One arm's figures over all rounds: medians, 95th percentiles, and the peaks of its memory.

    Args:
        rounds: What its worker measured in each.
    """
    forward = {shape: _samples(rounds, "forward", shape) for shape in rounds[0]["forward"]}
    generate = {count: _samples(rounds, "generate", count) for count in rounds[0]["generate"]}
    return {
        **rounds[-1]["peaks"],
        "forward": {
            shape: dict(zip(("p50_ms", "p95_ms"), _percentiles([*itertools.chain(*times)]), strict=True))
            for shape, times in forward.items()
        },
        "generate": {count: _generation(samples) for count, samples in generate.items()},
    }


def _samples(rounds: Sequence[Round], kind: str, key: str) -> list[Any]:
    return [measured[kind][key] for measured in rounds]


def _generation(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    whole = [(sample["first"] + sum(sample["others"])) / 1e3 for sample in samples]
    spent = [sample["cpu_seconds"] for sample in samples]
    middle, high = _percentiles([gap for sample in samples for gap in sample["others"]])
    return {
        "first_token_ms": statistics.median(sample["first"] for sample in samples),
        "tokens_per_s": statistics.median(_decoding(sample) for sample in samples),
        "token_p50_ms": middle,
        "token_p95_ms": high,
        "seconds": statistics.median(whole),
        "cpu_seconds": statistics.median(spent),
        "cpu_percent": statistics.median(100 * cpu / wall for cpu, wall in zip(spent, whole, strict=True)),
    }


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    middle, high = np.quantile(values, [0.5, 0.95])
    return float(middle), float(high)


def _rounded(value: Any) -> Any:
    """Figures to a ten-thousandth: more is noise."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value
