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


class Seq2SeqClient:
    """Runs the three graphs of an encoder-decoder on one thread, by the names that the ecosystem's clients know."""

    def __init__(self, folder: Path) -> None:
        names = ("encoder_model", "decoder_model", "decoder_with_past_model")
        self.encoder, self.first, self.next = (plain_session(folder / f"{name}.onnx") for name in names)
        inputs, outputs = (
            [
                [each.name for each in getattr(session, f"get_{what}")()]
                for session in (self.encoder, self.first, self.next)
            ]
            for what in ("inputs", "outputs")
        )
        assert inputs[0] == ["input_ids", "attention_mask"]
        assert outputs[0] == ["last_hidden_state"]
        assert inputs[1] == ["input_ids", "encoder_hidden_states", "encoder_attention_mask"]
        assert inputs[2][:2] == ["input_ids", "encoder_attention_mask"]
        self.pasts = inputs[2][2:]
        presents = {name.replace("past_key_values.", "present.") for name in self.pasts}
        assert {*outputs[1]} == {"logits", *presents}
        assert {*outputs[2]} == {"logits", *(name for name in presents if ".decoder." in name)}

    def generate(self, ids: Array, mask: Array, start: int, count: int) -> Array:
        """Greedy tokens `[B, count]`, whatever they are."""
        (states,) = self.encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        tokens = np.full((len(ids), 1), start)
        feeds = {"input_ids": tokens, "encoder_hidden_states": states, "encoder_attention_mask": mask}
        found = self._run(self.first, feeds)
        cache = {name: found[name.replace("past_key_values.", "present.")] for name in self.pasts}
        written = [found["logits"][:, -1].argmax(axis=1)]
        while len(written) < count:
            found = self._run(self.next, {"input_ids": written[-1][:, None], "encoder_attention_mask": mask, **cache})
            cache |= {name.replace("present.", "past_key_values."): v for name, v in found.items() if name != "logits"}
            written.append(found["logits"][:, -1].argmax(axis=1))
        return np.stack(written, axis=1)

    def _run(self, session: onnxruntime.InferenceSession, feeds: dict[str, Array]) -> dict[str, Array]:
        names = [each.name for each in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))


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
