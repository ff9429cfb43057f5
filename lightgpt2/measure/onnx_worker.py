"""An arm that is an exported ONNX folder: run by ONNX Runtime, on the processor."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightgpt2.errors import UserError
from lightgpt2.measure.arms import cuda_problem
from lightgpt2.measure.measured import PROFILED_TOKENS, Measured, machine
from lightgpt2.measure.memory import Meter
from lightgpt2.measure.onnx_profiling import profiled
from lightgpt2.runtime.folder import open_export
from lightgpt2.runtime.loading import context_of
from lightgpt2.runtime.onnx_engine import OnnxEngine

_GRAPH = "model.onnx"


class OnnxWorker(Measured):
    """An exported folder and what can be asked of it; computed by as many threads as torch would take.

    Args:
        arm: What to load.
        settings: What to measure.
        device: `cpu`.

    Raises:
        UserError: It is to run elsewhere.
    """

    def load(self) -> dict[str, Any]:
        """Loads the graph and warms it up; its sizes, and the machine's description."""
        if self.device != "cpu":
            raise UserError(cuda_problem(self.arm.source))
        folder = Path(self.arm.source).expanduser()
        about = open_export(folder)
        self.graph, self.threads = folder / _GRAPH, torch.get_num_threads()
        self.meter = Meter(self.device)
        started = time.perf_counter()
        self.engine = OnnxEngine(self.graph, context_of(folder, "MODEL"), self.threads)
        seconds = time.perf_counter() - started
        sizes = {
            "weights_mb": sum(about["bytes"].values()) / 1e6,
            "embedding_mb": None,  # a matter of how the graph holds it
            "load_mb": self.meter.grown_mb(),
            "load_seconds": seconds,
        }
        self._prepare(self.engine.vocabulary)
        self._warm_up()
        return {"sizes": sizes, "machine": machine(self.device)}

    def profile(self, trace: str) -> dict[str, Any]:
        """Profiles a forward pass at batch 1 and a few decode steps, in sessions of their own.

        Args:
            trace: Where the Chrome trace goes.
        """
        forward, prompt = self._random(1, self.settings.forward_tokens).numpy(), self.prompt.numpy()
        context = self.engine.context
        found = profiled(self.graph, context, forward, prompt, PROFILED_TOKENS, self.threads, Path(trace))
        return {"operators": found.operators, "attention_kernel": found.attention_kernel, "trace": trace}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _forward(self, ids: Tensor) -> None:
        self.engine.logits(ids.numpy(), np.ones(ids.shape, np.int64))

    def _generate(self, count: int) -> tuple[list[float], float]:
        """See `Measured`; greedy, as for the other arms."""
        ids = self.prompt.numpy()
        times: list[float] = []
        spent, started = time.process_time(), time.perf_counter()
        logits = self.engine.start(ids, np.ones_like(ids), count)
        while True:
            tokens = logits.argmax(axis=1)
            times.append(time.perf_counter())
            if len(times) == count:
                return [started, *times], time.process_time() - spent
            logits = self.engine.step(tokens)
