"""What the presets share: a teacher's place in their arguments, and where the settings of the parts stand."""

from collections.abc import Sequence
from typing import Literal

from lightgpt2.adaptations.base import Adaptation
from lightgpt2.errors import Problem
from lightgpt2.objectives.base import Objective
from lightgpt2.objectives.cross_entropy import CrossEntropy
from lightgpt2.objectives.distillation import Distillation, DistillLoss
from lightgpt2.teachers.base import Teacher
from lightgpt2.teachers.model import PretrainedTeacher

LayerMap = Literal["even"] | list[int] | None


def taught(
    teacher: str | Teacher | None, loss: DistillLoss | None, layer_map: LayerMap
) -> tuple[Objective, list[Problem]]:
    """Distillation where there is a teacher, else cross-entropy; and the arguments that mean nothing without one."""
    if teacher is not None:
        source = PretrainedTeacher(teacher) if isinstance(teacher, str) else teacher
        return Distillation(source, loss or DistillLoss(), layer_map), []
    unread = [name for name, given in (("loss", loss), ("layer_map", layer_map)) if given]
    problems = [Problem(f"objective.{name}", "means nothing without model.teacher", "give both") for name in unread]
    return CrossEntropy(), problems


def places(own: dict[str, str], adaptations: Sequence[Adaptation] = ()) -> dict[str, str]:
    """Where the settings of the parts stand in a preset's configuration.

    Args:
        own: New keys by those of the parts.
        adaptations: The preset's own adaptations, which come before those that a person adds.
    """
    count = len(adaptations)
    added = {f"adaptations.{count + i}": f"adaptations.{i}" for i in range(20)} if count else {}
    mine = {f"adaptations.{i}": "" for i in range(count)}
    return {"start": "", "objective": "", **mine, **added, **own}
