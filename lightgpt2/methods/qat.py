"""Quantization-aware training: a model learns with its weights rounded to integers; see `adaptations.fake_quantize`."""

from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval

from lightgpt2.adaptations.base import Adaptation
from lightgpt2.adaptations.fake_quantize import FakeQuantize
from lightgpt2.methods.method import Method
from lightgpt2.methods.presets import places, taught
from lightgpt2.models.integers import Integers
from lightgpt2.objectives.distillation import DistillLoss
from lightgpt2.starts.pretrained import Pretrained
from lightgpt2.teachers.base import Teacher


class QAT(Method):
    """Trains a model whose weights are rounded to integers in every forward pass, and saves the integers.

    The artefact holds integers with scales; loaded (with `trust_remote_code=True` in plain transformers) it computes in FP32
    with their products, exactly the weights that the model was trained with. What was pruned before stays zero. With
    `trainer.max_steps` 0 the weights are rounded as they are: the control that says what training bought.

    Args:
        model: Hub id, model folder or GGUF file, in full precision.
        quantization: What weights are rounded to.
        delay: Share of the optimizer steps that are taken before rounding starts. (Validation always rounds.) With 1 none of
            them sees it.
        teacher: Hub id, model folder or GGUF file of a teacher (the model itself in full precision, for one), or a teacher
            by its class path.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
        adaptations: What else is done to the model: `MovementGates` prunes it in the same run.
    """

    def __init__(
        self,
        model: str,
        quantization: Integers = Integers(),
        delay: ClosedUnitInterval = 0.0,
        teacher: str | Teacher | None = None,
        loss: DistillLoss | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        adaptations: list[Adaptation] | None = None,
        **settings: Any,
    ) -> None:
        objective, problems = taught(teacher, loss, layer_map)
        own: list[Adaptation] = [FakeQuantize(quantization, delay)]
        parts = [*own, *(adaptations or [])]
        super().__init__(start=Pretrained(model), objective=objective, adaptations=parts, **settings)
        self.names, self.contradictions = places({}, own), problems
