"""OPT: learned positions that begin in the third row, layer norms with biases, ReLU."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Family, Shape


class Opt(Family):
    """OPT with its norms before the layers, as all sizes but 350M have them."""

    model_types, blocks = ("opt",), "decoder.layers"
    heads_share_width = heads_narrow = True
    axes: ClassVar = {
        r"model\.decoder\.embed_tokens|lm_head": ("vocabulary", "width"),
        r"model\.decoder\.embed_positions": ("position", "width"),
        r"model\.decoder\.(layers\.\d+\.)?\w+_layer_norm": ("width",),
        r"model\.decoder\.layers\.\d+\.self_attn\.q_proj": ("query", "width"),
        r"model\.decoder\.layers\.\d+\.self_attn\.k_proj": ("key", "width"),
        r"model\.decoder\.layers\.\d+\.self_attn\.v_proj": ("value", "width"),
        r"model\.decoder\.layers\.\d+\.self_attn\.out_proj": ("width", "context"),
        r"model\.decoder\.layers\.\d+\.fc1": ("ffn", "width"),
        r"model\.decoder\.layers\.\d+\.fc2": ("width", "ffn"),
    }

    def config_problems(self, config: PretrainedConfig) -> Iterator[str]:
        fix = "use another size of OPT"
        if not config.do_layer_norm_before or config._remove_final_layer_norm:
            yield f"an OPT with norms behind its layers, or without a final one, is not supported; {fix}"
        if config.word_embed_proj_dim != config.hidden_size:
            yield f"an OPT whose embeddings are narrower than its hidden states is not supported; {fix}"

    def apart(self, model: PreTrainedModel, positions: Tensor) -> dict[str, Tensor]:
        """Adds a mask `[B, 1, T, T]`: transformers finds no documents for OPT."""
        document = (positions == 0).cumsum(dim=1)
        seen = (document[:, :, None] == document[:, None]).tril()[:, None]
        mask = torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
        return super().apart(model, positions) | {"attention_mask": mask}

    def activation(self, config: PretrainedConfig) -> str:
        return config.activation_function

    def shape(self, config: PretrainedConfig) -> Shape:
        width, heads = config.hidden_size, config.num_attention_heads
        return Shape(width, heads, 1, width // heads, config.ffn_dim)

    def resized(self, config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
        sized = super().resized(config, shape)
        sized.word_embed_proj_dim, sized.ffn_dim = shape.width, shape.ffn
        return sized

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        base: Any = model.base_model.get_submodule("decoder")
        writer.positions(base.embed_positions, first=base.embed_positions.offset)
        for layer, block in enumerate(base.layers):
            attention, context, neurons = block.self_attn, None, None
            x = writer.layer_norm(block.self_attn_layer_norm)
            if hasattr(attention.out_proj, "weight"):
                packed = writer.project(x, attention.q_proj, attention.k_proj, attention.v_proj)
                heads, size = attention.num_heads, attention.head_dim
                context = writer.attend(layer, packed, heads, heads, size, attention.scaling)
            writer.add(context, attention.out_proj)
            x = writer.layer_norm(block.final_layer_norm)
            if hasattr(block.fc2, "weight"):
                neurons = writer.activate(writer.project(x, block.fc1))
            writer.add(neurons, block.fc2)
        return writer.layer_norm(base.final_layer_norm)
