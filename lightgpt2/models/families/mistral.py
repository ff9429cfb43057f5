"""Mistral: Llama's blocks, in which a token sees only the last ones of the text."""

from typing import Any

from transformers import PretrainedConfig

from lightgpt2.models.families.llama import Llama


class Mistral(Llama):
    """Mistral; llama.cpp knows it as Llama."""

    model_types = ("mistral",)

    def window(self, config: PretrainedConfig) -> int | None:
        window: int | None = config.sliding_window
        return window

    def attended(self, attention: Any) -> dict[str, Any]:
        return {"window": self.window(attention.config)}
