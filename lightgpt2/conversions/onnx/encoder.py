"""BERT and DistilBERT encoders as ONNX graphs.

Attention is the standard's own operator (opset 23). With ONNX Runtime 1.32 at 1x128 and 12 heads, mask included, it took
144 us (heads of 32) and 242 us (heads of 64), `MultiHeadAttention` with a mask at least 260 us and 370 us.

Linear layers in FP32 are convolutions of one pixel, the tokens of all texts side by side being the image: ONNX Runtime keeps
channels in blocks for these, where widths are multiples of 4. With AVX-512 (2 cores of an AMD EPYC) that took 5 % (MiniLM) and
7 % (DistilBERT's shape) less time than `MatMul` at 1x128, 13 % and 15 % less at 1x8; with its AVX-512 switched off,
2 to 4 % more and none at 1x128, 11 % and 8 % more at 1x8. Loading takes more: 0.22 s for 0.14 s and 295 MB for 183 MB, of
DistilBERT's shape.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.onnx.decoder import ACTIVATIONS, Forms
from lightgpt2.conversions.onnx.graph import Graph
from lightgpt2.conversions.onnx.weights import Matrix, Vocabulary, linear

OPSET = 23  # the first with `Attention`

_FLOAT, _INT = ir.DataType.FLOAT, ir.DataType.INT64
_MASKED = -1e9  # added to the scores of padding; with infinity, a row of nothing but padding would have no sum


@dataclass(frozen=True)
class _Block:
    """The modules of one layer, in the order in which they are used."""

    query: Any
    key: Any
    value: Any
    attended: Any
    first_norm: Any
    up: Any
    down: Any
    second_norm: Any


def encoder_problems(config: PretrainedConfig) -> list[str]:
    """Why an encoder has no graph here, one line each.

    Args:
        config: Of type `bert` or `distilbert`.
    """
    found = []
    if (activation := _activation(config)) not in ACTIVATIONS:
        found.append(f"--format: the activation {activation} is not written; known are {', '.join(ACTIVATIONS)}")
    if getattr(config, "is_decoder", False):
        found.append("--format: this BERT is a decoder (is_decoder); only encoders are written")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        found.append(
            f"--format: positions of type {config.position_embedding_type} are not written; only absolute ones"
        )
    return found


def write_encoder(model: PreTrainedModel, folder: Path, forms: Forms) -> None:
    """Writes `model.onnx` and `model.onnx_data`.

    Args:
        model: BERT or DistilBERT, the base model or with a head for sequence classification, in FP32.
        folder: Where to; it exists.
        forms: How its weights are stored; the classification head is in FP32 always.
    """
    with torch.no_grad(), Graph(folder, OPSET) as graph:
        Encoder(graph, model, forms).write()


class Encoder:
    """Writes the graph of an encoder.

    Inputs: `input_ids`, `attention_mask`, and for BERT `token_type_ids`, `[B, S]`. Outputs: `logits` `[B, labels]` of a
    model with a head, else `last_hidden_state` `[B, S, D]`.

    Args:
        graph: Where to, of opset 23.
        model: BERT or DistilBERT.
        forms: How its weights are stored.
    """

    def __init__(self, graph: Graph, model: PreTrainedModel, forms: Forms) -> None:
        self.graph, self.model, self.forms, self.config = graph, model, forms, model.config
        self._names = {id(module): name for name, module in model.named_modules()}
        self._pixels = forms.layers == "fp32"  # whether the layers see one image of all tokens
        self._shape: ir.Value  # of texts again, `[B, S, -1]`

    def write(self) -> None:
        """Writes all of it."""
        graph, width = self.graph, self.config.hidden_size
        ids = graph.input("input_ids", _INT, ["batch", "sequence"])
        mask = graph.input("attention_mask", _INT, ["batch", "sequence"])
        length = graph.op("Shape", ids, start=1, end=2)
        if self._pixels:
            self._shape = graph.op("Concat", graph.op("Shape", ids), graph.constant([-1], "rest"), axis=0)
        hidden, bias = self._embed(ids, length), self._mask_bias(mask, length)
        hidden = self._tokens(hidden)
        for block in self._blocks():
            hidden = self._block(block, hidden, bias)
        hidden = self._texts(hidden)
        if hasattr(self.model, "classifier"):
            labels = self.model.classifier.out_features
            graph.output("logits", self._classify(hidden), _FLOAT, ["batch", labels])
        else:
            graph.output("last_hidden_state", hidden, _FLOAT, ["batch", "sequence", width])

    def _embed(self, ids: ir.Value, length: ir.Value) -> ir.Value:
        graph, parts = self.graph, self.model.base_model.embeddings
        matrix = Matrix.of(parts.word_embeddings.weight.detach())
        words = Vocabulary(graph, self._names[id(parts.word_embeddings)], matrix, self.forms.embeddings)
        zero = graph.constant([0], "zero")
        places = graph.op("Slice", self._parameter(parts.position_embeddings, "weight"), zero, length, zero)
        total = graph.op("Add", words.rows(ids), places)
        if hasattr(parts, "token_type_embeddings"):
            types = graph.input("token_type_ids", _INT, ["batch", "sequence"])
            rows = graph.op("Gather", self._parameter(parts.token_type_embeddings, "weight"), types)
            total = graph.op("Add", total, rows)
        return self._norm(parts.LayerNorm, total)

    def _mask_bias(self, mask: ir.Value, length: ir.Value) -> ir.Value:
        """What is added to the scores, `[B, 1, S, S]`: the operator wants a row for each query."""
        graph = self.graph
        hidden = graph.op("Sub", graph.constant(np.float32(1), "seen"), graph.op("Cast", mask, to=_FLOAT))
        row = graph.op("Mul", hidden, graph.constant(np.float32(_MASKED), "masked"))
        row = graph.op("Unsqueeze", row, graph.constant([1, 2], "heads_and_queries"))
        one = graph.constant([1], "one")
        return graph.op("Expand", row, graph.op("Concat", one, one, length, one, axis=0))

    def _block(self, block: _Block, x: ir.Value, bias: ir.Value) -> ir.Value:
        graph, heads = self.graph, self.config.num_attention_heads
        modules = block.query, block.key, block.value
        if self._pixels:
            parts = [self._texts(self._project(x, module)) for module in modules]
        else:
            parts = graph.ops("Split", self._project(x, *modules), outputs=3, axis=2, num_outputs=3)
        scale = (self.config.hidden_size // heads) ** -0.5
        seen = graph.op("Attention", *parts, bias, q_num_heads=heads, kv_num_heads=heads, scale=scale)
        x = self._norm(block.first_norm, graph.op("Add", x, self._project(self._tokens(seen), block.attended)))
        wide = self._activate(self._project(x, block.up), _activation(self.config))
        return self._norm(block.second_norm, graph.op("Add", x, self._project(wide, block.down)))

    def _tokens(self, x: ir.Value) -> ir.Value:
        """What belongs to texts `[B, S, D]` as the layers take it: an image is `[1, 1, B * S, D]`."""
        if not self._pixels:
            return x
        return self.graph.op("Reshape", x, self.graph.constant([1, 1, -1, self.config.hidden_size], "image"))

    def _texts(self, x: ir.Value) -> ir.Value:
        """The other way."""
        return self.graph.op("Reshape", x, self._shape) if self._pixels else x

    def _classify(self, hidden: ir.Value) -> ir.Value:
        """The head's logits `[B, labels]`, from the first token."""
        graph, model = self.graph, self.model
        first = graph.op("Gather", hidden, graph.constant(0, "first"), axis=1)
        if self.config.model_type == "bert":
            pooled = self._activate(self._whole(first, model.base_model.pooler.dense), "tanh")
        else:
            pooled = self._activate(self._whole(first, model.pre_classifier), "relu")
        return self._whole(pooled, model.classifier)

    def _norm(self, module: Any, x: ir.Value) -> ir.Value:
        # SkipLayerNormalization would add as well, but costs MiniLM in INT8 1.6 ms more, of 5 (ONNX Runtime 1.32).
        gamma, beta = self._parameter(module, "weight"), self._parameter(module, "bias")
        return self.graph.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=module.eps)

    def _activate(self, x: ir.Value, activation: str) -> ir.Value:
        kind, domain, settings = ("Tanh", "", {}) if activation == "tanh" else ACTIVATIONS[activation]
        return self.graph.op(kind, x, domain=domain, **settings)

    def _project(self, x: ir.Value, *modules: Any) -> ir.Value:
        """`x` through linear layers of the same inputs, results side by side."""
        names = [self._names[id(module)] for module in modules]
        matrix = Matrix.joined([Matrix.of(module.weight.detach()) for module in modules])
        bias = torch.cat([module.bias.detach() for module in modules])
        if (form := self.forms.of(names)) == "fp32" and self._pixels:
            return self._convolve(names[0], x, matrix, bias)
        return linear(self.graph, names[0], x, matrix, form, bias)

    def _convolve(self, name: str, x: ir.Value, matrix: Matrix, bias: Tensor) -> ir.Value:
        """`linear` of an image.

        ONNX Runtime makes the turns to channels first and back part of its own order, or cancels them; queries, keys and values
        share one that it keeps.
        """
        graph = self.graph
        weight = graph.weight(matrix.rows[:, :, None, None].numpy(), f"{name}.weight")
        added = graph.weight(bias.numpy(), f"{name}.bias")
        found = graph.op("Conv", graph.op("Transpose", x, perm=[0, 3, 1, 2]), weight, added)
        return graph.op("Transpose", found, perm=[0, 2, 3, 1])

    def _whole(self, x: ir.Value, module: Any) -> ir.Value:
        """`x` through a linear layer in FP32."""
        return linear(
            self.graph, self._names[id(module)], x, Matrix.of(module.weight.detach()), "fp32", module.bias.detach()
        )

    def _parameter(self, module: Any, name: str) -> ir.Value:
        return self.graph.weight(getattr(module, name).detach().numpy(), f"{self._names[id(module)]}.{name}")

    def _blocks(self) -> list[_Block]:
        base: Any = self.model.base_model
        if self.config.model_type == "bert":
            return [
                _Block(
                    layer.attention.self.query, layer.attention.self.key, layer.attention.self.value,
                    layer.attention.output.dense, layer.attention.output.LayerNorm,
                    layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm,
                )
                for layer in base.encoder.layer
            ]  # fmt: skip
        return [
            _Block(
                layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin,
                layer.attention.out_lin, layer.sa_layer_norm, layer.ffn.lin1, layer.ffn.lin2, layer.output_layer_norm,
            )
            for layer in base.transformer.layer
        ]  # fmt: skip


def _activation(config: PretrainedConfig) -> str:
    name: str = config.activation if config.model_type == "distilbert" else config.hidden_act
    return name
