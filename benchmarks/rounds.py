"""Engines in one interleaved run: each in its own process, measured in turns, its logits compared with the baseline's."""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ratios
from lightgpt2.measure.child import ArmFailed, Children, turns


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    engine: str  # `module:Class` in `benchmarks.engines`
    files: str = ""  # what the engine runs
    options: dict[str, str] = field(default_factory=dict)  # for the engine
    needs: tuple[str, ...] = ()  # the modules that have to be installed


def measure(
    arms: list[Arm], files_of: Callable[[Arm], Path], settings: Mapping[str, Any], rounds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Measures all arms, of which the first is the baseline, with the settings of `benchmarks.engines.worker.Worker`.

    `files_of` gives an arm's files, or raises `ArmFailed`. Returns by name what an arm says of itself, its `error` and its
    `measures` (`ms`, `rounds_ms`, `ratio`, `disturbed`); and why others failed.
    """
    about: dict[str, dict[str, Any]] = {}
    found: dict[str, list[dict[str, tuple[float, float]]]] = {arm.name: [] for arm in arms}
    with tempfile.TemporaryDirectory() as scratch, Children("benchmarks.engines.worker") as children:
        for number, arm in enumerate(arms):
            logits = Path(scratch, f"{number}.npy")
            try:
                request = {"engine": arm.engine, "folder": str(files_of(arm)), "options": arm.options}
            except ArmFailed as failure:
                children.errors[arm.name] = str(failure)
                continue
            about[arm.name] = children.ask(arm.name, "load", settings=settings, logits=str(logits), **request)
            _check(children, arms[0])
            if logits.exists():
                about[arm.name]["error"] = difference(np.load(logits), np.load(Path(scratch, "0.npy")))
        for arm in turns(arms, rounds):
            found[arm.name].append(children.ask(arm.name, "round"))
            _check(children, arms[0])
        failed = children.errors
    found = {name: mine for name, mine in found.items() if name not in failed}
    for what in found[arms[0].name][0]:
        times = {name: [each[what][0] for each in mine] for name, mine in found.items()}
        for name, ratio in ratios(times, arms[0].name).items():
            disturbed = max(each[what][1] for each in found[name])
            figures = {"ms": statistics.median(times[name]), "rounds_ms": times[name], "ratio": ratio}
            about[name].setdefault("measures", {})[what] = {**figures, "disturbed": disturbed}
    return {name: about[name] for name in found}, failed


def _check(children: Children, baseline: Arm) -> None:
    if baseline.name in children.errors:
        raise SystemExit(f"{baseline.name}: {children.errors[baseline.name]}")


def difference(logits: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """Root mean squared difference over the reference's own deviation; not a number where the vocabularies differ."""
    if logits.shape != reference.shape:
        return float("nan")
    return float(np.sqrt(np.mean((logits - reference) ** 2)) / reference.std())
