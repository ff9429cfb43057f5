"""Llama: rotary positions, RMS norms, gated neurons, heads that may share keys and values."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Family, Gguf, Shape

_ROPES = ("default", "linear", "llama3")  # whose frequencies do not change with the length of the text


def _gguf_problems(config: PretrainedConfig) -> Iterator[str]:
    if config.hidden_act != "silu":
        yield f"llama.cpp computes Llama with silu, not {config.hidden_act}; export to onnx"
    if (rope := config.rope_parameters["rope_type"]) not in _ROPES:
        yield f"rotary positions of type {rope} are not written, only {', '.join(_ROPES)}; export to onnx"


def _gguf_metadata(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "head_count_kv": config.num_key_value_heads,
        "key_length": config.head_dim,
        "value_length": config.head_dim,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_dimension_count": config.head_dim,
        "rope_freq_base": config.rope_parameters["rope_theta"],
    }


def _gguf_stored(name: str, value: Tensor, config: PretrainedConfig) -> Tensor:
    """Interleaves rows of queries and keys: llama.cpp rotates neighbours where transformers rotates halves of a head."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else value


def _gguf_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The factors `[d/2]` by which pairs of a head's channels are rotated slower than by the base alone."""
    rope, frequencies = model.config.rope_parameters, model.base_model.rotary_emb.inv_freq.double()
    if rope["rope_type"] != "default":
        exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
        yield "rope_freqs.weight", (rope["rope_theta"] ** -exponents / frequencies).float()


_AXES = {
    r"model\.embed_tokens|lm_head": ("vocabulary", "width"),
    r"model\.(layers\.\d+\.\w+layernorm|norm)": ("width",),
    r"model\.layers\.\d+\.self_attn\.q_proj": ("query", "width"),
    r"model\.layers\.\d+\.self_attn\.k_proj": ("key", "width"),
    r"model\.layers\.\d+\.self_attn\.v_proj": ("value", "width"),
    r"model\.layers\.\d+\.self_attn\.o_proj": ("width", "context"),
    r"model\.layers\.\d+\.mlp\.(gate|up)_proj": ("ffn", "width"),
    r"model\.layers\.\d+\.mlp\.down_proj": ("width", "ffn"),
}


class _Llama(Family):
    model_types, blocks, head_multiple = ("llama",), "layers", 16
    axes = _AXES
    gguf = Gguf("llama", _gguf_problems, _gguf_metadata, _gguf_stored, _gguf_tensors)

    def shape(self, config: PretrainedConfig, stack: str = "decoder") -> Shape:
        heads = config.num_attention_heads
        groups = heads // config.num_key_value_heads
        return Shape(config.hidden_size, heads, groups, config.head_dim, config.intermediate_size)

    def settings(self, shape: Shape) -> dict[str, int | None]:
        return {
            "hidden_size": shape.width,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads // shape.groups,
            "head_dim": shape.head,
            "intermediate_size": shape.ffn,
        }

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        base: Any = model.base_model
        rotary = writer.rotary(base.rotary_emb)
        for layer, block in enumerate(base.layers):
            attention, mlp, context, neurons = block.self_attn, block.mlp, None, None
            x = writer.rms_norm(block.input_layernorm)
            if hasattr(attention, "q_proj"):
                parts, size = (attention.q_proj, attention.k_proj, attention.v_proj), attention.head_dim
                packed, (heads, shared) = writer.project(x, *parts), (len(part.weight) // size for part in parts[:2])
                context = writer.attend(layer, packed, heads, shared, size, attention.scaling, rotary)
            writer.add(context, attention.o_proj)
            x = writer.rms_norm(block.post_attention_layernorm)
            if hasattr(mlp, "gate_proj"):
                packed = writer.project(x, mlp.gate_proj, mlp.up_proj)
                gate, up = writer.graph.ops("Split", packed, outputs=2, axis=2, num_outputs=2)
                neurons = writer.graph.op("Mul", writer.activate(gate), up)
            writer.add(neurons, mlp.down_proj)
        return writer.rms_norm(base.norm)


LLAMA = _Llama()
