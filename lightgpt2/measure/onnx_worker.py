"""An arm that is an exported ONNX folder: run and profiled by ONNX Runtime, on the processor."""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import cuda_problem
from lightgpt2.measure.base import PROFILED_STEPS, Operator, Steps, Worker
from lightgpt2.models.families import CLASSIFICATION, SEQ2SEQ, predicts
from lightgpt2.models.files import atomic_file
from lightgpt2.models.loading import folder_config
from lightgpt2.runtime.beams import Beams
from lightgpt2.runtime.folder import ONNX, open_export
from lightgpt2.runtime.onnx_classifier import OnnxClassifier
from lightgpt2.runtime.onnx_encoder_decoder import OnnxEncoderDecoder
from lightgpt2.runtime.onnx_recurrent import onnx_decoder
from lightgpt2.runtime.options import Settings
from lightgpt2.runtime.ort import runtime


class OnnxWorker(Worker):
    """An exported folder, computed by as many threads as torch would take. See `Worker`."""

    def _prepare(self) -> None:
        if self.device != "cpu":
            raise UserError([cuda_problem(self.arm.source)])
        folder = self._folder = Path(self.arm.source).expanduser()
        self._bytes = sum(open_export(folder)["bytes"].values())
        self._config, self._threads = folder_config(folder, "MODEL"), torch.get_num_threads()

    def _open(self, profile: str | None = None) -> Any:
        kind = predicts(self._config.architectures)
        about: dict[str, Any] = {"threads": self._threads, "profile": profile}
        if kind == SEQ2SEQ:
            return OnnxEncoderDecoder(self._folder, **about)
        if kind == CLASSIFICATION:
            return OnnxClassifier(self._folder / ONNX, **about)
        return onnx_decoder(self._folder / ONNX, self._config.max_position_embeddings, **about)

    def _load(self) -> dict[str, float | None]:
        self.engine = self._open()
        self.vocabulary = self._config.vocab_size
        return {"weights_mb": self._bytes / 1e6, "embedding_mb": None}  # which is a matter of how the graph holds it

    def _profile(self, steps: Steps, trace: Path) -> tuple[list[Operator], str]:
        def step(engine: Any) -> None:
            self.engine = engine
            for each in steps.values():
                each()

        return profiled(self._open, step, trace)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> None:
        tokens, seen = ids.numpy(), np.ones(ids.shape, np.int64) if mask is None else mask.numpy()
        if isinstance(self.engine, OnnxEncoderDecoder):
            self.engine.logits(tokens, seen, tokens)
        elif isinstance(self.engine, OnnxClassifier):
            self.engine.logits({"input_ids": tokens, "attention_mask": seen})
        else:
            self.engine.logits(tokens, seen)

    def encode(self, ids: Tensor) -> None:
        if isinstance(self.engine, OnnxEncoderDecoder):
            self.engine.read(ids.numpy(), np.ones(ids.shape, np.int64))
        else:
            self._begin(ids, 1)

    def generate(self, prompt: Tensor, count: int) -> tuple[list[float], float]:
        """Greedy, as for the other arms."""
        times = list[float]()
        spent, started = time.process_time(), time.perf_counter()
        logits = self._begin(prompt, count)
        while True:
            tokens = logits.argmax(axis=1)
            times.append(time.perf_counter())
            if len(times) == count:
                return [started, *times], time.process_time() - spent
            logits = self.engine.decode(tokens)

    def search(self, prompt: Tensor, count: int, beams: int) -> None:
        if not isinstance(self.engine, OnnxEncoderDecoder):
            raise UserError(f"an exported decoder generates greedily: {beams} beams cannot be measured")
        search = Beams(Settings(num_beams=beams), len(prompt), self._start, count)
        logits = self._begin(prompt, count)
        while True:
            tokens, rows = search(logits)
            if search.done:
                return
            logits = self.engine.decode(tokens, rows)

    def _begin(self, prompt: Tensor, count: int) -> Any:
        """The logits of the first token behind a prompt, or of the target of a source."""
        ids = prompt.numpy()
        mask = np.ones_like(ids)
        if isinstance(self.engine, OnnxEncoderDecoder):
            return self.engine.prefill(ids, mask, np.tile(np.array(self._start, np.int64), (len(ids), 1)))
        return self.engine.prefill(ids, mask, count)

    @property
    def _start(self) -> list[int]:
        """How targets begin: with any token, for what it takes."""
        return [getattr(self._config, "decoder_start_token_id", None) or 0]


def profiled(open_engine: Callable[[str], Any], step: Callable[[Any], None], trace: Path) -> tuple[list[Operator], str]:
    """Profile a few steps of an engine, after one that is thrown away; the operators, and the kind of attention that ran.

    ONNX Runtime profiles whole sessions only, so an engine is opened for it, with the prefix of its profile's files.
    """
    with tempfile.TemporaryDirectory() as scratch:
        engine = open_engine(str(Path(scratch) / "profile"))
        for _ in range(1 + PROFILED_STEPS):
            step(engine)
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
