"""Phi-3 and Phi-4: Mistral with joint projections, in which only a part of each head may be rotated."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from transformers import PretrainedConfig

from lightgpt2.models.families.base import Family
from lightgpt2.models.families.llama import Llama
from lightgpt2.models.families.mistral import Mistral


class Phi3(Mistral):
    """Phi-3; its window is configured as Mistral's."""

    model_types, gguf = ("phi3",), "phi3"
    inputs, neurons, scalings = ("qkv_proj",), ("gate_up_proj",), ("default",)
    heads_share_width = True
    adapted = ["qkv_proj"]  # noqa: RUF012 - declared in `Family`
    axes: ClassVar = {
        **Llama.axes,
        r"model\.layers\.\d+\.self_attn\.qkv_proj": ("query+key+value", "width"),
        r"model\.layers\.\d+\.mlp\.gate_up_proj": ("ffn+ffn", "width"),
    }
    gguf_stored = Family.gguf_stored  # llama.cpp rotates halves of a head, as transformers does

    def config_problems(self, config: PretrainedConfig) -> Iterator[str]:
        if (shape := self.shape(config)).heads * shape.head != shape.width:
            yield f"a Phi-3 whose {shape.heads} heads of {shape.head} do not make up its width is refused; remove head_dim"

    def old_rope(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        old = super().old_rope(rope)
        if rope.get("rope_type") == "longrope":  # these three keys and no others
            old["rope_scaling"] = {"type": "longrope", **{key: rope[key] for key in ("short_factor", "long_factor")}}
        return old

    def gguf_metadata(self, config: PretrainedConfig) -> dict[str, Any]:
        rotated = int(self.shape(config).head * config.rope_parameters.get("partial_rotary_factor", 1.0))
        return super().gguf_metadata(config) | {"rope_dimension_count": rotated}
