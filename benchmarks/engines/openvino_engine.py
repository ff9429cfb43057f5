"""OpenVINO on a stateful graph: the key-value cache lives in the engine's own variables."""

from typing import Any

import numpy as np
import openvino

from benchmarks.engines.base import Engine, Ids, Logits


class OpenVinoEngine(Engine):
    """A folder with `openvino_model.xml`; the option `hint` is an inference precision, `default` leaves it to OpenVINO."""

    def prepare(self) -> None:
        """Loads what computes on processors."""
        openvino.Core().get_versions("CPU")

    def load(self, capacity: int) -> None:
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": self.threads}
        if self.options["hint"] != "default":
            settings["INFERENCE_PRECISION_HINT"] = self.options["hint"]
        self._compiled = openvino.Core().compile_model(self.folder / "openvino_model.xml", "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._names = {name for port in self._compiled.inputs for name in port.get_names()}

    def _run(self, ids: Ids, past: int = 0) -> Logits:
        if not past:
            self._request.reset_state()
        rows, self._length = len(ids), past + ids.shape[1]
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, self._length), np.int64),
            "position_ids": np.tile(np.arange(past, self._length), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        known = {name: value for name, value in inputs.items() if name in self._names}
        self._request.infer(known, share_inputs=True)
        logits: Logits = self._request.get_output_tensor(0).data
        return logits

    def prefill(self, prompt: Ids) -> Logits:
        return self._run(prompt[None])[0, -1]

    def decode(self, token: int) -> Logits:
        return self._run(np.array([[token]]), self._length)[0, -1]

    def logits(self, ids: Ids) -> Logits:
        return self._run(ids)

    def describe(self) -> str:
        """Version, and what it chose to compute in and to keep the cache in."""
        names = {"computes in": "INFERENCE_PRECISION_HINT", "cache": "KV_CACHE_PRECISION"}
        chosen = [f"{key} {self._compiled.get_property(name).to_string()}" for key, name in names.items()]
        return f"OpenVINO {openvino.__version__}, {', '.join(chosen)}"
