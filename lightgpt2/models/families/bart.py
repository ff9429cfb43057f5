"""BART, mBART and Pegasus: learned or sinusoidal positions, layer norms, biases; the logits' own is not trained."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Shape
from lightgpt2.models.families.encoder_decoder import EncoderDecoder

_SIZES = (
    ("heads", "attention_heads"),
    ("neurons", "ffn_dim"),
)  # what both stacks must have as many of, and the ends of their keys


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

    def special_tokens(self, tokenizer: Any) -> dict[str, int | None]:
        return super().special_tokens(tokenizer) | {"forced_eos_token_id": tokenizer.eos_token_id}

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

    def stack_graph(self, writer: Any, stack: Any) -> Any:
        places = stack.embed_positions
        scale = getattr(stack, "embed_scale", None) or getattr(stack.embed_tokens, "embed_scale", 1.0)
        x = writer.times(writer.words(stack.embed_tokens), scale)
        x = writer.graph.op("Add", x, writer.positions(places, first=getattr(places, "offset", 0)))
        if hasattr(stack, "layernorm_embedding"):
            x = writer.normalize(stack.layernorm_embedding, x)
        x = writer.tokens(x, writer.config.d_model)
        before = hasattr(stack, "layer_norm")  # a norm behind all blocks, where others stand before each part
        for layer, block in enumerate(stack.layers):
            for norm, inner, projection in _parts(writer, layer, block):
                x = writer.added(x, inner(writer.normalize(norm, x) if before else x), projection)
                x = x if before else writer.normalize(norm, x)
        return writer.normalize(stack.layer_norm, x) if before else x

    def fixed(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The sinusoids of Pegasus."""
        tables: Iterator[Any] = (module for module in model.modules() if hasattr(module, "create_weight"))
        return [table.weight for table in tables]

    def narrowed(self, model: PreTrainedModel, width: int) -> None:
        """Keep the scale of the embeddings, which some multiply by the square root of the width.

        The stored embeddings take the ratio of the old root to the new one. A tied head would take it too: the last norm undoes
        it there.
        """
        ratio = (width / model.config.d_model) ** 0.5
        if model.config.scale_embedding and ratio != 1:
            model.get_input_embeddings().weight.mul_(ratio)
            decoder: Any = model.get_decoder()
            last = decoder.layer_norm if hasattr(decoder, "layer_norm") else decoder.layers[-1].final_layer_norm
            for parameter in last.parameters() if model.config.tie_word_embeddings else ():
                parameter.div_(ratio)


def _parts(writer: Any, layer: int, block: Any) -> Iterator[tuple[Any, Callable[[Any], Any], Any]]:
    """The norm of each part of a block, what writes its inside, and its last layer."""

    def attend(how: Any, attention: Any, x: Any) -> Any:
        if not hasattr(attention.out_proj, "weight"):
            return None
        layers = attention.q_proj, attention.k_proj, attention.v_proj
        return how(layer, x, layers, attention.head_dim, attention.scaling)

    def neurons(x: Any) -> Any:
        return writer.activate(writer.project(x, block.fc1)) if hasattr(block.fc2, "weight") else None

    own = block.self_attn
    yield block.self_attn_layer_norm, partial(attend, writer.attend_own, own), own.out_proj
    if (cross := getattr(block, "encoder_attn", None)) is not None:
        yield block.encoder_attn_layer_norm, partial(attend, writer.attend_source, cross), cross.out_proj
    yield block.final_layer_norm, neurons, block.fc2
