"""DistilBERT: BERT's blocks under other names, without segments and pooler."""

from typing import ClassVar

from transformers import PretrainedConfig

from lightgpt2.models.families.base import Shape
from lightgpt2.models.families.encoder import Encoder


class DistilBert(Encoder):
    """DistilBERT."""

    model_types, blocks = ("distilbert",), "transformer.layer"
    head_parts = ("classifier", "pre_classifier")
    adapted: ClassVar = ["q_lin", "v_lin"]
    pooler, pooled = "pre_classifier", "relu"
    parts = (
        "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
        "ffn.lin1", "ffn.lin2", "output_layer_norm",
    )  # fmt: skip
    axes: ClassVar = {
        r"distilbert\.embeddings\.word_embeddings": ("vocabulary", "width"),
        r"distilbert\.embeddings\.position_embeddings": ("position", "width"),
        r"distilbert\.(embeddings\.LayerNorm|transformer\.layer\.\d+\.(sa|output)_layer_norm)": ("width",),
        r"distilbert\.transformer\.layer\.\d+\.attention\.q_lin": ("query", "width"),
        r"distilbert\.transformer\.layer\.\d+\.attention\.k_lin": ("key", "width"),
        r"distilbert\.transformer\.layer\.\d+\.attention\.v_lin": ("value", "width"),
        r"distilbert\.transformer\.layer\.\d+\.attention\.out_lin": ("width", "context"),
        r"distilbert\.transformer\.layer\.\d+\.ffn\.lin1": ("ffn", "width"),
        r"distilbert\.transformer\.layer\.\d+\.ffn\.lin2": ("width", "ffn"),
        r"pre_classifier": ("width", "width"),
        r"classifier": ("class", "width"),
    }

    def activation(self, config: PretrainedConfig) -> str:
        return config.activation

    def shape(self, config: PretrainedConfig) -> Shape:
        return Shape(config.dim, config.n_heads, 1, config.dim // config.n_heads, config.hidden_dim)

    def resized(self, config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
        sized = super().resized(config, shape)
        sized.hidden_dim = shape.ffn
        return sized
