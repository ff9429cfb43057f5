"""GPT-2: learned positions, layer norms with biases, one projection for queries, keys and values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Family, Shape


class Gpt2(Family):
    """GPT-2; its attention and MLP are `Conv1D` layers."""

    model_types, blocks, gguf = ("gpt2",), "h", "gpt2"
    conv1d = heads_share_width = heads_narrow = True
    axes: ClassVar = {
        r"transformer\.wte|lm_head": ("vocabulary", "width"),
        r"transformer\.wpe": ("position", "width"),
        r"transformer\.(h\.\d+\.ln_[12]|ln_f)": ("width",),
        r"transformer\.h\.\d+\.attn\.c_attn": ("width", "query+key+value"),
        r"transformer\.h\.\d+\.attn\.c_proj": ("context", "width"),
        r"transformer\.h\.\d+\.mlp\.c_fc": ("width", "ffn"),
        r"transformer\.h\.\d+\.mlp\.c_proj": ("ffn", "width"),
    }

    def activation(self, config: PretrainedConfig) -> str:
        return config.activation_function

    def shape(self, config: PretrainedConfig) -> Shape:
        width, heads = config.n_embd, config.n_head
        return Shape(width, heads, 1, width // heads, config.n_inner or 4 * width)

    def resized(self, config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
        sized = super().resized(config, shape)
        sized.n_inner = None if shape.ffn == 4 * shape.width else shape.ffn
        return sized

    def renumbered(self, model: PreTrainedModel, layers: Mapping[str, Sequence[int]]) -> None:
        """Let queries make up for the number of their layer, by which some GPT-2 divide attention scores."""
        if not model.config.scale_attn_by_inverse_layer_idx:
            return
        for new, (old, block) in enumerate(zip(layers[self.stack], self.stacks(model)[self.stack], strict=True)):
            attention: Any = block.get_submodule("attn")
            for parameter in attention.c_attn.parameters():
                parameter[..., : attention.embed_dim].mul_((new + 1) / (old + 1))

    def graph(self, writer: Any, model: PreTrainedModel) -> Any:
        base: Any = model.base_model
        writer.positions(base.wpe)
        for layer, block in enumerate(base.h):
            attention, mlp, context, neurons = block.attn, block.mlp, None, None
            x = writer.layer_norm(block.ln_1)
            if hasattr(attention.c_proj, "weight"):
                scale = attention.head_dim**-0.5 if model.config.scale_attn_weights else 1.0
                scale /= layer + 1 if model.config.scale_attn_by_inverse_layer_idx else 1
                heads, packed = attention.num_heads, writer.project(x, attention.c_attn)
                context = writer.attend(layer, packed, heads, heads, attention.head_dim, scale)
            writer.add(context, attention.c_proj)
            x = writer.layer_norm(block.ln_2)
            if hasattr(mlp.c_proj, "weight"):
                neurons = writer.activate(writer.project(x, mlp.c_fc))
            writer.add(neurons, mlp.c_proj)
        return writer.layer_norm(base.ln_f)

    def gguf_problems(self, config: PretrainedConfig) -> Iterator[str]:
        if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            yield f"llama.cpp computes GPT-2 with gelu_new, not {config.activation_function}; export to onnx"
        if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
            yield "llama.cpp divides attention scores by the root of the head's width only; export to onnx"
        if config.add_cross_attention:
            yield "llama.cpp's GPT-2 has no cross-attention; remove add_cross_attention"

    def gguf_metadata(self, config: PretrainedConfig) -> dict[str, Any]:
        return {"layer_norm_eps": config.layer_norm_epsilon}

    def correct_gguf(self, config: PretrainedConfig) -> None:
        config.n_positions = getattr(config, "n_ctx", config.n_positions)  # read under its old name
