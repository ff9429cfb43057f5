"""Engines in one interleaved run: each in its own process, measured in turns, its logits compared with the baseline's."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, markdown, ratios
from lightgpt2.measure.child import ArmFailed, Children, turns

_DISTURBED = 0.1
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".data", ".bin", ".xml")


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    engine: str  # `module:function` in `benchmarks.engines`
    files: str = ""  # what the engine runs
    options: dict[str, Any] = field(default_factory=dict)  # for the engine


def measure(arms: list[Arm], files_of: Callable[[Arm], Path], settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """All figures, for JSON: by name what an arm says of itself and its `measures`; and why others `failed`.

    The first arm is the baseline; `files_of` gives an arm's files, or raises `ArmFailed`; the settings are those of
    `benchmarks.engines.worker.Worker`.
    """
    about: dict[str, dict[str, Any]] = {}
    found: dict[str, list[dict[str, tuple[float, float]]]] = {arm.name: [] for arm in arms}
    with Children("benchmarks.engines.worker", [arm.name for arm in arms], required={arms[0].name}) as children:
        reference = None
        for arm in arms:
            try:
                files = files_of(arm)
            except ArmFailed as failure:
                children.errors[arm.name] = str(failure)
                continue
            request = {"engine": arm.engine, "files": files, "options": arm.options, "settings": settings}
            if loaded := children.ask(arm.name, "load", **request):
                logits = loaded.pop("logits")
                reference = logits if reference is None else reference
                error = difference(logits, reference)
                about[arm.name] = loaded | {"error": error, "file_mb": weights_mb(files), "measures": {}}
        for arm in turns(arms, rounds):
            found[arm.name].append(children.ask(arm.name, "round"))
        failed = children.errors
    about = {name: about[name] for name in found if name not in failed}
    for what in found[arms[0].name][0]:
        times = {name: [each[what][0] for each in found[name]] for name in about}
        for name, ratio in ratios(times, arms[0].name).items():
            disturbed = max(each[what][1] for each in found[name])
            figures = {"ms": statistics.median(times[name]), "rounds_ms": times[name], "ratio": ratio}
            about[name]["measures"][what] = {**figures, "disturbed": disturbed}
    return {"machine": machine(), "settings": settings, "rounds": rounds, "arms": about, "failed": failed}


def weights_mb(files: Path) -> float:
    """Bytes of the weights and the graph, in 10^6."""
    parts = files.iterdir() if files.is_dir() else files.parent.glob(f"{files.stem}.*")
    return sum(path.stat().st_size for path in parts if path.suffix in _WEIGHTS) / 1e6


def difference(logits: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """Root mean squared difference over the reference's own deviation; not a number where the vocabularies differ."""
    if logits.shape != reference.shape:
        return float("nan")
    return float(np.sqrt(np.mean((logits - reference) ** 2)) / reference.std())


def table(result: dict[str, Any]) -> str:
    """Ratios to the baseline, median (lowest..highest of the rounds), and what an engine says of itself."""
    rows, notes, disturbed = [], [], []
    for name, arm in result["arms"].items():
        cells = []
        for what, found in arm["measures"].items():
            cells.append("{:.2f}: {:.2f}x ({:.2f}..{:.2f})".format(found["ms"], *found["ratio"]))
            if found["disturbed"] > _DISTURBED:
                busy = f"other processes kept {found['disturbed']:.2f} processors busy in the worst round"
                disturbed.append(f"- {name}, {what}: {busy}")
        rows.append([name, *cells, f"{arm['file_mb']:.0f}", f"{arm['peak_mb']:.0f}", f"{arm['error']:.3g}"])
        notes.append(f"- {name}: {arm['about']}")
    measures = (f"{what}, ms: ratio" for what in next(iter(result["arms"].values()))["measures"])
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    return "\n".join([
        markdown(["engine", *measures, "file MB", "peak MB", "error"], rows), "",
        f"{result['machine']}. {result['rounds']} rounds, {settings}.", "", *notes, *disturbed,
        *(f"- {name}: not measured: {reason}" for name, reason in result["failed"].items()),
    ])  # fmt: skip
