"""What a GGUF file holds and transformers passes over, and weights by llama.cpp's names.

Biases, rotary scaling and special tokens are read here; other tensors, and settings that change the result, are refused.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import (
    GGUF_SUPPORTED_ARCHITECTURES,
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from lightgpt2.errors import UserError
from lightgpt2.models.families import family_of

_FACTORS = "rope_freqs.weight"  # by which pairs of a head's channels turn slower
# Tensors of a layer that has biases, by the key that makes room for them.
_BIASES = {"attention_bias": ("attn_q.bias", "attn_output.bias"), "mlp_bias": ("ffn_gate.bias", "ffn_down.bias")}
_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # the file's names of special tokens
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


class _Contents(NamedTuple):
    """What a file holds, without its weights and the tokenizer's lists."""

    said: dict[str, Any]
    tensors: frozenset[str]
    factors: NDArray[np.float64] | None

    @property
    def architecture(self) -> str:
        return str(self.said["general.architecture"])

    def setting(self, name: str) -> Any:
        """A value of the architecture; None if the file does not say it."""
        return self.said.get(f"{self.architecture}.{name}")


@lru_cache(maxsize=4)
def _contents(file: Path, _: int) -> _Contents:
    """Cached, since reading takes seconds; the file's time of change makes it another one."""
    reader = gguf.GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
    factors = next((tensor.data.astype(np.float64) for tensor in reader.tensors if tensor.name == _FACTORS), None)
    return _Contents(said, frozenset(tensor.name for tensor in reader.tensors), factors)


def _read(file: Path) -> _Contents:
    return _contents(file, file.stat().st_mtime_ns)


def complete(config: PretrainedConfig, file: Path, key: str) -> None:
    """Give a configuration that transformers read from a file the biases, rotary scaling and special tokens that the file has.

    Raises:
        UserError: The file says something that would be computed otherwise; the message names `key`.
    """
    held = _read(file)
    for name, suffixes in _BIASES.items():
        if hasattr(config, name) and any(tensor.endswith(suffixes) for tensor in held.tensors):
            setattr(config, name, True)
    for name, place in _SPECIAL.items():
        if (id_ := held.said.get(f"tokenizer.ggml.{place}_token_id")) is not None:
            setattr(config, f"{name}_token_id", id_)
    if unread := [*_unread(held), *filter(None, [_scale(config, held)])]:
        raise UserError(f"{key}: {file} has {', '.join(unread)}, which is not read; give the model's folder")


def name_special_tokens(tokenizer: Any, file: Path) -> None:
    """Give a tokenizer the special tokens of its file that transformers passes over, as it does for some architectures."""
    for name, place in _SPECIAL.items():
        id_ = _read(file).said.get(f"tokenizer.ggml.{place}_token_id")
        if id_ is not None and getattr(tokenizer, f"{name}_token") is None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(id_))


def _unread(held: _Contents) -> Iterator[str]:
    """The settings that change the result and that transformers does not read."""
    read = GGUF_CONFIG_MAPPING.get(held.architecture, {})
    for name, neutral in _COMPUTES.items():
        if name not in read and (value := held.setting(name)) not in (None, neutral):
            yield f"{name} {value}"


def _scale(config: PretrainedConfig, held: _Contents) -> str | None:
    """Give a configuration a file's rotary scaling; returns what cannot be read of it, if anything."""
    rope = family_of(config).rope(config)
    scaling = {
        name: value for name, end in _SCALING.items() if (value := held.setting(f"rope.scaling.{end}")) is not None
    }
    if (old := held.setting("rope.scale_linear")) is not None:
        scaling.setdefault("factor", old)
    kind = scaling.setdefault("rope_type", "linear" if scaling.get("factor", 1.0) != 1.0 else "none")
    if kind == "linear" and "factor" not in scaling:
        kind = "none"
    if held.factors is not None:
        found = _of_factors(held.factors, rope["rope_theta"]) if kind == "none" else None
        rope.update(found or {})
        return None if found else "rotary factors of no kind that is known"
    if kind in ("linear", "yarn"):
        rope.update(scaling)
    return None if kind in ("none", "linear", "yarn") else f"rotary scaling of type {kind}"


def _of_factors(factors: NDArray[Any], theta: float) -> dict[str, Any] | None:
    """The rotary parameters that give these factors `[d/2]`; None if there are none.

    Llama 3's: 1 for short waves, the largest for long ones, and between them 1 / f = (1 - s) / factor + s, where s is linear in
    the number of turns that a pair takes in the original context.
    """
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
    held = _read(file)
    processor = TENSOR_PROCESSORS.get(held.architecture, TensorProcessor)(config=model.config.to_dict())
    placed = get_gguf_hf_weights_map(model, processor)
    if left := sorted(held.tensors - placed.keys() - {_FACTORS}):
        what = f"{file} has {len(left)} tensors that the model has no place for, first {left[0]}"
        raise UserError(f"{key}: {what}; give the model's folder")


def transformers_reads(config: PretrainedConfig) -> bool:
    """True if transformers reads the files of a model's architecture, and as a model of its type."""
    name = family_of(config).gguf
    return name in GGUF_SUPPORTED_ARCHITECTURES and config.model_type.startswith(name)


def stored_names(config: PretrainedConfig) -> Callable[[str], str]:
    """The names of parameters in a file, from those in the model."""
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family_of(config).gguf)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)

    def stored(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"no name for {name}"
        return found

    return stored


@torch.no_grad()
def read_weights(model: PreTrainedModel, file: Path) -> None:
    """Give a model the weights of a file, of a family that stores its parameters with rows in another order at most."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    stored_name, family = stored_names(model.config), family_of(model)
    for name, parameter in model.named_parameters():
        stored = tensors[stored_name(name)]
        rows = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy())
        parameter[family.gguf_stored(stored.name, torch.arange(len(rows)), model.config)] = rows
