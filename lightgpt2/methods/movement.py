"""Movement pruning: which heads and neurons, blocks or weights stay is learned; see `adaptations.movement_gates`."""

from typing import Any, Literal

from lightgpt2.adaptations.base import Adaptation
from lightgpt2.adaptations.movement_gates import MovementGates
from lightgpt2.adaptations.pruning_settings import Pruning
from lightgpt2.methods.method import Method
from lightgpt2.methods.presets import places, taught
from lightgpt2.objectives.distillation import DistillLoss
from lightgpt2.starts.pretrained import Pretrained
from lightgpt2.teachers.base import Teacher


class MovementPruning(Method):
    """Trains a model while it is pruned by learned scores, and removes what has gone.

    Give it a teacher, the model itself where there is none better: what it is to find again is then what pruning took. Scores
    that a converged model learns from cross-entropy before anything is pruned rank its neurons worse than chance
    (`benchmarks/scores.py`). Compare with `criterion: magnitude`; benchmarks/RESULTS.md says where movement lost.

    Args:
        model: Hub id, model folder or GGUF file.
        teacher: Hub id, model folder or GGUF file of a teacher, or a teacher by its class path.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
        pruning: What goes, and when.
        adaptations: What else is done to the model: `FakeQuantize` trains it for integers in the same run.
    """

    def __init__(
        self,
        model: str,
        teacher: str | Teacher | None = None,
        loss: DistillLoss | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        pruning: Pruning = Pruning(),
        adaptations: list[Adaptation] | None = None,
        **settings: Any,
    ) -> None:
        objective, problems = taught(teacher, loss, layer_map)
        own: list[Adaptation] = [MovementGates(pruning)]
        parts = [*own, *(adaptations or [])]
        super().__init__(start=Pretrained(model), objective=objective, adaptations=parts, **settings)
        self.names, self.contradictions = places({}, own), problems
