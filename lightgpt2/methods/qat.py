"""Quantization-aware training: a model learns with its weights rounded to integers; see `adaptations.fake_quantize`."""

from typing import Any

from jsonargparse.typing import ClosedUnitInterval

from lightgpt2.adaptations.fake_quantize import FakeQuantize
from lightgpt2.methods.presets import Preset
from lightgpt2.models.integers import Integers
from lightgpt2.starts.pretrained import Pretrained


class QAT(Preset):
    """Trains a model whose weights are rounded to integers in every forward pass, and saves the integers.

    The artefact holds integers with scales; loaded (with `trust_remote_code=True` in plain transformers) it computes in FP32
    with their products, exactly the weights that the model was trained with. What was pruned before stays zero. With
    `trainer.max_steps` 0 the weights are rounded as they are: the control that says what training bought. The model itself in
    full precision is a good teacher.

    Args:
        model: Hub id, model folder or GGUF file, in full precision.
        quantization: What weights are rounded to.
        delay: Share of the optimizer steps that are taken before rounding starts. (Validation always rounds.) With 1 none of
            them sees it.
    """

    def __init__(
        self, model: str, quantization: Integers = Integers(), delay: ClosedUnitInterval = 0.0, **settings: Any
    ) -> None:
        super().__init__(start=Pretrained(model), own=[FakeQuantize(quantization, delay)], **settings)
