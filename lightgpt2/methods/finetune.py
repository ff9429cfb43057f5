"""Full fine-tuning, and training from scratch when the model is a configuration."""

from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from lightgpt2.methods.method import Method
from lightgpt2.methods.optimizer import OptimizerConfig
from lightgpt2.models.loading import load_config, load_model, new_model
from lightgpt2.tasks.language_modeling import LanguageModeling


class FineTune(Method):
    """Trains all weights of one model with cross-entropy.

    Args:
        model: Hub id, model folder or GGUF file; or a configuration (`{model_type: gpt2, n_layer: 2, ...}`) for a model
            that starts from random weights, with the tokenizer's vocabulary.
        task: What is predicted and how it is scored.
        optimizer: AdamW and its schedule.
        compile: Whether to compile the model with torch.compile, in place.
        activation_checkpointing: Whether to keep of each block only its input for the backward pass, and compute the rest again
            there (Chen et al. 2016, arXiv:1604.06174): less memory for more time, and the same gradients.
        trust_remote_code: Whether code in the model's folder may run. Off unless asked.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        task: LanguageModeling = LanguageModeling(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(task, optimizer, compile, activation_checkpointing, trust_remote_code)
        self._source = model

    @property
    def parent(self) -> tuple[str | dict[str, Any], str]:
        """The model, under `model.model`."""
        return self._source, "model.model"

    def configs(self) -> dict[str, PretrainedConfig]:
        """The model's configuration."""
        source, key = self.parent
        return {key: load_config(source, key, self.trust_remote_code)}

    def build(self) -> None:
        """Loads the model, or makes it from its configuration with the tokenizer's vocabulary."""
        source, key = self.parent
        if isinstance(source, str):
            self.model = load_model(source, key, self.trust_remote_code)
            return
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        self.model = new_model(load_config({"vocab_size": len(tokenizer), **special, **source}, key), key)

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with the next token."""
        return self.task.cross_entropy(self.model, batch), {}
