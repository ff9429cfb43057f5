"""Qwen2: Llama's blocks with biases of queries, keys and values; some layers may see only the last tokens of the text."""

from typing import Any

from transformers import PretrainedConfig

from lightgpt2.models.families.base import Family
from lightgpt2.models.families.llama import Llama


class Qwen2(Llama):
    """Qwen2 and Qwen2.5."""

    model_types, gguf = ("qwen2",), "qwen2"
    scalings, fills_width = ("default", "linear", "yarn"), True
    gguf_stored = Family.gguf_stored  # llama.cpp rotates halves of a head, as transformers does

    def window(self, config: PretrainedConfig) -> int | None:
        window: int | None = config.sliding_window if "sliding_attention" in config.layer_types else None
        return window

    def attended(self, attention: Any) -> dict[str, Any]:
        return {"window": attention.sliding_window}
