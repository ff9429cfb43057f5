"""Encoder-decoders as three ONNX graphs over one file of weights; each family writes its own blocks.

The files and names are those that the ecosystem's clients read (`ORTModelForSeq2SeqLM`):

- `encoder_model.onnx`: `input_ids`, `attention_mask` to `last_hidden_state`.
- `decoder_model.onnx`, the first step: `input_ids` `[B, T]`, `encoder_hidden_states`, `encoder_attention_mask` to `logits`,
  `present.N.decoder.key/value` and `present.N.encoder.key/value`: keys and values of the source are computed here, once.
- `decoder_with_past_model.onnx`, each further token: `input_ids` `[B, 1]`, `encoder_attention_mask`,
  `past_key_values.N.decoder/encoder.key/value` to `logits` and `present.N.decoder.key/value`.

In the last one, several rows in a row may share a source: with keys and values of S sources, the first B / S rows belong to the
first. So the beams of a document read one copy of what is the largest part of the cache. A layer without heads has no cache.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.onnx.encoder import Encoder
from lightgpt2.conversions.onnx.graph import Graph
from lightgpt2.conversions.onnx.weights import Form
from lightgpt2.conversions.onnx.writer import ACTIVATIONS, MASKED, Forms, ModelWriter, Stored
from lightgpt2.errors import Problem, UserError
from lightgpt2.models.families import family_of, is_tied
from lightgpt2.runtime.engines import CONTEXT, DECODER, DECODER_WITH_PAST, ENCODER

_FLOAT, _INT = ir.DataType.FLOAT, ir.DataType.INT64


class SourceEncoder(Encoder):
    """Writes the graph of the encoder."""

    stack: ClassVar[str] = "encoder"  # which the graph is of

    def write(self) -> None:
        self._read()
        if (positions := self._family.positions(self.config)) is not None:
            self.graph.metadata[CONTEXT] = str(positions)
        hidden = self._texts(self._family.graph(self, self.model))
        width = self.model.get_input_embeddings().weight.shape[1]
        self.graph.output("last_hidden_state", hidden, _FLOAT, ["batch", "sequence", width])

    def words(self, table: Any) -> ir.Value:
        return self._embedding().rows(self._ids)

    def relative(self, module: Any, values: Tensor) -> ir.Value:
        """What is added to the scores by distance, and to hide pads, `[B, H, S, S]`; for `values` see `_by_distance`."""
        name = f"{self._names[id(module)]}.by_distance"
        return self.graph.op("Add", self.seen, _by_distance(self.graph, name, values, self._places, self._places))

    def attend_own(
        self, layer: int, x: ir.Value, parts: Sequence[Any], size: int, scale: float, seen: ir.Value | None = None
    ) -> ir.Value:
        """Attention of all tokens to each other; the arguments are those of `TargetDecoder.attend_own`."""
        return self.attend(x, *parts, seen=seen, scale=scale)


class TargetDecoder(Encoder):
    """Writes the graph of the decoder's first step, and stands for all three graphs."""

    stack: ClassVar[str] = "decoder"
    int8_vocabulary: ClassVar[Form] = "int8-blocks"  # so that no text's result depends on another's
    length: ClassVar[int | str] = "target"  # of the tokens that the graph reads

    def __init__(self, graph: Graph, model: PreTrainedModel, forms: Forms, stored: Stored | None = None) -> None:
        super().__init__(graph, model, forms, stored)
        self._pixels = False  # there are few tokens
        self._presents: list[tuple[str, ir.Value, list[int | str]]] = []
        self._hidden_pads: ir.Value | None = None

    @classmethod
    def parts(cls) -> dict[str, type[ModelWriter]]:
        return {ENCODER: SourceEncoder, DECODER: TargetDecoder, DECODER_WITH_PAST: NextToken}

    @classmethod
    def problems(cls, config: PretrainedConfig) -> Iterator[Problem]:
        family = family_of(config)
        if (activation := family.activation(config)) not in ACTIVATIONS:
            yield Problem("", f"the activation {activation} is not written", f"known are {', '.join(ACTIVATIONS)}")
        yield from (Problem("", *line.split("; ", 1)) for line in family.onnx_problems(config))

    def write(self) -> None:
        graph, head = self.graph, cast(Any, self.model.get_output_embeddings())
        self._ids = graph.input("input_ids", _INT, ["batch", self.length])
        self._read()
        tokens = self._embedding()
        self._embedded = tokens.rows(self._ids)
        hidden = self._family.graph(self, self.model)
        if not is_tied(self.model):
            tokens = self._vocabulary(head, head)
        graph.output("logits", self._logits(tokens, hidden), _FLOAT, ["batch", self.length, len(head.weight)])
        for name, value, shape in self._presents:
            graph.output(name, value, _FLOAT, shape)

    def _read(self) -> None:
        """Write the inputs, and what hides later tokens."""
        graph, width = self.graph, self.model.get_input_embeddings().weight.shape[1]
        self._states = graph.input("encoder_hidden_states", _FLOAT, ["batch", "source", width])
        self.mask = graph.input("encoder_attention_mask", _INT, ["batch", "source"])
        self._length = graph.op("Shape", self._ids, start=1, end=2)
        rows, columns = (graph.op("Unsqueeze", self._places, graph.constant([axis], f"axis_{axis}")) for axis in (1, 0))
        later = graph.op("Cast", graph.op("Greater", columns, rows), to=_FLOAT)
        later = graph.op("Mul", later, graph.constant(np.float32(MASKED), "masked"))
        self.seen = graph.op("Unsqueeze", later, graph.constant([0, 1], "texts_and_heads"))

    # -- what families write with, beside what encoders do ---------------------------------------------------------------------

    def words(self, table: Any) -> ir.Value:
        """The embeddings of the tokens `[B, T, D]`."""
        return self._embedded

    def positions(self, table: Any, pad: int | None = None, first: int = 0) -> ir.Value:
        """The rows of a position embedding `[T, D]`, that of position 0 being `first`."""
        places = self.graph.op("Add", self._places, self.graph.constant([first], "first_row"))
        return self.graph.op("Gather", self._parameter(table, "weight"), places)

    def relative(self, module: Any, values: Tensor) -> ir.Value:
        """What is added to the scores by distance, and to hide later tokens, `[1, H, T, P]`; see `_by_distance`."""
        name = f"{self._names[id(module)]}.by_distance"
        return self.graph.op("Add", self.seen, _by_distance(self.graph, name, values, self._places, self._places))

    def attend_own(
        self, layer: int, x: ir.Value, parts: Sequence[Any], size: int, scale: float, seen: ir.Value | None = None
    ) -> ir.Value:
        """Attention of the tokens to themselves and to those before them, with heads of `size` channels.

        `parts` give queries, keys and values. `seen` is added to the scores, by default what hides later tokens.
        """
        heads = parts[0].out_features // size
        queries, *others = (self._heads(part, heads, size) for part in self.split(self.project(x, *parts), 3))
        names = (f"{layer}.decoder.key", f"{layer}.decoder.value")
        keys, values = (self._kept(name, each, heads, size) for name, each in zip(names, others, strict=True))
        seen = self.seen if seen is None else seen
        found = self.graph.op("Attention", queries, keys, values, seen, scale=scale)
        return self._side_by_side(found, heads * size)

    def attend_source(self, layer: int, x: ir.Value, parts: Sequence[Any], size: int, scale: float) -> ir.Value:
        """Attention of the tokens to the source; the arguments are those of `attend_own`."""
        graph, (query, *others) = self.graph, parts
        heads = query.out_features // size
        keys, values = self._source(layer, others, heads, size)
        queries = self._source_heads(self.project(x, query), heads, size)
        found = graph.op("Attention", queries, keys, values, self._hides(queries), scale=scale)
        width = graph.constant([*self._rows, heads * size], f"rows.{heads * size}")
        return graph.op("Reshape", graph.op("Transpose", found, perm=[0, 2, 1, 3]), width)

    # -- how, which differs from step to step ----------------------------------------------------------------------------------

    _rows: ClassVar[tuple[int, int]] = (0, -1)  # the shape of B texts with T tokens each

    def _hides(self, queries: ir.Value) -> ir.Value:
        """What hides the source's pads `[S, 1, Q, source]`, the same for all layers."""
        if self._hidden_pads is None:
            length = self.graph.op("Shape", queries, start=2, end=3)
            self._hidden_pads = self._for_each_query(self._hidden(self.mask), length)
        return self._hidden_pads

    def _source(self, layer: int, parts: Sequence[Any], heads: int, size: int) -> list[ir.Value]:
        """The keys and values of the source `[S, H, source, size]`."""
        found = [self._source_heads(part, heads, size) for part in self.split(self.project(self._states, *parts), 2)]
        for name, value in zip(("key", "value"), found, strict=True):
            self._presents.append((f"present.{layer}.encoder.{name}", value, ["batch", heads, "source", size]))
        return found

    def _source_heads(self, x: ir.Value, heads: int, size: int) -> ir.Value:
        return self._heads(x, heads, size)

    def _kept(self, name: str, new: ir.Value, heads: int, size: int) -> ir.Value:
        """The keys or values of all tokens so far, which are put out."""
        self._presents.append((f"present.{name}", new, ["batch", heads, self.length, size]))
        return new

    def _heads(self, x: ir.Value, heads: int, size: int) -> ir.Value:
        """`[B, T, H size]` as `[B, H, T, size]`."""
        apart = self.graph.op("Reshape", x, self.graph.constant([0, -1, heads, size], f"heads.{heads}.{size}"))
        return self.graph.op("Transpose", apart, perm=[0, 2, 1, 3])

    def _side_by_side(self, x: ir.Value, width: int) -> ir.Value:
        """`[B, H, T, size]` as `[B, T, H size]`."""
        turned = self.graph.op("Transpose", x, perm=[0, 2, 1, 3])
        return self.graph.op("Reshape", turned, self.graph.constant([0, -1, width], f"rows.{width}"))


