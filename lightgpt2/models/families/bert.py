"""BERT and DistilBERT, which can be exported and not trained."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Encoder:
    """The paths of an encoder's modules."""

    blocks: str  # the list of layers in the base model
    parts: tuple[str, ...]  # of a layer: query, key, value, attended, first norm, up, down, second norm
    pooler: str  # the layer between the first token and the classifier
    pooled: str  # its activation
    activation: str  # the configuration's key for the neurons' activation

    def layers(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        """The parts of each layer."""
        layers: Any = model.base_model.get_submodule(self.blocks)
        return [[layer.get_submodule(path) for path in self.parts] for layer in layers]


ENCODERS = {
    "bert": Encoder(
        "encoder.layer",
        (
            "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
        ),
        "bert.pooler.dense", "tanh", "hidden_act",
    ),
    "distilbert": Encoder(
        "transformer.layer",
        (
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
            "ffn.lin1", "ffn.lin2", "output_layer_norm",
        ),
        "pre_classifier", "relu", "activation",
    ),
}  # fmt: skip
