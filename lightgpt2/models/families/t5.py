"""T5 and FLAN-T5: relative positions, RMS norms, no biases; neurons that are gated in some."""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.base import Head, Shape
from lightgpt2.models.families.encoder_decoder import EncoderDecoder


class T5(EncoderDecoder):
    """T5, with a tied and scaled head, and FLAN-T5, with a separate head.

    The first block of each stack has a table of relative positions with a column for each head. All blocks add its values to
    their attention scores.
    """

    model_types, blocks = ("t5",), "block"
    heads_divide_width = False
    heads_align = True
    layer_counts: ClassVar = {"encoder": "num_layers", "decoder": "num_decoder_layers"}
    axes: ClassVar = {
        r"shared|(en|de)coder\.embed_tokens|lm_head": ("vocabulary", "width"),
        r"(en|de)coder\.(block\.\d+\.layer\.\d\.layer_norm|final_layer_norm)": ("width",),
        r"(en|de)coder\.block\.\d+\.layer\.0\.SelfAttention\.q": ("query", "width"),
        r"(en|de)coder\.block\.\d+\.layer\.0\.SelfAttention\.k": ("key", "width"),
        r"(en|de)coder\.block\.\d+\.layer\.0\.SelfAttention\.v": ("value", "width"),
        r"(en|de)coder\.block\.\d+\.layer\.0\.SelfAttention\.o": ("width", "context"),
        r"(en|de)coder\.block\.\d+\.layer\.0\.SelfAttention\.relative_attention_bias": ("bucket", "head"),
        r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.q": ("cross_query", "width"),
        r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.k": ("cross_key", "width"),
        r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.v": ("cross_value", "width"),
        r"decoder\.block\.\d+\.layer\.1\.EncDecAttention\.o": ("width", "cross_context"),
        r"(en|de)coder\.block\.\d+\.layer\.\d\.DenseReluDense\.wi(_[01])?": ("ffn", "width"),
        r"(en|de)coder\.block\.\d+\.layer\.\d\.DenseReluDense\.wo": ("width", "ffn"),
    }

    def config_problems(self, config: PretrainedConfig) -> Iterator[str]:
        """In transformers the cache of a T5 has as many layers as its encoder."""
        read, written = self.depths(config).values()
        if written > read:
            what = f"a T5 whose decoder has more layers ({written}) than its encoder ({read}) generates nothing with a cache"
            yield f"{what}; give the encoder as many at least"

    def head(self, model: PreTrainedModel) -> Head:
        """The head; it multiplies by `width ** -0.5` where the configuration says that embedding and head are one matrix."""
        weight, bias, _ = super().head(model)
        scaled = model.config.scale_decoder_outputs
        return Head(weight, bias, model.config.d_model**-0.5 if scaled else 1.0)

    def lender(self, name: str) -> str:
        return re.sub(r"\.block\.\d+\.(.*\.relative_attention_bias\.)", r".block.0.\1", name)

    def narrowed(self, model: PreTrainedModel, width: int) -> None:
        """Keep the scale of the logits, which follows the width where embedding and head were one matrix."""
        if model.config.scale_decoder_outputs:
            final: Any = model.get_decoder().get_submodule("final_layer_norm")
            final.weight.mul_((model.config.d_model / width) ** 0.5)

    def positions(self, config: PretrainedConfig) -> int | None:
        """None: relative positions have no limit."""
        return None

    def activation(self, config: PretrainedConfig) -> str:
        return config.dense_act_fn

    def shape(self, config: PretrainedConfig) -> Shape:
        return Shape(config.d_model, config.num_heads, 1, config.d_kv, config.d_ff)

    def resized(self, config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
        sized = super().resized(config, shape)
        sized.d_ff = shape.ffn
        return sized

    def stack_graph(self, writer: Any, stack: Any) -> Any:
        seen: Any = None
        x = writer.tokens(writer.words(stack.embed_tokens), writer.config.d_model)
        for layer, block in enumerate(stack.block):
            own, *cross, neurons = block.layer
            attention = own.SelfAttention
            # All blocks share the first block's table. After heads were removed each block has a separate one.
            if getattr(attention, "relative_attention_bias", None) is not None:
                seen = writer.relative(attention.relative_attention_bias, _by_distance(attention))
            normal = writer.normalize_rms(own.layer_norm, x)
            x = writer.added(x, _attended(writer.attend_own, layer, normal, attention, seen), attention.o)
            for part in cross:
                attention, normal = part.EncDecAttention, writer.normalize_rms(part.layer_norm, x)
                x = writer.added(x, _attended(writer.attend_source, layer, normal, attention), attention.o)
            dense, normal = neurons.DenseReluDense, writer.normalize_rms(neurons.layer_norm, x)
            x = writer.added(x, _neurons(writer, normal, dense), getattr(dense, "wo", dense))
        return writer.normalize_rms(stack.final_layer_norm, x)


def _by_distance(attention: Any) -> Tensor:
    """What is added to the scores for each distance, `[2 M + 1, H]`; from M on it is the same for all."""
    most = attention.relative_attention_max_distance
    distances = torch.arange(-most, most + 1)
    buckets = attention._relative_position_bucket(
        distances, not attention.is_decoder, attention.relative_attention_num_buckets, most
    )
    rows: Tensor = attention.relative_attention_bias.weight.detach()[buckets]
    return rows


def _attended(how: Any, layer: int, x: Any, attention: Any, *seen: Any) -> Any:
    """What the heads of an attention give; None if it has none. Scores are not scaled."""
    if not hasattr(attention.o, "weight"):
        return None
    return how(layer, x, (attention.q, attention.k, attention.v), attention.key_value_proj_dim, 1.0, *seen)


def _neurons(writer: Any, x: Any, part: Any) -> Any:
    """What the neurons of a block give, gated in some; None if there are none."""
    if not hasattr(part, "wo"):
        return None
    if hasattr(part, "wi"):
        return writer.activate(writer.project(x, part.wi))
    gate, up = writer.split(writer.project(x, part.wi_0, part.wi_1), 2)
    return writer.graph.op("Mul", writer.activate(gate), up)
