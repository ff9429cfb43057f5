"""Full fine-tuning, and training from scratch when the model is a configuration."""

from typing import Any, Literal

from lightgpt2.methods.method import Method
from lightgpt2.methods.presets import places, taught
from lightgpt2.objectives.distillation import DistillLoss
from lightgpt2.starts.fresh import Fresh
from lightgpt2.starts.pretrained import Pretrained
from lightgpt2.teachers.base import Teacher


class FineTune(Method):
    """Trains all weights of one model, with cross-entropy or from a teacher.

    Args:
        model: Hub id, model folder or GGUF file; or a configuration (`{model_type: gpt2, n_layer: 2, ...}`) for a model
            that starts from random weights, with the tokenizer's vocabulary.
        teacher: Hub id, model folder or GGUF file of a teacher, or a teacher by its class path.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        teacher: str | Teacher | None = None,
        loss: DistillLoss | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        **settings: Any,
    ) -> None:
        start = Fresh(model) if isinstance(model, dict) else Pretrained(model)
        objective, problems = taught(teacher, loss, layer_map)
        super().__init__(start=start, objective=objective, **settings)
        self.names, self.contradictions = places({}), problems
