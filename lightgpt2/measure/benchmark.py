"""Speed and memory of models, each in a fresh process, measured in turns.

Every arm (a model in a precision with a kind of attention) has its own process, which stays alive and waits while the others
measure. Rounds interleave the arms: a machine that is slower for a minute is slower for all of them, and the ratio of two arms
is taken inside a round, where both saw the same machine.
"""

import contextlib
import itertools
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import Arm, Settings
from lightgpt2.measure.child import Children, turns
from lightgpt2.models.ledger import versions

Round = dict[str, Any]


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda:0`, of `auto`, `cpu` and `cuda`; a `UserError` if CUDA was asked for and is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: there is no CUDA device that torch can use; give cpu")
    return "cuda:0" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


class Stopped(KeyboardInterrupt):
    """A measurement was interrupted.

    Args:
        result: The figures of the arms that were measured, as `measure` returns them; empty if there are none.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


def measure(arms: Sequence[Arm], settings: Settings, device: str, traces: Path, bar: bool = True) -> dict[str, Any]:
    """Measure all arms on `cpu` or `cuda:N`; one that fails is reported, and the others go on.

    Returns figures of the machine, the settings and every arm, for JSON. Ratios are to the first arm. Traces of the profiler
    are files in a folder.

    Raises:
        Stopped: It was interrupted. It has the figures of the rounds that all measured arms have done.
    """
    loaded, profiles = dict[str, Any](), dict[str, Any]()
    rounds: dict[str, list[Round]] = {arm.name: [] for arm in arms}
    stop: KeyboardInterrupt | None = None
    progress = tqdm(total=len(arms) * settings.rounds, leave=False, disable=None if bar else True)
    with progress, Children("lightgpt2.measure.worker") as children:

        def ask(doing: str, name: str, do: str, **request: Any) -> dict[str, Any]:
            progress.set_description(f"{doing} {name}")
            return children.ask(name, do, **request)

        common = {"settings": settings, "device": device}
        try:
            for arm in arms:
                loaded[arm.name] = ask("Loading", arm.name, "load", arm=arm, **common)
            for arm in turns(arms, settings.rounds):
                rounds[arm.name].append(ask("Measuring", arm.name, "round"))
                progress.update()
            for arm in arms:
                trace = traces / f"{'-'.join(arm.name.replace('/', ' ').split())}.json"
                profiles[arm.name] = ask("Profiling", arm.name, "profile", trace=trace)
        except KeyboardInterrupt as interrupted:
            stop = interrupted
            needed = rounds if device == "cpu" else profiles  # without which nothing says that CUDA's kernels ran
            missing = (arm.name for arm in arms if not needed.get(arm.name) and arm.name not in children.errors)
            children.errors |= dict.fromkeys(missing, "it was stopped before that")
    done = {name: found for name, found in rounds.items() if name not in children.errors}
    count = min(map(len, done.values()), default=0)
    done = {name: found[:count] for name, found in done.items()}
    shown = ratios({name: speeds_of(found) for name, found in done.items()})
    results: list[dict[str, Any]] = []
    for arm in arms:
        about = {key: value for key, value in asdict(arm).items() if key != "trust_remote_code"}
        if arm.name in children.errors:
            results.append(about | {"error": children.errors[arm.name]})
        else:
            figures = loaded[arm.name]["sizes"] | summary(done[arm.name]) | {"ratio": shown[arm.name]}
            results.append(about | figures | profiles.get(arm.name, {}))
    results = json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4))  # more is noise
    found = next((each["machine"] for each in loaded.values() if each), {"device": device.partition(":")[0]})
    result = {"machine": found, "settings": asdict(settings) | {"rounds": count or settings.rounds}, "arms": results}
    if stop:
        raise Stopped(result if done else {}) from stop
    return result


def machine(device: str) -> dict[str, Any]:
    """Describe the machine and the libraries that the figures belong to."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    found, kind = versions(), device.partition(":")[0]
    for package in ("bitsandbytes", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    name = f"{torch.cuda.get_device_name()}, {name}" if kind == "cuda" else name
    return {"name": name, "device": kind, "threads": torch.get_num_threads(), "versions": found}


def speeds_of(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """One arm's speed in each round, by workload: forward passes and new tokens a second."""
    speeds = defaultdict[str, list[float]](list)
    for measured in rounds:
        for shape, times in measured["forward"].items():
            speeds[f"forward {shape}"].append(1e3 / statistics.median(times))
        for count, tokens in measured["generate"].items():
            speeds[f"generate {count}"].append(_decoding(tokens))
    return dict(speeds)


def _decoding(tokens: Mapping[str, Any]) -> float:
    """New tokens a second after the first."""
    return len(tokens["others"]) / sum(tokens["others"]) * 1e3


def ratios(speeds: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """How many times faster than the first arm each arm is: median and range of the ratios inside rounds, by workload."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    first = next(iter(speeds.values()), {})
    for arm, mine in speeds.items():
        result[arm] = {}
        for name, values in mine.items():
            inside = [value / base for value, base in zip(values, first[name], strict=True)]
            result[arm][name] = {"median": statistics.median(inside), "low": min(inside), "high": max(inside)}
    return result


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """One arm's figures over all rounds: medians, 95th percentiles, and the peaks of its memory."""

    def samples(kind: str) -> dict[str, list[Any]]:
        return {name: [measured[kind][name] for measured in rounds] for name in rounds[0][kind]}

    forward = {shape: _percentiles("", itertools.chain(*times)) for shape, times in samples("forward").items()}
    generate = {count: _generation(found) for count, found in samples("generate").items()}
    return {**rounds[-1]["peaks"], "forward": forward, "generate": generate}


def _generation(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    whole = [(sample["first"] + sum(sample["others"])) / 1e3 for sample in samples]
    spent = [sample["cpu_seconds"] for sample in samples]
    return {
        "first_token_ms": statistics.median(sample["first"] for sample in samples),
        "tokens_per_s": statistics.median(_decoding(sample) for sample in samples),
        **_percentiles("token_", (gap for sample in samples for gap in sample["others"])),
        "seconds": statistics.median(whole),
        "cpu_seconds": statistics.median(spent),
        "cpu_percent": statistics.median(100 * cpu / wall for cpu, wall in zip(spent, whole, strict=True)),
    }


def _percentiles(prefix: str, values: Iterable[float]) -> dict[str, float]:
    middle, high = np.quantile([*values], [0.5, 0.95])
    return {f"{prefix}p50_ms": float(middle), f"{prefix}p95_ms": float(high)}
