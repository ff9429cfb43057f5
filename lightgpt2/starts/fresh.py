"""A model that starts from random weights."""

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.models.loading import load_config, new_model
from lightgpt2.models.operations import Operation
from lightgpt2.starts.base import Start

_NOT_SHARED = ("transformers_version", "layer_types", "lightgpt2", "auto_map", "architectures")


class Fresh(Start):
    """A model that starts from random weights.

    Args:
        model: Configuration values (`{model_type: gpt2, n_layer: 2, ...}`); the vocabulary is the tokenizer's unless given.
        like: Hub id, model folder or GGUF file whose configuration, vocabulary and tokenizer it shares but for those values.
    """

    source: dict[str, Any]

    def __init__(self, model: dict[str, Any], like: str | None = None) -> None:
        self.source, self.like = model, like

    @property
    def tokenizer(self) -> tuple[str | dict[str, Any], str]:
        """The source of the tokenizer: `like`, or none."""
        return (self.like, f"{self.key}.like") if self.like else super().tokenizer

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        """The model's configuration; its vocabulary is known later if the tokenizer decides it."""
        return {f"{self.key}.model": self._config({}, trust_remote_code)}

    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        """Builds the model with the tokenizer's vocabulary and special tokens."""
        tokens: dict[str, Any] = {}
        if self.like is None:
            tokenizer = data.tokenizer
            special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            tokens = {"vocab_size": len(tokenizer), **special}
        return new_model(self._config(tokens, trust_remote_code), f"{self.key}.model"), []

    def _config(self, tokens: dict[str, Any], trust: bool) -> PretrainedConfig:
        if self.like is not None:
            shared = load_config(self.like, f"{self.key}.like", trust)
            values = {key: value for key, value in shared.to_diff_dict().items() if key not in _NOT_SHARED}
            tokens = {**values, "model_type": shared.model_type}
        return load_config({**tokens, **self.source}, f"{self.key}.model")
