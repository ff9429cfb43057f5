"""Full fine-tuning, and training from scratch when the model is a configuration."""

from typing import Any

from lightgpt2.methods.presets import Preset
from lightgpt2.starts.fresh import Fresh
from lightgpt2.starts.pretrained import Pretrained


class FineTune(Preset):
    """Trains all weights of one model, with cross-entropy or from a teacher.

    Args:
        model: Hub id, model folder or GGUF file; or a configuration (`{model_type: gpt2, n_layer: 2, ...}`) for a model
            that starts from random weights, with the tokenizer's vocabulary.
    """

    def __init__(self, model: str | dict[str, Any], **settings: Any) -> None:
        start = Fresh(model) if isinstance(model, dict) else Pretrained(model)
        super().__init__(start=start, own=[], **settings)
