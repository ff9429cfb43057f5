"""BART, mBART and Pegasus: learned or sinusoidal positions, layer norms, biases; the logits' own is not trained."""

from collections.abc import Iterator
from typing import ClassVar

from transformers import PretrainedConfig

from lightgpt2.models.families.base import Shape
from lightgpt2.models.families.encoder_decoder import EncoderDecoder


class Bart(EncoderDecoder):
    """BART with norms behind its layers, mBART and Pegasus with norms before them."""

    model_types, blocks = ("bart", "mbart", "pegasus"), "layers"
    heads_share_width = heads_narrow = True
    adapted: ClassVar = ["q_proj", "v_proj"]
    layer_counts: ClassVar = {"encoder": "encoder_layers", "decoder": "decoder_layers"}
    axes: ClassVar = {
        r"": ("single", "vocabulary"),  # final_logits_bias
        r"model\.(shared|(en|de)coder\.embed_tokens)|lm_head": ("vocabulary", "width"),
        r"model\.(en|de)coder\.embed_positions": ("position", "width"),
        r"model\.(en|de)coder\.(layers\.\d+\.)?\w*(layer_norm|layernorm_embedding)": ("width",),
        r"model\.(en|de)coder\.layers\.\d+\.self_attn\.q_proj": ("query", "width"),
        r"model\.(en|de)coder\.layers\.\d+\.self_attn\.k_proj": ("key", "width"),
        r"model\.(en|de)coder\.layers\.\d+\.self_attn\.v_proj": ("value", "width"),
        r"model\.(en|de)coder\.layers\.\d+\.self_attn\.out_proj": ("width", "context"),
        r"model\.decoder\.layers\.\d+\.encoder_attn\.q_proj": ("cross_query", "width"),
        r"model\.decoder\.layers\.\d+\.encoder_attn\.k_proj": ("cross_key", "width"),
        r"model\.decoder\.layers\.\d+\.encoder_attn\.v_proj": ("cross_value", "width"),
        r"model\.decoder\.layers\.\d+\.encoder_attn\.out_proj": ("width", "cross_context"),
        r"model\.(en|de)coder\.layers\.\d+\.fc1": ("ffn", "width"),
        r"model\.(en|de)coder\.layers\.\d+\.fc2": ("width", "ffn"),
    }

    def config_problems(self, config: PretrainedConfig) -> Iterator[str]:
        sizes = {name: [getattr(config, f"{stack}_{key}") for stack in ("encoder", "decoder")] for name, key in _SIZES}
        for name, (read, written) in sizes.items():
            if read != written:
                yield f"an encoder of {read} {name} and a decoder of {written} are not supported; give both as many"
        if config.encoder_layerdrop or config.decoder_layerdrop:
            fix = "set encoder_layerdrop and decoder_layerdrop to 0"
            yield f"layers that are left out at random (layerdrop) are not supported; {fix}"

    def activation(self, config: PretrainedConfig) -> str:
        return config.activation_function

    def shape(self, config: PretrainedConfig) -> Shape:
        width, heads = config.d_model, config.encoder_attention_heads
        return Shape(width, heads, 1, width // heads, config.encoder_ffn_dim)

    def resized(self, config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
        sized = super().resized(config, shape)
        sized.encoder_attention_heads = sized.decoder_attention_heads = shape.heads
        sized.encoder_ffn_dim = sized.decoder_ffn_dim = shape.ffn
        return sized


_SIZES = (("heads", "attention_heads"), ("neurons", "ffn_dim"))
