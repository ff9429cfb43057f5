"""Speed and memory of models, each in a fresh process, measured in turns.

Every arm (a model in a precision with a kind of attention) has its own process, which stays alive and waits while the others
measure. Rounds interleave the arms: a machine that is slower for a minute is slower for all of them, and the ratio of two arms
is taken inside a round, where both saw the same machine.
"""

import contextlib
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import Arm
from lightgpt2.measure.child import Children, turns
from lightgpt2.models.ledger import versions
from lightgpt2.models.workloads import Workload

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


def measure(
    arms: Sequence[Arm], workloads: Sequence[Workload], rounds: int, device: str, traces: Path, bar: bool = True
) -> dict[str, Any]:
    """Measure all arms on `cpu` or `cuda:N`; one that fails is reported, and the others go on.

    Returns figures of the machine, the settings and every arm, for JSON: of a workload under its section and setting. Ratios
    are to the first arm. Traces of the profiler are files in a folder.

    Raises:
        Stopped: It was interrupted. It has the figures of the rounds that all measured arms have done.
    """
    loaded, profiles = dict[str, Any](), dict[str, Any]()
    measured: dict[str, list[Round]] = {arm.name: [] for arm in arms}
    stop: KeyboardInterrupt | None = None
    progress = tqdm(total=len(arms) * rounds, leave=False, disable=None if bar else True)
    with progress, Children("lightgpt2.measure.worker", [arm.name for arm in arms]) as children:

        def ask(doing: str, name: str, do: str, **request: Any) -> dict[str, Any]:
            progress.set_description(f"{doing} {name}")
            return children.ask(name, do, **request)

        common = {"workloads": workloads, "device": device}
        try:
            for arm in arms:
                loaded[arm.name] = ask("Loading", arm.name, "load", arm=arm, **common)
            for arm in turns(arms, rounds):
                measured[arm.name].append(ask("Measuring", arm.name, "round"))
                progress.update()
            for arm in arms:
                trace = traces / f"{'-'.join(arm.name.replace('/', ' ').split())}.json"
                profiles[arm.name] = ask("Profiling", arm.name, "profile", trace=trace)
        except KeyboardInterrupt as interrupted:
            stop = interrupted
            needed = measured if device == "cpu" else profiles  # without which nothing says that CUDA's kernels ran
            missing = (arm.name for arm in arms if not needed.get(arm.name) and arm.name not in children.errors)
            children.errors |= dict.fromkeys(missing, "it was stopped before that")
    done = {name: found for name, found in measured.items() if name not in children.errors}
    count = min(map(len, done.values()), default=0)
    done = {name: found[:count] for name, found in done.items()}
    shown = ratios({name: speeds_of(found, workloads) for name, found in done.items()})
    results: list[dict[str, Any]] = []
    for arm in arms:
        about = {key: value for key, value in asdict(arm).items() if key != "trust_remote_code"}
        if arm.name in children.errors:
            results.append(about | {"error": children.errors[arm.name]})
        else:
            figures = loaded[arm.name]["sizes"] | summary(done[arm.name], workloads) | {"ratio": shown[arm.name]}
            results.append(about | figures | profiles.get(arm.name, {}))
    results = json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4))  # more is noise
    found = next((each["machine"] for each in loaded.values() if each), {"device": device.partition(":")[0]})
    settings = {"rounds": count or rounds, "workloads": {each.key: each.about for each in workloads}}
    result = {"machine": found, "settings": settings, "arms": results}
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
    card = {}
    if kind == "cuda":
        name = f"{torch.cuda.get_device_name()}, {name}"
        card = {"memory_mb": round(torch.cuda.get_device_properties(device).total_memory / 1e6, 1)}
    return {"name": name, "device": kind, "threads": torch.get_num_threads(), **card, "versions": found}


def speeds_of(rounds: Sequence[Round], workloads: Sequence[Workload]) -> dict[str, list[float]]:
    """One arm's speed in each round, by workload."""
    return {each.key: [each.speed(measured[each.key]) for measured in rounds] for each in workloads}


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


def summary(rounds: Sequence[Round], workloads: Sequence[Workload]) -> dict[str, Any]:
    """One arm's figures over all rounds by section and setting, and the peaks of its memory."""
    sections = defaultdict[str, dict[str, dict[str, float]]](dict)
    for each in workloads:
        sections[each.section][each.setting] = each.figures([measured[each.key] for measured in rounds])
    return {**rounds[-1]["peaks"], **sections}
