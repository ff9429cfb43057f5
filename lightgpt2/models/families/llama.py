"""Llama: rotary positions, RMS norms, gated neurons, heads that may share keys and values."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Family, Shape

_ADJUSTED = {"attention_factor", "mscale", "mscale_all_dim", "truncate"}  # of YaRN, where llama.cpp has the defaults


class Llama(Family):
    """Llama; families of the same blocks are subclasses with what is other."""

    model_types, gguf = ("llama",), "llama"
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
    inputs: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")  # that give queries, keys and values
    neurons: ClassVar[tuple[str, ...]] = ("gate_proj", "up_proj")
    scalings: ClassVar[tuple[str, ...]] = ("default", "linear", "llama3", "yarn")  # of rotary positions, in llama.cpp
    fills_width: ClassVar = False  # True if llama.cpp wants the heads of a layer to make up the width

    def window(self, config: PretrainedConfig) -> int | None:
        """How many tokens a layer sees, in the model's narrowest; None if all see the whole text."""
        return None

    def attended(self, attention: Any) -> dict[str, Any]:
        """What is special about a layer's attention, as arguments of `Decoder.attend`."""
        return {}

    def resized(self, config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
        sized = super().resized(config, shape)
        sized.head_dim = shape.head  # some configurations leave it out where all heads make up the width
        return sized

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
        size = attention.head_dim
        heads = attention.o_proj.weight.shape[1] // size
        shared = heads // attention.num_key_value_groups
        packed = writer.project(x, *(getattr(attention, name) for name in self.inputs))
        special = {"rotary": rotary} | self.attended(attention)
        return writer.attend(layer, packed, heads, shared, size, attention.scaling, **special)

    def _neurons(self, writer: Any, mlp: Any, x: Any) -> Any:
        """What the neurons of a layer give; None if it has none."""
        if not hasattr(mlp.down_proj, "weight"):
            return None
        packed = writer.project(x, *(getattr(mlp, name) for name in self.neurons))
        gate, up = writer.graph.ops("Split", packed, outputs=2, axis=2, num_outputs=2)
        return writer.graph.op("Mul", writer.activate(gate), up)

    def onnx_problems(self, config: PretrainedConfig) -> Iterator[str]:
        rope, positions = self.rope(config), self.positions(config) or 0
        if rope["rope_type"] == "longrope" and rope["original_max_position_embeddings"] < positions:
            yield "rotary positions of type longrope change with the length of the text; use the model's folder"

    def gguf_problems(self, config: PretrainedConfig) -> Iterator[str]:
        name, rope = self.model_types[0], self.rope(config)
        if config.hidden_act != "silu":
            yield f"llama.cpp computes models of type {name} with silu, not {config.hidden_act}; export to onnx"
        if rope["rope_type"] not in self.scalings:
            known = ", ".join(self.scalings)
            fix = "use the model's folder" if rope["rope_type"] == "longrope" else "export to onnx"
            yield f"rotary positions of type {rope['rope_type']} are not written, only {known}; {fix}"
        given = sorted(key for key in _ADJUSTED if not (rope.get(key) is None or rope[key] is True))
        if rope["rope_type"] == "yarn" and given:
            yield f"llama.cpp chooses {', '.join(given)} of rotary positions itself; export to onnx"
        if self.fills_width and (shape := self.shape(config)).heads * shape.head != shape.width:
            yield f"llama.cpp wants heads of type {name} to make up the width of {shape.width}; export to onnx"
        if (window := self.window(config)) and window < (self.positions(config) or 0):
            yield f"llama.cpp has no window of {window} tokens in models of type {name}; export to onnx"

    def gguf_metadata(self, config: PretrainedConfig) -> dict[str, Any]:
        shape, rope = self.shape(config), self.rope(config)
        return {
            "vocab_size": config.vocab_size,
            "head_count_kv": shape.heads // shape.groups,
            "key_length": shape.head,
            "value_length": shape.head,
            "layer_norm_rms_eps": config.rms_norm_eps,
            "rope_dimension_count": shape.head,
            "rope_freq_base": rope["rope_theta"],
            **_scaling(rope),
        }

    def gguf_stored(self, name: str, value: Tensor, config: PretrainedConfig) -> Tensor:
        """Interleaves rows of queries and keys: llama.cpp rotates neighbours where transformers rotates halves of a head."""
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
        return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2) if heads else value

    def gguf_tensors(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """The factors `[d/2]` by which pairs of a head's channels are rotated slower than by the base alone."""
        rope, frequencies = model.config.rope_parameters, model.base_model.rotary_emb.inv_freq.double()
        if rope["rope_type"] == "llama3":
            exponents = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
            yield "rope_freqs.weight", (rope["rope_theta"] ** -exponents / frequencies).float()


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    """What a GGUF file says about rotary positions that are stretched."""
    from gguf import RopeScalingType  # only what is exported needs it

    if rope["rope_type"] not in ("linear", "yarn"):
        return {}
    said = {"rope_scaling_type": RopeScalingType(rope["rope_type"]), "rope_scaling_factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        said |= {
            "rope_scaling_orig_ctx_len": rope["original_max_position_embeddings"],
            "rope_scaling_yarn_beta_fast": rope.get("beta_fast") or 32.0,
            "rope_scaling_yarn_beta_slow": rope.get("beta_slow") or 1.0,
        }
    return said
