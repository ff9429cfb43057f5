"""BERT: learned positions, segments, norms after each part, a pooler before the classifier."""

from typing import ClassVar

from lightgpt2.models.families.encoder import Encoder


class Bert(Encoder):
    """BERT and MiniLM."""

    model_types, blocks = ("bert",), "encoder.layer"
    model_inputs = ("input_ids", "attention_mask", "token_type_ids")
    head_parts = ("classifier", "bert.pooler")
    pooler, pooled = "bert.pooler.dense", "tanh"
    parts = (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    )  # fmt: skip
    axes: ClassVar = {
        r"bert\.embeddings\.word_embeddings": ("vocabulary", "width"),
        r"bert\.embeddings\.position_embeddings": ("position", "width"),
        r"bert\.embeddings\.token_type_embeddings": ("segment", "width"),
        r"bert\.(embeddings|encoder\.layer\.\d+\.(attention\.)?output)\.LayerNorm": ("width",),
        r"bert\.encoder\.layer\.\d+\.attention\.self\.query": ("query", "width"),
        r"bert\.encoder\.layer\.\d+\.attention\.self\.key": ("key", "width"),
        r"bert\.encoder\.layer\.\d+\.attention\.self\.value": ("value", "width"),
        r"bert\.encoder\.layer\.\d+\.attention\.output\.dense": ("width", "context"),
        r"bert\.encoder\.layer\.\d+\.intermediate\.dense": ("ffn", "width"),
        r"bert\.encoder\.layer\.\d+\.output\.dense": ("width", "ffn"),
        r"bert\.pooler\.dense": ("width", "width"),
        r"classifier": ("class", "width"),
    }
