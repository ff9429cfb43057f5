"""LoRA: low-rank adapters on a frozen model; see `adaptations.lora`."""

from typing import Any, Literal

from lightgpt2.adaptations.base import Adaptation
from lightgpt2.adaptations.lora import Lora, LoraAdapters
from lightgpt2.methods.method import Method
from lightgpt2.methods.presets import places, taught
from lightgpt2.objectives.distillation import DistillLoss
from lightgpt2.starts.pretrained import Pretrained
from lightgpt2.teachers.base import Teacher


class LoRA(Method):
    """Trains adapters on a frozen model.

    Checkpoints hold the adapters only. At the end `checkpoints/<run>/adapter/` is a folder that PEFT loads onto the model that
    the stage started from, and `checkpoints/<run>/model/` is that model with the adapters merged into its weights.

    Args:
        model: Hub id, model folder or GGUF file; or an adapter folder, to go on with its adapters on the model that it names.
        lora: The adapters; not together with an adapter folder. The default is `LoraAdapters()`.
        teacher: Hub id, model folder or GGUF file of a teacher, or a teacher by its class path.
        loss: Weights of the loss with a teacher.
        layer_map: As for `Distill`, with a hidden loss.
        adaptations: What else is done to the model: `FakeQuantize` rounds the merged weights.
    """

    _precision: Literal["fp32", "nf4"] = "fp32"

    def __init__(
        self,
        model: str,
        lora: LoraAdapters | None = None,
        teacher: str | Teacher | None = None,
        loss: DistillLoss | None = None,
        layer_map: Literal["even"] | list[int] | None = None,
        adaptations: list[Adaptation] | None = None,
        **settings: Any,
    ) -> None:
        objective, problems = taught(teacher, loss, layer_map)
        own: list[Adaptation] = [Lora(lora)]
        start = Pretrained(model, self._precision, adapters=True)
        super().__init__(start=start, objective=objective, adaptations=[*own, *(adaptations or [])], **settings)
        self.names, self.contradictions = places({}, own), problems
