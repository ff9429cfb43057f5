"""Knowledge distillation: a small student learns from a large teacher; see `objectives.distillation`."""

from typing import Any

from lightgpt2.errors import Problem
from lightgpt2.methods.method import Method
from lightgpt2.methods.presets import NAMES
from lightgpt2.models.layers import LayerChoice
from lightgpt2.objectives.distillation import Distillation, DistillLoss, LayerMap
from lightgpt2.starts.base import Start
from lightgpt2.starts.chosen_layers import ChosenLayers
from lightgpt2.starts.fresh import Fresh
from lightgpt2.starts.pretrained import Pretrained
from lightgpt2.teachers.mixture import WeightedTeacher
from lightgpt2.teachers.model import PretrainedTeacher


class Distill(Method):
    """Trains a student to follow a teacher.

    Args:
        teacher: Hub id, model folder or GGUF file of the teacher.
        student: Hub id, folder or GGUF file of a student to load; or configuration values that differ from the teacher's,
            for a student that starts from random weights; or nothing, for a student made of the teacher's layers.
        layers: Which of the teacher's layers make the student: their number or share, evenly spaced with both ends, or a list;
            `{encoder: ..., decoder: ...}` gives each stack its own. The default is half of them. Only without `student`.
        layer_map: The teacher layer that each student layer is compared with in the hidden loss: `even`, or a list as long
            as the student; or one for each stack, as `layers`. The default for a student made of the teacher's layers is
            those layers. Embeddings are compared with embeddings always.
        loss: Weights of the loss.
        teachers: Further teachers, `[{model: ..., weight: 1.0}]`, with the same tokenizer. The student learns the weighted mean
            of all distributions, in which `teacher` has the weight 1, and hidden states of `teacher` alone.
    """

    def __init__(
        self,
        teacher: str,
        student: str | dict[str, Any] | None = None,
        layers: LayerChoice | None = None,
        layer_map: LayerMap | None = None,
        loss: DistillLoss = DistillLoss(),
        teachers: list[WeightedTeacher] | None = None,
        **settings: Any,
    ) -> None:
        start: Start = ChosenLayers(teacher, layers)
        if student is not None:
            start = Fresh(student, like=teacher) if isinstance(student, dict) else Pretrained(student)
        source = None if student is None else PretrainedTeacher(teacher)
        super().__init__(start=start, objective=Distillation(source, loss, layer_map, teachers or []), **settings)
        self.names = NAMES | {"start.model": "teacher" if student is None else "student", "start.like": "teacher"}
        if student is not None and layers is not None:
            what = "cannot be given together with model.student"
            self.contradictions = [Problem("model.layers", what, "remove one of them")]
