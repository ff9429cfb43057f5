"""SmolLM3: Llama's blocks, some of them without positions."""

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from lightgpt2.models.families.llama import Llama
from lightgpt2.models.families.qwen2 import Qwen2

_STEP = 4  # llama.cpp rotates all layers but every fourth one


class SmolLm3(Qwen2):
    """SmolLM3; its windows are configured as Qwen2's."""

    model_types, gguf = ("smollm3",), "smollm3"
    layer_settings = ("layer_types", "no_rope_layers")
    adapted = ["q_proj", "v_proj"]  # noqa: RUF012 - declared in `Family`
    gguf_stored = Llama.gguf_stored

    def attended(self, attention: Any) -> dict[str, Any]:
        return super().attended(attention) | ({} if attention.use_rope else {"rotary": ()})

    def gguf_problems(self, config: PretrainedConfig) -> Iterator[str]:
        yield from super().gguf_problems(config)
        if config.attention_bias or config.mlp_bias:
            yield "llama.cpp's SmolLM3 has no biases; export to onnx"
        rotated = [bool((layer + 1) % _STEP) for layer in range(config.num_hidden_layers)]
        if [bool(rotary) for rotary in config.no_rope_layers[: config.num_hidden_layers]] != rotated:
            yield f"llama.cpp's SmolLM3 has no positions in every {_STEP}th layer, and this model in others; export to onnx"
