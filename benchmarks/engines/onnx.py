"""ONNX Runtime on a folder of `lightgpt2 export`, by the engine that `lightgpt2.load` and `lightgpt2 generate` run."""

import numpy as np

from benchmarks.engines.base import Engine, Ids, Logits
from lightgpt2.runtime import ort
from lightgpt2.runtime.loading import context_of
from lightgpt2.runtime.onnx_engine import OnnxEngine as Runtime


class OnnxEngine(Engine):
    """The cache is allocated once and written in place; of a prompt the last position's logits alone are asked for."""

    def prepare(self) -> None:
        """Registers its operators, which it does with a process's first session."""
        ort.clips_products()

    def load(self, capacity: int) -> None:
        self._runtime = Runtime(self.folder / "model.onnx", context_of(self.folder, "model"), self.threads)
        self._room = capacity

    def prefill(self, prompt: Ids) -> Logits:
        return self._runtime.prefill(prompt[None], np.ones((1, len(prompt)), np.int64), self._room - len(prompt))[0]

    def decode(self, token: int) -> Logits:
        return self._runtime.decode(np.array([token]))[0]

    def logits(self, ids: Ids) -> Logits:
        return np.asarray(self._runtime.logits(ids, np.ones_like(ids)), np.float32)

    def describe(self) -> str:
        return f"onnxruntime {ort.runtime.__version__}"
