"""Encoders as ONNX graphs.

Attention is the standard's own operator (opset 23). With ONNX Runtime 1.32 at 1x128 and 12 heads, mask included, it took
144 us (heads of 32) and 242 us (heads of 64), `MultiHeadAttention` with a mask at least 260 us and 370 us.

Linear layers in FP32 are convolutions of one pixel, the tokens of all texts side by side being the image: ONNX Runtime keeps
channels in blocks for these, where widths are multiples of 4. With AVX-512 (2 cores of an AMD EPYC) that took 5 % (MiniLM) and
7 % (DistilBERT's shape) less time than `MatMul` at 1x128, 13 % and 15 % less at 1x8; with its AVX-512 switched off,
2 to 4 % more and none at 1x128, 11 % and 8 % more at 1x8. Loading takes more: 0.22 s for 0.14 s and 295 MB for 183 MB, of
DistilBERT's shape.
"""

from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.onnx.decoder import ACTIVATIONS, Forms, ModelWriter
from lightgpt2.conversions.onnx.graph import Graph
from lightgpt2.conversions.onnx.weights import Vocabulary, linear
from lightgpt2.errors import Problem
from lightgpt2.models.families import Encoder, family_of

OPSET = 23  # the first with `Attention`

_FLOAT, _INT = ir.DataType.FLOAT, ir.DataType.INT64


def encoder_problems(config: PretrainedConfig) -> list[Problem]:
    """Why an encoder has no graph here."""
    found = []
    if (activation := family_of(config).activation(config)) not in ACTIVATIONS:
        found.append(f"the activation {activation} is not written; known are {', '.join(ACTIVATIONS)}")
    if getattr(config, "is_decoder", False):
        found.append("this model is a decoder (is_decoder); only encoders are written")
    if (kind := getattr(config, "position_embedding_type", None)) not in (None, "absolute"):
        found.append(f"positions of type {kind} are not written; only absolute ones")
    return [Problem("--format", what) for what in found]


def write_encoder(model: PreTrainedModel, folder: Path, forms: Forms) -> None:
    """Write `model.onnx` and `model.onnx_data` of an encoder, the base model or with a head for sequence classification.

    Inputs: `input_ids`, `attention_mask`, and `token_type_ids` where the family has them, `[B, S]`. Outputs: `logits`
    `[B, labels]` of a model with a head, which is in FP32 always, else `last_hidden_state` `[B, S, D]`.
    """
    with torch.no_grad(), Graph(folder, OPSET) as graph:
        _Encoder(graph, model, forms).write()


class _Encoder(ModelWriter):
    def __init__(self, graph: Graph, model: PreTrainedModel, forms: Forms) -> None:
        super().__init__(graph, model, forms)
        self._family = cast(Encoder, family_of(model))
        self._pixels = forms.layers == "fp32"  # whether the layers see one image of all tokens
        self._shape: ir.Value  # of texts again, `[B, S, -1]`

    def write(self) -> None:
        graph, model = self.graph, self.model
        ids = graph.input("input_ids", _INT, ["batch", "sequence"])
        mask = graph.input("attention_mask", _INT, ["batch", "sequence"])
        length = graph.op("Shape", ids, start=1, end=2)
        if self._pixels:
            self._shape = graph.op("Concat", graph.op("Shape", ids), graph.constant([-1], "rest"), axis=0)
        hidden = self._embed(ids, length)
        # For each query one row: the operator wants it.
        bias = self._for_each_query(self._hidden(mask), length)
        hidden = self._tokens(hidden)
        for block in self._family.block_parts(model):
            hidden = self._block(block, hidden, bias)
        hidden = self._texts(hidden)
        if not hasattr(model, "classifier"):
            graph.output("last_hidden_state", hidden, _FLOAT, ["batch", "sequence", self.config.hidden_size])
            return
        first = graph.op("Gather", hidden, graph.constant(0, "first"), axis=1)
        pooled = self._activate(self._whole(first, model.get_submodule(self._family.pooler)), self._family.pooled)
        graph.output("logits", self._whole(pooled, model.classifier), _FLOAT, ["batch", model.classifier.out_features])

    def _embed(self, ids: ir.Value, length: ir.Value) -> ir.Value:
        graph, parts = self.graph, self.model.base_model.embeddings
        table = parts.word_embeddings
        words = Vocabulary(graph, self._names[id(table)], self._matrix(table), self.forms.embeddings)
        zero = graph.constant([0], "zero")
        places = graph.op("Slice", self._parameter(parts.position_embeddings, "weight"), zero, length, zero)
        total = graph.op("Add", words.rows(ids), places)
        if hasattr(parts, "token_type_embeddings"):
            types = graph.input("token_type_ids", _INT, ["batch", "sequence"])
            rows = graph.op("Gather", self._parameter(parts.token_type_embeddings, "weight"), types)
            total = graph.op("Add", total, rows)
        return self._normalize(parts.LayerNorm, total)

    def _block(self, parts: list[Any], x: ir.Value, bias: ir.Value) -> ir.Value:
        graph, heads = self.graph, self.config.num_attention_heads
        *inputs, attended, first_norm, up, down, second_norm = parts
        if self._pixels:
            queries = [self._texts(self._project(x, module)) for module in inputs]
        else:
            queries = graph.ops("Split", self._project(x, *inputs), outputs=3, axis=2, num_outputs=3)
        scale = (self.config.hidden_size // heads) ** -0.5
        seen = graph.op("Attention", *queries, bias, q_num_heads=heads, kv_num_heads=heads, scale=scale)
        # SkipLayerNormalization would add as well, but costs MiniLM in INT8 1.6 ms more, of 5 (ONNX Runtime 1.32).
        x = self._normalize(first_norm, graph.op("Add", x, self._project(self._tokens(seen), attended)))
        wide = self._activate(self._project(x, up), self._family.activation(self.config))
        return self._normalize(second_norm, graph.op("Add", x, self._project(wide, down)))

    def _tokens(self, x: ir.Value) -> ir.Value:
        """What belongs to texts `[B, S, D]` as the layers take it: an image is `[1, 1, B * S, D]`."""
        if not self._pixels:
            return x
        return self.graph.op("Reshape", x, self.graph.constant([1, 1, -1, self.config.hidden_size], "image"))

    def _texts(self, x: ir.Value) -> ir.Value:
        return self.graph.op("Reshape", x, self._shape) if self._pixels else x

    def _project(self, x: ir.Value, *modules: Any) -> ir.Value:
        graph, (names, matrix, bias) = self.graph, self._joined(modules)
        if (form := self.forms.of(names)) != "fp32" or not self._pixels:
            return linear(graph, names[0], x, matrix, form, bias)
        # The transposes to channels first and back are cheap: ONNX Runtime removes most of them. Queries, keys and values
        # share the one that is left.
        weight = graph.weight(matrix.rows[:, :, None, None].numpy(), f"{names[0]}.weight")
        added = graph.weight(cast(Tensor, bias).numpy(), f"{names[0]}.bias")
        found = graph.op("Conv", graph.op("Transpose", x, perm=[0, 3, 1, 2]), weight, added)
        return graph.op("Transpose", found, perm=[0, 2, 3, 1])

    def _whole(self, x: ir.Value, module: Any) -> ir.Value:
        """`x` through a linear layer in FP32."""
        (name,), matrix, bias = self._joined([module])
        return linear(self.graph, name, x, matrix, "fp32", bias)
