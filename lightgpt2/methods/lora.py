"""LoRA: low-rank adapters on a frozen model; see `adaptations.lora`."""

from typing import Any, Literal

from lightgpt2.adaptations.lora import Lora, LoraAdapters
from lightgpt2.methods.presets import Preset
from lightgpt2.starts.pretrained import Pretrained


class LoRA(Preset):
    """Trains adapters on a frozen model.

    Checkpoints hold the adapters only. At the end `checkpoints/<run>/adapter/` is a folder that PEFT loads onto the model that
    the stage started from, and `checkpoints/<run>/model/` is that model with the adapters merged into its weights.

    Args:
        model: Hub id, model folder or GGUF file; or an adapter folder, to go on with its adapters on the model that it names.
        lora: The adapters; not together with an adapter folder. The default is `LoraAdapters()`.
    """

    _precision: Literal["fp32", "nf4"] = "fp32"

    def __init__(self, model: str, lora: LoraAdapters | None = None, **settings: Any) -> None:
        start = Pretrained(model, self._precision, adapters=True)
        super().__init__(start=start, own=[Lora(lora)], **settings)
