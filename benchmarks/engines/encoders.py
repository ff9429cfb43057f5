"""Encoders in PyTorch, ONNX Runtime and OpenVINO; each takes a batch of tokens without padding."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.engines.base import Engine, Ids, Logits


def feed(ids: Ids) -> dict[str, Ids]:
    """All inputs that an encoder may have."""
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


class TorchEncoder(Engine):
    """A transformers folder; the option `quantize` is `int8` for dynamic quantization."""

    def load(self, capacity: int) -> None:
        import torch
        from transformers import AutoModel

        torch.set_num_threads(self.threads)
        model = AutoModel.from_pretrained(self.folder, dtype=torch.float32).eval()
        self._unknown = {"token_type_ids"} if model.config.model_type != "bert" else set()
        if self.options:
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        self._model = model

    def logits(self, ids: Ids) -> Logits:
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in feed(ids).items() if name not in self._unknown}
        with torch.inference_mode():
            states: Logits = self._model(**tensors).last_hidden_state.numpy()
        return states


class OnnxEncoder(Engine):
    """An ONNX file; with the option `exact` as `lightgpt2` runs its own, else as ONNX Runtime does by default."""

    def load(self, capacity: int) -> None:
        from lightgpt2.runtime import ort

        options = ort.session_options(self.threads) if self.options else ort.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = ort.runtime.InferenceSession(self.folder, options, providers=["CPUExecutionProvider"])
        self._names, self._run = [value.name for value in session.get_inputs()], partial(session.run, None)

    def logits(self, ids: Ids) -> Logits:
        given = feed(ids)
        states: Logits = self._run({name: given[name] for name in self._names})[0]
        return states


class OpenVinoEncoder(Engine):
    """An OpenVINO file; the option `hint` is an inference precision."""

    def load(self, capacity: int) -> None:
        import openvino

        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        if self.options:
            settings["INFERENCE_PRECISION_HINT"] = self.options["hint"]
        model = openvino.Core().compile_model(self.folder, "CPU", settings)
        self._names, self._request = {n for value in model.inputs for n in value.names}, model.create_infer_request()

    def logits(self, ids: Ids) -> Logits:
        given = {name: value for name, value in feed(ids).items() if name in self._names}
        return np.array(next(iter(self._request.infer(given).values())))
