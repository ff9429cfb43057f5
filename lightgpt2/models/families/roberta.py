"""RoBERTa: BERT's blocks, positions that begin after the padding token's, a head of two layers."""

from typing import ClassVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families.bert import Bert
from lightgpt2.models.families.encoder import Encoder


class Roberta(Encoder):
    """RoBERTa and its distilled version."""

    model_types, blocks = ("roberta",), "encoder.layer"
    head_parts, counts_tokens = ("classifier",), True
    pooler, pooled = "classifier.dense", "tanh"
    parts = Bert.parts
    axes: ClassVar = {
        **{
            pattern.replace("bert", "roberta", 1): axes
            for pattern, axes in Bert.axes.items()
            if "pooler" not in pattern
        },
        r"classifier\.dense": ("width", "width"),
        r"classifier\.out_proj": ("class", "width"),
    }

    def classifier(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule("classifier.out_proj")

    def positions(self, config: PretrainedConfig) -> int | None:
        return config.max_position_embeddings - config.pad_token_id - 1
