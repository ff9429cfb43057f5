"""Qwen3: Qwen2 without biases, and with a norm of each head's queries and keys."""

from collections.abc import Iterator
from typing import Any, ClassVar

from transformers import PretrainedConfig

from lightgpt2.models.families.llama import Llama
from lightgpt2.models.families.qwen2 import Qwen2


class Qwen3(Qwen2):
    """Qwen3; a head's channels are normalized together, so that Trim keeps them all."""

    model_types, gguf = ("qwen3",), "qwen3"
    fills_width = False
    axes: ClassVar = {**Llama.axes, r"model\.layers\.\d+\.self_attn\.[qk]_norm": ("channel",)}

    def attended(self, attention: Any) -> dict[str, Any]:
        return super().attended(attention) | {"norms": (attention.q_norm, attention.k_norm)}

    def gguf_problems(self, config: PretrainedConfig) -> Iterator[str]:
        yield from super().gguf_problems(config)
        if config.attention_bias:
            yield "llama.cpp's Qwen3 has no biases; export to onnx"
