"""Movement pruning: which heads and neurons, blocks or weights stay is learned; see `adaptations.movement_gates`."""

from typing import Any

from lightgpt2.adaptations.movement_gates import MovementGates
from lightgpt2.adaptations.pruning_settings import Pruning
from lightgpt2.methods.presets import Preset
from lightgpt2.starts.pretrained import Pretrained


class MovementPruning(Preset):
    """Trains a model while it is pruned by learned scores, and removes what has gone.

    Give it a teacher, the model itself where there is none better: what it is to find again is then what pruning took. Scores
    that a converged model learns from cross-entropy before anything is pruned rank its neurons worse than chance
    (`benchmarks/scores.py`). Compare with `criterion: magnitude`; docs/results/movement.md says where movement lost.

    Args:
        model: Hub id, model folder or GGUF file.
        pruning: What goes, and when.
    """

    def __init__(self, model: str, pruning: Pruning = Pruning(), **settings: Any) -> None:
        super().__init__(start=Pretrained(model), own=[MovementGates(pruning)], **settings)
