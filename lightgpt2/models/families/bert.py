"""BERT and DistilBERT, which can be exported and not trained."""

from lightgpt2.models.families.base import Encoder

_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value")
BERT = Encoder(
    ("bert",),
    blocks="encoder.layer",
    parts=(
        *_ATTENTION, "attention.output.dense", "attention.output.LayerNorm",
        "intermediate.dense", "output.dense", "output.LayerNorm",
    ),
    pooler="bert.pooler.dense",
    pooled="tanh",
    activation="hidden_act",
)  # fmt: skip
DISTILBERT = Encoder(
    ("distilbert",),
    blocks="transformer.layer",
    parts=(
        "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
        "ffn.lin1", "ffn.lin2", "output_layer_norm",
    ),
    pooler="pre_classifier",
    pooled="relu",
    activation="activation",
)  # fmt: skip
