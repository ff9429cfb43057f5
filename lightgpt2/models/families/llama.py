"""Llama: rotary positions, RMS norms, gated neurons, heads that may share keys and values."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Family

_ROPES = ("default", "linear", "llama3")  # whose frequencies do not change with the length of the text


class Llama(Family):
    """Llama; families of the same blocks are subclasses with what is other."""

    model_types, gguf, head_multiple = ("llama",), "llama", 16
    axes: ClassVar = {
        r"model\.embed_tokens|lm_head": ("vocabulary", "width"),
        r"model\.(layers\.\d+\.\w+layernorm|norm)": ("width",),
        r"model\.layers\.\d+\.self_attn\.q_proj": ("query", "width"),
        r"model\.layers\.\d+\.self_attn\.k_proj": ("key", "width"),
        r"model\.layers\.\d+\.self_attn\.v_proj": ("value", "width"),
        r"model\.layers\.\d+\.self_attn\.o_proj": ("width", "context"),
        r"model\.layers\.\d+\.mlp\.(gate|up)_proj": ("ffn", "width"),
        r"model\.layers\.\d+\.mlp\.down_proj": ("width", "ffn"),
    }

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        base: Any = model.base_model
        rotary = writer.rotary(base.rotary_emb)
        for layer, block in enumerate(base.layers):
            x = writer.rms_norm(block.input_layernorm)
            writer.add(self._context(writer, layer, block.self_attn, x, rotary), block.self_attn.o_proj)
            x = writer.rms_norm(block.post_attention_layernorm)
            writer.add(self._neurons(writer, block.mlp, x), block.mlp.down_proj)
        return writer.rms_norm(base.norm)

    def _context(self, writer: Any, layer: int, attention: Any, x: Any, rotary: Any) -> Any:
        """What the heads of a layer give; None if it has none."""
        if not hasattr(attention.o_proj, "weight"):
            return None
        parts, size = (attention.q_proj, attention.k_proj, attention.v_proj), attention.head_dim
        heads, shared = (len(part.weight) // size for part in parts[:2])
        return writer.attend(layer, writer.project(x, *parts), heads, shared, size, attention.scaling, rotary)

    def _neurons(self, writer: Any, mlp: Any, x: Any) -> Any:
        """What the neurons of a layer give; None if it has none."""
        if not hasattr(mlp.down_proj, "weight"):
            return None
        packed = writer.project(x, mlp.gate_proj, mlp.up_proj)
        gate, up = writer.graph.ops("Split", packed, outputs=2, axis=2, num_outputs=2)
        return writer.graph.op("Mul", writer.activate(gate), up)

    def gguf_problems(self, config: PretrainedConfig) -> Iterator[str]:
        if config.hidden_act != "silu":
            yield f"llama.cpp computes Llama with silu, not {config.hidden_act}; export to onnx"
        if (rope := config.rope_parameters["rope_type"]) not in _ROPES:
            yield f"rotary positions of type {rope} are not written, only {', '.join(_ROPES)}; export to onnx"

    def gguf_metadata(self, config: PretrainedConfig) -> dict[str, Any]:
        shape = self.shape(config)
        return {
            "vocab_size": config.vocab_size,
            "head_count_kv": shape.heads // shape.groups,
            "key_length": shape.head,
            "value_length": shape.head,
            "layer_norm_rms_eps": config.rms_norm_eps,
            "rope_dimension_count": shape.head,
            "rope_freq_base": config.rope_parameters["rope_theta"],
        }

    def gguf_stored(self, name: str, value: Tensor, config: PretrainedConfig) -> Tensor:
        """Interleaves rows of queries and keys: llama.cpp rotates neighbours where transformers rotates halves of a head."""
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
        return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else value

    def gguf_tensors(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """The factors `[d/2]` by which pairs of a head's channels are rotated slower than by the base alone."""
        rope, frequencies = model.config.rope_parameters, model.base_model.rotary_emb.inv_freq.double()
        if rope["rope_type"] != "default":
            exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
            yield "rope_freqs.weight", (rope["rope_theta"] ** -exponents / frequencies).float()
