"""An arm that is an exported ONNX folder: run and profiled by ONNX Runtime, on the processor."""

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import cuda_problem
from lightgpt2.measure.base import PROFILED_STEPS, PROFILED_TOKENS, Operator, Worker
from lightgpt2.models.files import atomic_file
from lightgpt2.runtime.engines import Ints
from lightgpt2.runtime.folder import ONNX, open_export
from lightgpt2.runtime.loading import context_of
from lightgpt2.runtime.onnx_engine import OnnxEngine
from lightgpt2.runtime.ort import runtime


class OnnxWorker(Worker):
    """An exported folder, computed by as many threads as torch would take. See `Worker`."""

    def _prepare(self) -> None:
        if self.device != "cpu":
            raise UserError([cuda_problem(self.arm.source)])
        folder = Path(self.arm.source).expanduser()
        self._graph, self._bytes = folder / ONNX, sum(open_export(folder)["bytes"].values())
        self._context, self._threads = context_of(folder, "MODEL"), torch.get_num_threads()

    def _load(self) -> dict[str, float | None]:
        self.engine = OnnxEngine(self._graph, self._context, self._threads)
        self.vocabulary = self.engine.vocabulary
        return {"weights_mb": self._bytes / 1e6, "embedding_mb": None}  # which is a matter of how the graph holds it

    def _profile(self, ids: Tensor, trace: Path) -> tuple[list[Operator], str]:
        forward, prompt = ids.numpy(), self.prompt.numpy()
        return profiled(self._graph, self._context, forward, prompt, PROFILED_TOKENS, self._threads, trace)

    def _forward(self, ids: Tensor) -> None:
        self.engine.logits(ids.numpy(), np.ones(ids.shape, np.int64))

    def _generate(self, count: int) -> tuple[list[float], float]:
        """Greedy, as for the other arms."""
        ids, times = self.prompt.numpy(), list[float]()
        spent, started = time.process_time(), time.perf_counter()
        logits = self.engine.prefill(ids, np.ones_like(ids), count)
        while True:
            tokens = logits.argmax(axis=1)
            times.append(time.perf_counter())
            if len(times) == count:
                return [started, *times], time.process_time() - spent
            logits = self.engine.decode(tokens)


def profiled(
    graph: Path, context: int, forward: Ints, prompt: Ints, tokens: int, threads: int, trace: Path
) -> tuple[list[Operator], str]:
    """Profile a few steps, after one that is thrown away: a forward pass of `[1, T]`, and `tokens` new ones after a prompt.

    ONNX Runtime profiles whole sessions only, so an engine is made for it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        engine = OnnxEngine(graph, context, threads, profile=str(Path(scratch) / "profile"))
        for _ in range(1 + PROFILED_STEPS):
            engine.logits(forward, np.ones_like(forward))
            logits = engine.prefill(prompt, np.ones_like(prompt), tokens)
            for _ in range(tokens - 1):
                logits = engine.decode(logits.argmax(axis=1))
        first = min(session.get_profiling_start_time_ns() for session in engine.sessions)
        kept = [event for session in engine.sessions for event in _events(session, first)]
    with atomic_file(trace) as temporary:
        temporary.write_text(json.dumps({"traceEvents": kept}), encoding="utf-8")
    spent: dict[str, list[float]] = defaultdict(list)
    for event in kept:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]].append(event["dur"] / 1e3)
    attention = ", ".join(sorted(name for name in spent if "Attention" in name))
    return [(name, len(times), sum(times)) for name, times in spent.items()], attention or "plain matrix products"


def _events(session: runtime.InferenceSession, first: int) -> list[dict[str, Any]]:
    """What happened in a session but for the step that is thrown away, timed in us from `first` (ns) on."""
    late = (session.get_profiling_start_time_ns() - first) / 1e3
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    warm = starts[len(starts) // (1 + PROFILED_STEPS)]  # every step runs it as often
    return [event | {"ts": event["ts"] + late} for event in events if event["ts"] >= warm]
