"""Where ONNX Runtime's time goes, operator by operator, by its own profiler."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.measure.profiling import ACTIVE, TOP, Profile
from lightgpt2.models.files import atomic_file
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.ort import runtime

Event = dict[str, Any]
Ints = NDArray[np.int64]


def profiled(graph: Path, context: int, forward: Ints, prompt: Ints, tokens: int, threads: int, trace: Path) -> Profile:
    """Profiles a few steps, each a forward pass and a greedy generation, after one that is thrown away.

    ONNX Runtime profiles whole sessions only, so those of an engine of its own.

    Args:
        graph: The `.onnx` file.
        context: How many positions the model has.
        forward: Tokens `[1, T]` of the forward pass.
        prompt: Tokens `[1, P]` that are continued.
        tokens: How many are generated, at least 2.
        threads: Threads that compute.
        trace: Where the Chrome trace goes (it opens in Perfetto).
    """
    with tempfile.TemporaryDirectory() as scratch:
        engine = OnnxEngine(graph, context, threads, profile=str(Path(scratch) / "profile"))
        for _ in range(1 + ACTIVE):
            engine.logits(forward, np.ones_like(forward))
            logits = engine.start(prompt, np.ones_like(prompt), tokens)
            for _ in range(tokens - 1):
                logits = engine.step(logits.argmax(axis=1))
        first = min(session.get_profiling_start_time_ns() for session in engine.sessions)
        kept = [event for session in engine.sessions for event in _events(session, first)]
    with atomic_file(trace) as temporary:
        temporary.write_text(json.dumps({"traceEvents": kept}), encoding="utf-8")
    return _read(kept)


def _events(session: runtime.InferenceSession, first: int) -> list[Event]:
    """What happened in a session but for the step that is thrown away, timed in us from `first` (ns) on."""
    late = (session.get_profiling_start_time_ns() - first) / 1e3
    events: list[Event] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    warm = starts[len(starts) // (1 + ACTIVE)]  # every step runs it as often
    return [event | {"ts": event["ts"] + late} for event in events if event["ts"] >= warm]


def _read(events: list[Event]) -> Profile:
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]].append(event["dur"] / 1e3)
    total = sum(map(sum, spent.values())) or 1.0
    longest = sorted(spent.items(), key=lambda item: -sum(item[1]))[:TOP]
    operators = [
        {"name": name, "calls": len(times), "self_ms": sum(times), "share": sum(times) / total, "device": "cpu"}
        for name, times in longest
    ]
    attention = sorted(name for name in spent if "Attention" in name)
    return Profile(operators, ", ".join(attention) or "plain matrix products", {})
