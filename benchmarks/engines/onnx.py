"""ONNX Runtime on a folder of `lightgpt2 export`."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.engines.base import Engine, Ids, Logits


class OnnxEngine(Engine):
    """A preallocated cache that the graph updates in place: `past` and `present` are the same, longer than what is used.

    Of a prompt it asks for the last position's logits alone.
    """

    def load(self, capacity: int) -> None:
        """Makes the session and a cache for one sequence."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(self.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        past = [port for port in self._session.get_inputs() if port.name.startswith("past_key_values.")]
        self._inputs = {port.name for port in self._session.get_inputs()}
        # Of [B, heads, P, width] the second and the last are numbers.
        self._caches = {port.name: (port.shape[1], port.shape[3]) for port in past}
        self._vocabulary = self._session.get_outputs()[0].shape[2]
        self._optional = {port.name for port in self._session.get_overridable_initializers()}
        self._one = _Bound(self, 1, capacity, last_only=True)
        self._wide: dict[tuple[int, ...], _Bound] = {}

    def start(self, prompt: Ids) -> int:
        """One pass over the prompt into the start of the cache."""
        self._length = len(prompt)
        return int(np.argmax(self._one.run(prompt[None], 0)[0, -1]))

    def step(self, token: int) -> int:
        """One pass over one token."""
        logits = self._one.run(np.array([[token]]), self._length)
        self._length += 1
        return int(np.argmax(logits[0, -1]))

    def forward(self, ids: Ids) -> Logits:
        """One pass from an empty cache."""
        if ids.shape not in self._wide:
            self._wide = {ids.shape: _Bound(self, ids.shape[0], ids.shape[1], last_only=False)}
        return self._wide[ids.shape].run(ids, 0)

    def release(self) -> None:
        """Drops the buffers of the last batch."""
        self._wide.clear()

    def describe(self) -> str:
        """Version."""
        return f"onnxruntime {onnxruntime.__version__}"


class _Bound:
    """Buffers for a batch size, bound once: ones for the mask, positions, the cache, and logits by their length."""

    def __init__(self, engine: OnnxEngine, rows: int, capacity: int, last_only: bool) -> None:
        self._engine, self._rows = engine, rows
        self._kept = 1 if last_only and "num_logits_to_keep" in engine._optional else None
        self._binding = engine._session.io_binding()
        self._buffers: list[NDArray[np.float32]] = []
        for name, (heads, width) in engine._caches.items():
            buffer = np.zeros((rows, heads, capacity, width), np.float32)
            self._buffers.append(buffer)
            shape, where = buffer.shape, buffer.ctypes.data
            self._binding.bind_input(name, "cpu", 0, np.float32, shape, where)
            present = name.replace("past_key_values", "present")
            self._binding.bind_output(present, "cpu", 0, np.float32, shape, where)
        if self._kept:
            kept = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(self._kept, np.int64))
            self._binding.bind_ortvalue_input("num_logits_to_keep", kept)
        self._ones = np.ones(rows * capacity, np.int64)
        self._logits: dict[int, Logits] = {}

    def run(self, ids: Ids, past: int) -> Logits:
        length = ids.shape[1]
        positions = np.tile(np.arange(past, past + length), (self._rows, 1))
        mask = self._ones[: self._rows * (past + length)].reshape(self._rows, -1)
        for name, value in (("input_ids", ids), ("attention_mask", mask), ("position_ids", positions)):
            if name in self._engine._inputs:
                self._binding.bind_input(name, "cpu", 0, np.int64, value.shape, value.ctypes.data)
        kept = self._kept or length
        if kept not in self._logits:
            self._logits[kept] = np.empty((self._rows, kept, self._engine._vocabulary), np.float32)
        logits = self._logits[kept]
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._engine._session.run_with_iobinding(self._binding)
        return logits
