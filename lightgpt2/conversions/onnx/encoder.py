"""Encoders as ONNX graphs; each family writes its own blocks.

Attention is the standard's own operator (opset 23). With ONNX Runtime 1.32 at 1x128 and 12 heads, mask included, it took
144 us (heads of 32) and 242 us (heads of 64), `MultiHeadAttention` with a mask at least 260 us and 370 us.

Linear layers in FP32 are convolutions of one pixel, the tokens of all texts side by side being the image: ONNX Runtime keeps
channels in blocks for these, where widths are multiples of 4. With AVX-512 (2 cores of an AMD EPYC) that took 5 % (MiniLM) and
7 % (DistilBERT's shape) less time than `MatMul` at 1x128, 13 % and 15 % less at 1x8; with its AVX-512 switched off,
2 to 4 % more and none at 1x128, 11 % and 8 % more at 1x8. Loading takes more: 0.22 s for 0.14 s and 295 MB for 183 MB, of
DistilBERT's shape.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.onnx.graph import Graph
from lightgpt2.conversions.onnx.weights import Vocabulary, linear
from lightgpt2.conversions.onnx.writer import ACTIVATIONS, MASKED, Forms, ModelWriter, Stored
from lightgpt2.errors import Problem
from lightgpt2.models import families
from lightgpt2.models.families import Shape, family_of

_FLOAT, _INT = ir.DataType.FLOAT, ir.DataType.INT64


class Encoder(ModelWriter):
    """Writes the graph of an encoder, the base model or with a head for sequence classification.

    Inputs: `input_ids`, `attention_mask`, and `token_type_ids` where the family has them, `[B, S]`. Outputs: `logits`
    `[B, C]` of a model with a head, which is in FP32 always, else `last_hidden_state` `[B, S, D]`.
    """

    int8 = "int8-tokens"
    opset = 23  # the first with `Attention`
    seen: ir.Value | None  # what is added to the scores of all layers

    def __init__(self, graph: Graph, model: PreTrainedModel, forms: Forms, stored: Stored | None = None) -> None:
        super().__init__(graph, model, forms, stored)
        self._pixels = forms.layers == "fp32"  # whether the layers see one image of all tokens
        self._head = Shape.of(self.config).head
        self._outside: ir.Value | None = None

    @classmethod
    def problems(cls, config: PretrainedConfig) -> Iterator[Problem]:
        known, family = f"known are {', '.join(ACTIVATIONS)}", cast(families.Encoder, family_of(config))
        for activation in dict.fromkeys(family.activations(config)):
            if activation not in ACTIVATIONS:
                yield Problem("", f"the activation {activation} is not written", known)
        if getattr(config, "is_decoder", False):
            yield Problem("", "this model is a decoder (is_decoder)", "export an encoder")
        if (kind := getattr(config, "position_embedding_type", None)) not in (None, "absolute"):
            yield Problem("", f"positions of type {kind} are not written", "only absolute ones are")
        yield from (Problem("", *line.split("; ", 1)) for line in family.onnx_problems(config))

    def write(self) -> None:
        graph, model = self.graph, self.model
        self._read()
        hidden = self._texts(self._family.graph(self, model))
        if not hasattr(model, "classifier"):
            graph.output("last_hidden_state", hidden, _FLOAT, ["batch", "sequence", self.config.hidden_size])
            return
        self._classify(self._family.pool(self, model, hidden))

    def _read(self) -> None:
        """Write the inputs, and what hides pads."""
        graph = self.graph
        self._ids, self.mask = self._inputs()
        self._length = graph.op("Shape", self._ids, start=1, end=2)
        if self._pixels:
            self._shape = graph.op("Concat", graph.op("Shape", self._ids), graph.constant([-1], "rest"), axis=0)
        # For each query one row: the operator wants it.
        self.seen = self._for_each_query(self._hidden(self.mask), self._length)

    # -- what families write with --------------------------------------------------------------------------------------------

    def words(self, table: Any) -> ir.Value:
        """The embeddings of the tokens `[B, S, D]`."""
        matrix, forms = self._matrix(table), self.forms
        return Vocabulary(self.graph, self._names[id(table)], matrix, forms.embeddings, forms.group).rows(self._ids)

    def positions(self, table: Any, pad: int | None = None, first: int = 0) -> ir.Value:
        """The rows of a position embedding, from the row `first` on.

        With `pad`, only other tokens count, and the first of them has the row behind it.
        """
        graph, rows = self.graph, self._parameter(table, "weight")
        if pad is None:
            start = graph.constant([first], "first_row")
            return graph.op("Slice", rows, start, graph.op("Add", self._length, start), graph.constant([0], "zero"))
        padding = graph.constant(pad, "padding")
        counts = graph.op("Cast", graph.op("Not", graph.op("Equal", self._ids, padding)), to=_INT)
        places = graph.op("Mul", graph.op("CumSum", counts, graph.constant(1, "of_a_text")), counts)
        return graph.op("Gather", rows, graph.op("Add", places, padding))

    def segments(self, table: Any) -> ir.Value:
        """The rows of a segment embedding, the first one for all tokens of a family without segments."""
        if "token_type_ids" in self._family.model_inputs:
            ids = self.graph.input("token_type_ids", _INT, ["batch", "sequence"])
            return self.graph.op("Gather", self._parameter(table, "weight"), ids)
        return self.graph.weight(table.weight[0].detach().numpy(), f"{self._names[id(table)]}.weight")

    def times(self, x: ir.Value, factor: float) -> ir.Value:
        """`x` multiplied by a number."""
        return x if factor == 1 else self.graph.op("Mul", x, self.graph.constant(np.float32(factor), f"times.{factor}"))

    def activate(self, x: ir.Value, name: str | None = None) -> ir.Value:
        """Apply an activation, by default that of the feed-forward layer."""
        return self._activate(x, name or self._family.activation(self.config))

    def attend(
        self,
        x: ir.Value,
        *modules: Any,
        rotary: tuple[ir.Value, ir.Value] | None = None,
        window: int | None = None,
        seen: ir.Value | None = None,
        scale: float | None = None,
    ) -> ir.Value:
        """Attention of all tokens to each other, or to those that are at most `window` places away.

        `modules` give queries, keys and values, or one gives all three; `rotary` turns queries and keys. `seen` is added to the
        scores, by default what hides pads; `scale` multiplies them, by default one over the root of the head's width.
        """
        queries, keys, values = self._apart(x, modules)
        heads = sum(module.out_features for module in modules) // (3 * self._head)
        if rotary:
            queries, keys = (self._turned(each, heads, rotary) for each in (queries, keys))
        seen = self.seen if seen is None else seen
        if window is not None:
            seen = self.graph.op("Add", seen, self._far(window))
        scale = self._head**-0.5 if scale is None else scale
        counts = {"q_num_heads": heads, "kv_num_heads": heads}
        context = self.graph.op("Attention", queries, keys, values, seen, **counts, scale=scale)
        return self.tokens(context, heads * self._head)

    def _apart(self, x: ir.Value, modules: tuple[Any, ...]) -> Any:
        """Queries, keys and values, each `[B, S, D]`. One module computes all three, or each has its own."""
        if self._pixels and len(modules) == 3:
            return [self._texts(self.project(x, module)) for module in modules]
        return self.split(self._texts(self.project(x, *modules)), 3)

    def _turned(self, x: ir.Value, heads: int, rotary: tuple[ir.Value, ir.Value]) -> ir.Value:
        places = self.graph.op("Expand", self._places, self.graph.op("Shape", self._ids))
        return self.graph.op("RotaryEmbedding", x, *rotary, places, num_heads=heads)

    @cached_property
    def _places(self) -> ir.Value:
        """The places of a text's tokens `[S]`."""
        first, step = self.graph.constant(0, "from"), self.graph.constant(1, "by")
        return self.graph.op("Range", first, self.graph.op("Squeeze", self._length), step)

    def _far(self, window: int) -> ir.Value:
        """What is added to the scores of keys that are further away, `[S, S]`."""
        if self._outside is None:
            graph = self.graph
            rows, columns = (
                graph.op("Unsqueeze", self._places, graph.constant([axis], f"axis_{axis}")) for axis in (1, 0)
            )
            away = graph.op("Abs", graph.op("Sub", rows, columns))
            far = graph.op("Cast", graph.op("Greater", away, graph.constant(window, "window")), to=_FLOAT)
            self._outside = graph.op("Mul", far, graph.constant(np.float32(MASKED), "masked"))
        return self._outside

    def added(self, x: ir.Value, inner: ir.Value | None, projection: Any) -> ir.Value:
        """`x` and a projection of what is inside a block; only the bias of one without inputs."""
        # SkipLayerNormalization would add as well, but costs MiniLM in INT8 1.6 ms more, of 5 (ONNX Runtime 1.32).
        if inner is not None:
            return self.graph.op("Add", x, self.project(inner, projection))
        return x if projection.bias is None else self.graph.op("Add", x, self._parameter(projection, "bias"))

    def tokens(self, x: ir.Value, width: int) -> ir.Value:
        """What belongs to texts `[B, S, D]` as the layers take it: an image is `[1, 1, B * S, D]`."""
        if not self._pixels:
            return x
        return self.graph.op("Reshape", x, self.graph.constant([1, 1, -1, width], f"image.{width}"))

    def project(self, x: ir.Value, *modules: Any) -> ir.Value:
        """Project `x` by linear layers and join the results."""
        graph, (names, matrix, bias) = self.graph, self._joined(modules)
        if (form := self.forms.of(names)) != "fp32" or not self._pixels:
            return linear(graph, names[0], x, matrix, form, bias, self.forms.group)
        # The transposes to channels first and back are cheap: ONNX Runtime removes most of them. Queries, keys and values
        # share the one that is left.
        weight = graph.weight(matrix.rows[:, :, None, None].numpy(), f"{names[0]}.weight")
        added = [] if bias is None else [graph.weight(bias.numpy(), f"{names[0]}.bias")]
        found = graph.op("Conv", graph.op("Transpose", x, perm=[0, 3, 1, 2]), weight, *added)
        return graph.op("Transpose", found, perm=[0, 2, 3, 1])

    def split(self, x: ir.Value, count: int) -> Any:
        """The parts of `x` side by side, which are as wide."""
        return self.graph.ops("Split", x, outputs=count, axis=-1, num_outputs=count)

    def mean(self, hidden: ir.Value) -> ir.Value:
        """The mean of each text's tokens `[B, D]`."""
        graph, of_a_text = self.graph, self.graph.constant([1], "one")
        mask = graph.op("Cast", self.mask, to=_FLOAT)
        there = graph.op("Mul", hidden, graph.op("Unsqueeze", mask, graph.constant([2], "two")))
        total = graph.op("ReduceSum", there, of_a_text, keepdims=0)
        return graph.op("Div", total, graph.op("ReduceSum", mask, of_a_text, keepdims=1))

    def first(self, hidden: ir.Value) -> ir.Value:
        """The first token of each text `[B, D]`."""
        return self.graph.op("Gather", hidden, self.graph.constant(0, "first"), axis=1)

    def _texts(self, x: ir.Value) -> ir.Value:
        return self.graph.op("Reshape", x, self._shape) if self._pixels else x


def write_encoder(model: PreTrainedModel, folder: Path, forms: Forms) -> None:
    Encoder.into(folder, model, forms)
