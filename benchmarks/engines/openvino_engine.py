"""OpenVINO on a stateful graph: the key-value cache lives in the engine's own variables."""

from typing import Any

import numpy as np
import openvino

from benchmarks.engines.base import Engine, Ids, Logits


class OpenVinoEngine(Engine):
    """A folder with `openvino_model.xml`; the option `hint` is an inference precision, `default` leaves it to OpenVINO."""

    def prepare(self) -> None:
        """What computes on processors."""
        openvino.Core().get_versions("CPU")

    def load(self, capacity: int) -> None:
        """Reads and compiles the graph."""
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads}
        if self.options["hint"] != "default":
            settings["INFERENCE_PRECISION_HINT"] = self.options["hint"]
        self._compiled = openvino.Core().compile_model(self.folder / "openvino_model.xml", "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._names = {name for port in self._compiled.inputs for name in port.get_names()}

    def _run(self, ids: Ids, past: int) -> Logits:
        rows, length = ids.shape
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, past + length), np.int64),
            "position_ids": np.tile(np.arange(past, past + length), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        known = {name: value for name, value in inputs.items() if name in self._names}
        self._request.infer(known, share_inputs=True)
        logits: Logits = self._request.get_output_tensor(0).data
        return logits

    def start(self, prompt: Ids) -> int:
        """Empty variables and one pass over the prompt."""
        self._request.reset_state()
        self._length = len(prompt)
        return int(np.argmax(self._run(prompt[None], 0)[0, -1]))

    def step(self, token: int) -> int:
        """One pass over one token."""
        logits = self._run(np.array([[token]]), self._length)
        self._length += 1
        return int(np.argmax(logits[0, -1]))

    def forward(self, ids: Ids) -> Logits:
        """One pass from empty variables."""
        self._request.reset_state()
        return self._run(ids, 0)

    def describe(self) -> str:
        """Version, and what it chose to compute in and to keep the cache in."""
        chosen = [
            f"{key} {self._compiled.get_property(name).to_string()}"
            for key, name in (("computes in", "INFERENCE_PRECISION_HINT"), ("cache", "KV_CACHE_PRECISION"))
        ]
        return f"OpenVINO {openvino.__version__}, {', '.join(chosen)}"
