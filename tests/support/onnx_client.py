"""A client of exported ONNX decoders that is not ours: plain onnxruntime, by the documented names."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lightgpt2.conversions.onnx.decoder import Decoder
from lightgpt2.conversions.onnx.writer import Forms, Stored
from lightgpt2.runtime.ort import clips_products

Array = NDArray[Any]


def plain_session(graph: Path) -> onnxruntime.InferenceSession:
    """A session on one thread, with the documented option that a client needs on x86 without VNNI.

    There the kernels for 8-bit products clip sums to 16 bits. No bound on the result holds for that: it depends on the inputs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if clips_products():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Client:
    """Runs `model.onnx` of a folder on one thread."""

    def __init__(self, folder: Path) -> None:
        self.session = plain_session(folder / "model.onnx")
        inputs = {each.name: each for each in self.session.get_inputs()}
        assert {name for name in inputs if "past" not in name} == {"input_ids", "attention_mask", "position_ids"}
        self.pasts = {name: inputs[name].shape[1::2] for name in inputs if name.startswith("past_key_values.")}
        self.names = [each.name for each in self.session.get_outputs()]
        assert self.names == ["logits", *(name.replace("past_key_values.", "present.") for name in self.pasts)]

    def run(
        self, ids: Array, mask: Array, past: dict[str, Array] | None = None, keep: int | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Logits, and the cache with the new tokens.

        Args:
            ids: `[B, S]`.
            mask: `[B, P + S]`.
            past: The cache of P tokens.
            keep: Of how many of the last positions logits are wanted; None: it is not said.
        """
        places = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        empty = {name: np.zeros((len(ids), heads, 0, size), np.float32) for name, (heads, size) in self.pasts.items()}
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places, **(past or empty)}
        if keep is not None:
            feeds["num_logits_to_keep"] = np.array(keep, np.int64)
        logits, *presents = self.session.run(self.names, feeds)
        return logits, dict(zip(self.pasts, presents, strict=True))


def write_onnx(model: PreTrainedModel, folder: Path, forms: Forms | None = None, stored: Stored | None = None) -> Path:
    """Writes a model's graph and weights to a folder."""
    folder.mkdir(exist_ok=True)
    Decoder.into(folder, model, forms or Forms(), stored)
    return folder


@torch.no_grad()
def torch_logits(model: PreTrainedModel, ids: Array, mask: Array | None = None) -> Array:
    """What transformers says, without a cache."""
    mask = np.ones_like(ids) if mask is None else mask
    places = np.maximum(mask.cumsum(axis=1) - 1, 0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    tensors = {key: torch.from_numpy(value) for key, value in given.items()}
    found: Array = model(**tensors, use_cache=False).logits.numpy()
    return found


def off(found: Array, wanted: Array) -> float:
    """The largest error, as a share of the largest number."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
