"""ONNX Runtime on a folder of `lightgpt2 export`, by the engine that `lightgpt2.load` and `lightgpt2 generate` run."""

import json

import numpy as np
import onnx
import onnxruntime

from benchmarks.engines.base import Engine, Ids, Logits
from lightgpt2.runtime.onnx_engine import OnnxEngine as Runtime


class OnnxEngine(Engine):
    """The cache is allocated once and written in place; of a prompt the last position's logits alone are asked for."""

    def prepare(self) -> None:
        """Its operators, which it registers with a process's first session."""
        one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        same = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "nothing", [one], [same])
        model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def load(self, capacity: int) -> None:
        """Makes the session."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        context = config.get("n_positions") or config["max_position_embeddings"]
        self._runtime = Runtime(self.folder / "model.onnx", context, self.threads)
        self._room = capacity

    def start(self, prompt: Ids) -> int:
        """One pass over the prompt into the start of the cache."""
        logits = self._runtime.prefill(prompt[None], np.ones((1, len(prompt)), np.int64), self._room - len(prompt))
        return int(np.argmax(logits[0]))

    def step(self, token: int) -> int:
        """One pass over one token."""
        return int(np.argmax(self._runtime.decode(np.array([token]))[0]))

    def forward(self, ids: Ids) -> Logits:
        """One pass from an empty cache."""
        return np.asarray(self._runtime.logits(ids, np.ones_like(ids)), np.float32)

    def describe(self) -> str:
        """Version."""
        return f"onnxruntime {onnxruntime.__version__}"
