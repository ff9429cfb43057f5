"""What the presets share: the places of a model and a teacher in their arguments."""

from collections.abc import Sequence
from typing import Any

from lightgpt2.adaptations.base import Adaptation
from lightgpt2.errors import Problem
from lightgpt2.methods.method import Method
from lightgpt2.objectives.distillation import Distillation, DistillLoss, LayerMap
from lightgpt2.starts.base import Start
from lightgpt2.teachers.base import Teacher
from lightgpt2.teachers.mixture import WeightedTeacher
from lightgpt2.teachers.model import PretrainedTeacher

NAMES = {"start": "", "objective": ""}  # the settings of these parts are a preset's own


class Preset(Method):
    """A method with fixed adaptations, which learns from the labels or from a teacher.

    Args:
        start: Where the model comes from.
        own: The preset's own adaptations, which come before those that a person adds.
        teacher: Hub id, model folder or GGUF file of a teacher, or a teacher by its class path.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
        teachers: Further teachers, as for `Distill`.
        adaptations: What else is done to the model in the same run: `FakeQuantize` trains it for integers, `MovementGates`
            prunes it.
    """

    def __init__(
        self,
        start: Start,
        own: Sequence[Adaptation],
        teacher: str | Teacher | None = None,
        loss: DistillLoss | None = None,
        layer_map: LayerMap | None = None,
        teachers: list[WeightedTeacher] | None = None,
        adaptations: list[Adaptation] | None = None,
        **settings: Any,
    ) -> None:
        source = PretrainedTeacher(teacher) if isinstance(teacher, str) else teacher
        objective = None
        if source is not None:
            objective = Distillation(source, loss or DistillLoss(), layer_map, teachers or [])
        super().__init__(start=start, objective=objective, adaptations=[*own, *(adaptations or [])], **settings)
        mine = {f"adaptations.{i}": "" for i in range(len(own))}
        added = {f"adaptations.{len(own) + i}": f"adaptations.{i}" for i in range(len(adaptations or []))}
        self.names = NAMES | mine | added
        unread = {"loss": loss, "layer_map": layer_map, "teachers": teachers} if source is None else {}
        self.contradictions = [
            Problem(f"objective.{name}", "means nothing without model.teacher", "give both")
            for name, given in unread.items()
            if given
        ]
