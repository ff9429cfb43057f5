"""What a GGUF file holds and transformers passes over.

Biases, rotary scaling and special tokens are read here; other tensors, and settings that change the result, are refused.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.errors import UserError

_FACTORS = "rope_freqs.weight"  # by which pairs of a head's channels turn slower
_BIASES = {"attention_bias": "attn_output.bias", "mlp_bias": "ffn_down.bias"}  # by the key that makes room for them
_PARTIAL = {"attention_bias": "attn_q.bias", "mlp_bias": "ffn_gate.bias"}  # what such a file has at least
# What changes the result, by the value that does not.
_COMPUTES = {
    "logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0, "attention.scale": None,
    "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0, "attention.sliding_window": 0, "expert_count": 0, "rope.scaling.attn_factor": 1.0,
}  # fmt: skip
# Rotary scaling, by transformers' names.
_SCALING = {
    "rope_type": "type", "factor": "factor", "original_max_position_embeddings": "original_context_length",
    "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow",
}  # fmt: skip


@lru_cache(maxsize=4)
def _contents(file: Path, _: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The metadata but for the tokenizer's lists, and the tensors by name; the file's time of change makes it another one."""
    from gguf import GGUFReader  # slow to import, and needed for this only

    reader = GGUFReader(file)
    short = {name: field for name, field in reader.fields.items() if len(field.data) == 1}
    said = {name: field.contents() for name, field in short.items()}
    return said, {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}


def _read(file: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    return _contents(file, file.stat().st_mtime_ns)


def complete(config: PretrainedConfig, file: Path, key: str) -> None:
    """Give a configuration that transformers read from a file the biases, rotary scaling and special tokens that the file has.

    Raises:
        UserError: The file says something that would be computed otherwise; the message names `key`.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    said, tensors = _read(file)
    architecture = said["general.architecture"]
    for name, suffix in _PARTIAL.items():
        if hasattr(config, name) and any(tensor.endswith((suffix, _BIASES[name])) for tensor in tensors):
            setattr(config, name, True)
    for name, place in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if (id_ := said.get(f"tokenizer.ggml.{place}_token_id")) is not None:
            setattr(config, f"{name}_token_id", id_)
    read = GGUF_CONFIG_MAPPING.get(architecture, {})
    about = {name: said[f"{architecture}.{name}"] for name in _COMPUTES if f"{architecture}.{name}" in said}
    unread = [f"{name} {value}" for name, value in about.items() if name not in read and value != _COMPUTES[name]]
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    scaling = {
        name: said[place] for name, end in _SCALING.items() if (place := f"{architecture}.rope.scaling.{end}") in said
    }
    kind = scaling.get("rope_type", "none")
    if kind not in ("none", "linear", "yarn"):
        unread.append(f"rotary scaling of type {kind}")
    if (factors := tensors.get(_FACTORS)) is not None:
        found = _of_factors(factors, rope["rope_theta"]) if kind == "none" else None
        unread += [] if found else ["rotary factors of no kind that is known"]
        rope.update(found or {})
    elif kind != "none":
        rope.update(scaling)
    if unread:
        raise UserError(f"{key}: {file} has {', '.join(unread)}, which is not read; give the model's folder")


def _of_factors(factors: NDArray[Any], theta: float) -> dict[str, Any] | None:
    """The rotary parameters that give these factors `[d/2]`; None if there are none.

    Llama 3's: 1 for short waves, the largest for long ones, and between them 1 / f = (1 - s) / factor + s, where s is linear in
    the number of turns that a pair takes in the original context.
    """
    factors = factors.astype(np.float64)
    if np.allclose(factors, factors[0], rtol=1e-6):
        return {"rope_type": "linear", "factor": float(factors[0])} if factors[0] != 1 else {"rope_type": "default"}
    turns = theta ** -(np.arange(len(factors)) / len(factors)) / (2 * math.pi)  # a token
    most = round(float(factors.max()), 5)
    shares = (1 / factors - 1 / most) / (1 - 1 / most)
    between = (shares > 1e-4) & (shares < 1 - 1e-4)
    candidates = [4.0]
    if between.sum() > 1:
        at_zero = np.polyfit(turns[between], shares[between], 1)[1]
        candidates.insert(0, float(1 - 1 / at_zero))
    for high in candidates:
        if between.any() and high > 1:
            original = round(float(np.mean((shares[between] * (high - 1) + 1) / turns[between])))
            found = np.clip((original * turns - 1) / (high - 1), 0, 1)
            if np.allclose(1 / ((1 - found) / most + found), factors, rtol=1e-3):
                edges = {"low_freq_factor": 1.0, "high_freq_factor": round(high, 4)}
                return {"rope_type": "llama3", "factor": most, **edges, "original_max_position_embeddings": original}
    return None


def check_read(model: PreTrainedModel, file: Path, key: str) -> None:
    """Raise a `UserError` naming tensors of the file that the model was loaded from and has no place for."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    said, tensors = _read(file)
    processor = TENSOR_PROCESSORS.get(said["general.architecture"], TensorProcessor)(config=model.config.to_dict())
    placed = get_gguf_hf_weights_map(model, processor)
    if left := sorted(tensors.keys() - placed.keys() - {_FACTORS}):
        what = f"{file} has {len(left)} tensors that the model has no place for, first {left[0]}"
        raise UserError(f"{key}: {what}; give the model's folder")
