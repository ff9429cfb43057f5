"""A model that starts from random weights."""

from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.data.base import TaskData
from lightgpt2.models.families import family_of
from lightgpt2.models.loading import load_config, new_model
from lightgpt2.models.operations import Operation
from lightgpt2.models.tokenizers import check_tokenizer
from lightgpt2.models.vocabulary import needed_rows
from lightgpt2.starts.base import Start

_NOT_SHARED = ("transformers_version", "transformers_weights", "lightgpt2", "auto_map", "architectures")


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
        return (self.like, f"{self.key}.like") if self.like else super().tokenizer

    def configs(self, trust_remote_code: bool) -> dict[str, PretrainedConfig]:
        """The model's configuration; its vocabulary is known later if the tokenizer decides it."""
        return {f"{self.key}.model": self._config({}, trust_remote_code)}

    def build(self, data: TaskData, trust_remote_code: bool) -> tuple[PreTrainedModel, list[Operation]]:
        tokenizer = data.tokenizer
        special = family_of(self._config({}, trust_remote_code)).special_tokens(tokenizer)
        values = {"vocab_size": needed_rows(tokenizer), **special}
        config = self._config(values | (self.task.head_settings(None) or {}), trust_remote_code)
        check_tokenizer(tokenizer, config, "data.tokenizer")
        return new_model(config, f"{self.key}.model"), []

    def _config(self, values: dict[str, Any], trust: bool) -> PretrainedConfig:
        """The configuration with these values, or those that it shares with `like`, unless others are given."""
        if self.like is not None:
            shared = load_config(self.like, f"{self.key}.like", trust, self.task.auto_classes)
            left_out = {*_NOT_SHARED, *family_of(shared).layer_settings}
            known = type(shared)()  # the file of a real model says more than its class has a place for
            said = shared.to_diff_dict().items()
            values = {key: value for key, value in said if key not in left_out and hasattr(known, key)}
            values["model_type"] = shared.model_type
        return load_config({**values, **self.source}, f"{self.key}.model", auto_classes=self.task.auto_classes)
