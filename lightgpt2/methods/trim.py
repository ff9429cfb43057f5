"""Trimming: a smaller model is cut out of a big one, and trained; see `starts.trimmed`."""

from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from lightgpt2.errors import Problem
from lightgpt2.methods.method import Method
from lightgpt2.methods.presets import NAMES
from lightgpt2.models.layers import LayerChoice, Size
from lightgpt2.models.trimming import Importance
from lightgpt2.objectives.distillation import Distillation, DistillLoss, LayerMap
from lightgpt2.starts.trimmed import Trimmed


class Trim(Method):
    """Cuts a smaller model out of a bigger one and trains it.

    Args:
        model: Hub id, model folder or GGUF file of the bigger one.
        layers: The layers that stay: their number or share, or a list; `{encoder: ..., decoder: ...}` gives each stack its
            own. The default is all.
        layer_choice: Where a number of layers is taken from: `even`, evenly spaced with both ends, or `centre`, the middle.
        width: Size of the hidden states, or a share of the model's (0.5). The default is the model's.
        heads: Attention heads of a layer, or a share. The default keeps the size of a head.
        ffn: Neurons of a layer, or a share. The default keeps their ratio to the width.
        vocabulary: The tokens that stay: with `corpus` those that the training split needs, of byte-level BPE or WordPiece.
            Perplexities are then over these tokens, the uncut model's too; bits per byte compare with the full vocabulary.
        importance: Which channels stay: those with the largest weights (`norm`), those that carry most on the training text
            (`activation`), or the first ones (`first`), as a control.
        calibration: Training inputs on which `activation` is measured.
        loss: Weights of the loss, for the uncut model to be the teacher. The default is cross-entropy alone.
        layer_map: As for `Distill`, with a hidden loss.
    """

    def __init__(
        self,
        model: str,
        layers: LayerChoice | None = None,
        layer_choice: Literal["even", "centre"] = "even",
        width: Size | None = None,
        heads: Size | None = None,
        ffn: Size | None = None,
        vocabulary: Literal["corpus"] | None = None,
        importance: Importance = "norm",
        calibration: PositiveInt = 32,
        loss: DistillLoss | None = None,
        layer_map: LayerMap | None = None,
        **settings: Any,
    ) -> None:
        start = Trimmed(model, layers, layer_choice, width, heads, ffn, vocabulary, importance, calibration)
        objective = Distillation(None, loss, layer_map) if loss else None
        super().__init__(start=start, objective=objective, **settings)
        self.names = NAMES
        if layer_map is not None and not loss:
            what = "without a hidden loss it means nothing"
            self.contradictions = [Problem("model.layer_map", what, "remove it, or give model.loss.hidden")]