class NextToken(TargetDecoder):
    """Writes the graph of the decoder's further steps."""

    length = 1
    _rows = (-1, 1)

    def write(self) -> None:
        super().write()
        if self._first is None:  # its cache gives the position
            raise UserError([Problem("", "no layer of the decoder has heads of its own left", "prune fewer heads")])

    def _read(self) -> None:
        """Write the inputs."""
        graph = self.graph
        self.mask = graph.input("encoder_attention_mask", _INT, ["sources", "source"])
        self._count = graph.op("Shape", self.mask, start=0, end=1)
        self.seen = None
        self._placeholder = ir.Value()  # stands for the first cache until its layer is written
        self._first: ir.Value | None = None

    @cached_property
    def _places(self) -> ir.Value:
        """The position of the token `[1]`."""
        return self.graph.op("Shape", self._placeholder, start=2, end=3)

    def relative(self, module: Any, values: Tensor) -> ir.Value:
        graph = self.graph
        one = graph.constant(1, "by")
        total = graph.op("Add", graph.op("Squeeze", self._places), one)
        every = graph.op("Range", graph.constant(0, "from"), total, one)
        return _by_distance(graph, f"{self._names[id(module)]}.by_distance", values, self._places, every)

    def _source(self, layer: int, parts: Sequence[Any], heads: int, size: int) -> list[ir.Value]:
        shape: list[int | str] = ["sources", heads, "source", size]
        names = (f"past_key_values.{layer}.encoder.{part}" for part in ("key", "value"))
        return [self.graph.input(name, _FLOAT, shape) for name in names]

    def _source_heads(self, x: ir.Value, heads: int, size: int) -> ir.Value:
        graph = self.graph
        rest = graph.constant([-1, heads, size], f"source_heads.{heads}.{size}")
        apart = graph.op("Reshape", x, graph.op("Concat", self._count, rest, axis=0))
        return graph.op("Transpose", apart, perm=[0, 2, 1, 3])

    def _kept(self, name: str, new: ir.Value, heads: int, size: int) -> ir.Value:
        graph, value = self.graph, None
        if self._first is None:
            self._first = value = self._placeholder
        past = graph.input(f"past_key_values.{name}", _FLOAT, ["batch", heads, "past", size], value)
        whole = graph.op("Concat", past, new, axis=2)
        self._presents.append((f"present.{name}", whole, ["batch", heads, "total", size]))
        return whole

    def _heads(self, x: ir.Value, heads: int, size: int) -> ir.Value:
        return self.graph.op("Reshape", x, self.graph.constant([0, heads, 1, size], f"heads.{heads}.{size}"))

    def _side_by_side(self, x: ir.Value, width: int) -> ir.Value:
        return self.graph.op("Reshape", x, self.graph.constant([0, 1, width], f"row.{width}"))


def _by_distance(graph: Graph, name: str, values: Tensor, queries: ir.Value, keys: ir.Value) -> ir.Value:
    """What is added to the scores of keys at places `[P]` for queries at places `[T]`, `[1, H, T, P]`.

    `values` `[2 M + 1, H]` has a row for each distance from -M to M; what is further away counts as M.
    """
    most = values.shape[0] // 2
    ends = graph.constant(-most, "nearest"), graph.constant(most, "furthest")
    rows = graph.op("Unsqueeze", queries, graph.constant([1], "axis_1"))
    columns = graph.op("Unsqueeze", keys, graph.constant([0], "axis_0"))
    distance = graph.op("Clip", graph.op("Sub", columns, rows), *ends)
    table = graph.weight(np.ascontiguousarray(values.numpy()), name)
    found = graph.op("Gather", table, graph.op("Add", distance, ends[1]))
    return graph.op("Unsqueeze", graph.op("Transpose", found, perm=[2, 0, 1]), graph.constant([0], "axis_0"))
