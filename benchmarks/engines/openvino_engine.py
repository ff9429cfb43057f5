"""OpenVINO: stateful graphs of decoders, whose key-value cache lives in the engine's own variables, and encoders."""

from pathlib import Path

import numpy as np
import openvino

from lightgpt2.runtime.engines import Floats, Ints

openvino.Core().get_versions("CPU")  # loads what computes on processors


class OpenVino:
    """A compiled graph, with all inputs that it may have."""

    def __init__(self, file: Path, threads: int, hint: str | None) -> None:
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        settings |= {"INFERENCE_PRECISION_HINT": hint} if hint else {}
        self.compiled = openvino.Core().compile_model(file, "CPU", settings)
        self._request = self.compiled.create_infer_request()
        self._names = {name for port in self.compiled.inputs for name in port.get_names()}

    def _run(self, ids: Ints, past: int = 0) -> Floats:
        if not past:
            self._request.reset_state()
        rows, self._length = len(ids), past + ids.shape[1]
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, self._length), np.int64),
            "position_ids": np.tile(np.arange(past, self._length), (rows, 1)),
            "token_type_ids": np.zeros_like(ids),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        known = {name: value for name, value in inputs.items() if name in self._names}
        self._request.infer(known, share_inputs=True)
        return self._request.get_output_tensor(0).data

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        return self._run(ids)[:, -1]

    def decode(self, tokens: Ints) -> Floats:
        return self._run(tokens[:, None], self._length)[:, -1]

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        return self._run(ids)


def decoder(folder: Path, threads: int, hint: str | None = None) -> tuple[OpenVino, str]:
    """A folder with `openvino_model.xml`; the hint is an inference precision, which OpenVINO chooses otherwise."""
    return encoder(folder / "openvino_model.xml", threads, hint)


def encoder(file: Path, threads: int, hint: str | None = None) -> tuple[OpenVino, str]:
    """An OpenVINO file, with the same hint."""
    model = OpenVino(file, threads, hint)
    names = {"computes in": "INFERENCE_PRECISION_HINT", "cache": "KV_CACHE_PRECISION"}
    chosen = [f"{key} {model.compiled.get_property(name).to_string()}" for key, name in names.items()]
    return model, f"OpenVINO {openvino.__version__}, {', '.join(chosen)}"
