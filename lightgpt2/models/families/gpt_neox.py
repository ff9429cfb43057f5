"""GPT-NeoX and Pythia: attention and neurons side by side, rotary positions on a part of each head's channels."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Family

# Llama.cpp has one, by tanh: at most 0.0005 off the exact one


class GptNeoX(Family):
    """GPT-NeoX; its one projection for queries, keys and values has those of a head next to each other."""

    model_types, gguf = ("gpt_neox",), "gptneox"
    heads_share_width = True
    axes: ClassVar = {
        r"gpt_neox\.embed_in|lm_head": ("vocabulary", "width"),
        r"gpt_neox\.(layers\.\d+\.\w+layernorm|final_layer_norm)": ("width",),
        r"gpt_neox\.layers\.\d+\.attention\.query_key_value": ("query/key/value", "width"),
        r"gpt_neox\.layers\.\d+\.attention\.dense": ("width", "context"),
        r"gpt_neox\.layers\.\d+\.mlp\.dense_h_to_4h": ("ffn", "width"),
        r"gpt_neox\.layers\.\d+\.mlp\.dense_4h_to_h": ("width", "ffn"),
    }

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        base: Any = model.base_model
        side_by_side, rotary = model.config.use_parallel_residual, writer.rotary(base.rotary_emb)
        for layer, block in enumerate(base.layers):
            x = writer.layer_norm(block.input_layernorm)
            y = writer.layer_norm(block.post_attention_layernorm) if side_by_side else None
            writer.add(self._context(writer, layer, block.attention, x, rotary), block.attention.dense)
            y = y if side_by_side else writer.layer_norm(block.post_attention_layernorm)
            has_neurons = hasattr(block.mlp.dense_4h_to_h, "weight")
            neurons = writer.activate(writer.project(y, block.mlp.dense_h_to_4h)) if has_neurons else None
            writer.add(neurons, block.mlp.dense_4h_to_h)
        return writer.layer_norm(base.final_layer_norm)

    def _context(self, writer: Any, layer: int, attention: Any, x: Any, rotary: Any) -> Any:
        """What the heads of a layer give; None if it has none."""
        if not hasattr(attention.dense, "weight"):
            return None
        size, packed = attention.head_size, attention.query_key_value
        by_head = torch.arange(len(packed.weight)).view(-1, 3, size)
        heads, x = len(by_head), writer.project(x, packed, order=by_head.transpose(0, 1).flatten())
        return writer.attend(layer, x, heads, heads, size, attention.scaling, rotary)

    def old_rope(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        own = {"rotary_emb_base": rope.get("rope_theta"), "rotary_pct": rope.get("partial_rotary_factor")}
        return super().old_rope(rope) | own

    def gguf_problems(self, config: PretrainedConfig) -> Iterator[str]:
        if config.hidden_act not in _GELU:
            yield f"llama.cpp computes GPT-NeoX with gelu, not {config.hidden_act}; export to onnx"
        if not config.attention_bias:
            yield "llama.cpp's GPT-NeoX has biases in its attention; export to onnx"
        if (rope := config.rope_parameters["rope_type"]) != "default":
            yield f"rotary positions of type {rope} are not written for GPT-NeoX; export to onnx"

    def gguf_metadata(self, config: PretrainedConfig) -> dict[str, Any]:
        rope = config.rope_parameters
        return {
            "layer_norm_eps": config.layer_norm_eps,
            "parallel_residual": config.use_parallel_residual,
            "rope_dimension_count": int(self.shape(config).head * rope["partial_rotary_factor"]),
            "rope_freq_base": rope["rope_theta"],
        }

    def gguf_stored(self, name: str, value: Tensor, config: PretrainedConfig) -> Tensor:
        """Queries of all heads come first, then keys, then values."""
        qkv = value.unflatten(0, (config.num_attention_heads, 3, -1)) if ".attn_qkv." in name else None
        return value if qkv is None else qkv.transpose(0, 1).flatten(0, 2)

    def gguf_tensors(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """The head where it is the embedding: llama.cpp wants one here."""
        if model.get_output_embeddings().weight is (embedding := model.get_input_embeddings().weight):
            yield "output.weight", embedding


_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
