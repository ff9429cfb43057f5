"""Where ONNX Runtime's time goes, operator by operator, by its own profiler."""

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.inference.profiling import ACTIVE, TOP, Profile
from lightgpt2.models.files import atomic_file
from lightgpt2.ort import open_session, runtime

Event = dict[str, Any]
Ints = NDArray[np.int64]

_PAST = "past_key_values."


def profiled(graph: Path, forward: Ints, prompt: Ints, tokens: int, threads: int, trace: Path) -> Profile:
    """Profiles a few steps, each a forward pass and a greedy generation, after one that is thrown away.

    ONNX Runtime profiles whole sessions only, so this is one of its own. It runs as any client of the graph's names does, whose
    cache grows with every token; the speeds that are reported are those of a cache that stays where it is. Of an export
    with `--prefill` the graph in the folder is profiled, not the one that is made of it.

    Args:
        graph: The `.onnx` file.
        forward: Tokens `[1, T]` of the forward pass.
        prompt: Tokens `[1, P]` that are continued.
        tokens: How many are generated.
        threads: Threads that compute.
        trace: Where the Chrome trace goes (it opens in Perfetto).
    """
    with tempfile.TemporaryDirectory() as scratch:
        session = open_session(graph, threads, str(Path(scratch) / "profile"))
        for _ in range(1 + ACTIVE):
            _run(session, forward, {})
            _generate(session, prompt, tokens)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kept = _after_runs(events, 1 + tokens)
    with atomic_file(trace) as temporary:
        temporary.write_text(json.dumps({"traceEvents": kept}), encoding="utf-8")
    return _read(kept)


def _generate(session: runtime.InferenceSession, ids: Ints, tokens: int) -> None:
    cache: dict[str, Any] = {}
    for _ in range(tokens):
        logits, cache = _run(session, ids, cache)
        ids = logits[:, -1:].argmax(axis=2)


def _run(session: runtime.InferenceSession, ids: Ints, cache: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Logits and the cache after tokens `[1, S]` that follow those in the cache."""
    inputs = {each.name: each.shape for each in session.get_inputs()}
    if not cache:
        empty = {name: (1, shape[1], 0, shape[3]) for name, shape in inputs.items() if name.startswith(_PAST)}
        cache = {name: np.empty(shape, np.float32) for name, shape in empty.items()}
    before = next(iter(cache.values())).shape[2]
    total = before + ids.shape[1]
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(before, total)[None],
        **cache,
    }
    wanted = ["logits", *(name.replace(_PAST, "present.") for name in cache)]
    logits, *present = session.run(wanted, {name: feeds[name] for name in inputs})
    return logits, dict(zip(cache, present, strict=True))


def _after_runs(events: list[Event], runs: int) -> list[Event]:
    """What happened after the first so many runs of a session."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    return [event for event in events if event["ts"] >= starts[runs]]


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
