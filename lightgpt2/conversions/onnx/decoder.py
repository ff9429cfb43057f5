"""Decoders as ONNX graphs, with the operators that ONNX Runtime fuses by hand; each family writes its own blocks.

Attention is `GroupQueryAttention`: it takes queries, keys and values side by side, turns them (RoPE), appends to the cache,
and attends. Where the cache that it is given is longer than what is in use, and the same buffer is bound as its output, it is
written in place.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.onnx.graph import MICROSOFT, Graph
from lightgpt2.conversions.onnx.weights import Form, Vocabulary, linear
from lightgpt2.conversions.onnx.writer import ACTIVATIONS, Forms, ModelWriter, Stored
from lightgpt2.errors import Problem
from lightgpt2.models.families import family_of, is_tied
from lightgpt2.runtime.engines import PREFILL

_FLOAT, _INT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
_HEAD = 8  # what ONNX Runtime wants a head's channels to be a multiple of
_TURNED = 8  # what `GroupQueryAttention` wants half of a head's channels that it turns to be a multiple of


class Decoder(ModelWriter):
    """Writes the graph of a decoder that generates.

    Inputs: `input_ids`, `attention_mask`, `position_ids`, `past_key_values.N.key/value`; `num_logits_to_keep` may be left out.
    Outputs: `logits`, `present.N.key/value`. Layers without heads have no cache.
    """

    int8: ClassVar[Form] = "int8"

    def __init__(self, graph: Graph, model: PreTrainedModel, forms: Forms, stored: Stored | None = None) -> None:
        super().__init__(graph, model, forms, stored)
        self._residual: ir.Value
        self._added: ir.Value | None = None  # to the residual stream, before it is read again
        self._caches: list[tuple[str, ir.Value, list[int | str]]] = []
        self._kept: list[str] = []  # matrices, by their names in the graph, that a graph for prompts has in 4 bits too

    @classmethod
    def problems(cls, config: PretrainedConfig) -> Iterator[Problem]:
        family = family_of(config)
        if (head := family.shape(config).head) % _HEAD:
            what = f"heads have {head} channels, and ONNX Runtime attends with a multiple of {_HEAD}"
            yield Problem("", what, "train one that has")
        if (activation := family.activation(config)) not in ACTIVATIONS:
            yield Problem("", f"the activation {activation} is not written", f"known are {', '.join(ACTIVATIONS)}")
        yield from (Problem("", *line.split("; ", 1)) for line in family.onnx_problems(config))

    def write(self) -> None:
        graph = self.graph
        ids, mask = self._inputs("total")
        self._positions = graph.input("position_ids", _INT, ["batch", "sequence"])
        embedding, module = self.model.get_input_embeddings(), cast(Any, self.model.get_output_embeddings())
        tied = is_tied(self.model)
        tokens = self._embedding()
        hidden = self._read(ids, mask, tokens)
        keep = graph.option("num_logits_to_keep", np.array(0))
        first = graph.op("Unsqueeze", graph.op("Neg", keep), graph.constant([0], "zero"))
        ends = graph.constant([np.iinfo(np.int64).max], "end")
        hidden = graph.op("Slice", hidden, first, ends, graph.constant([1], "one"))
        if not tied:
            tokens = self._vocabulary(module, module)
        self._note([self._names[id(module)]], self._names[id(embedding if tied else module)])
        logits = self._logits(tokens, hidden)
        graph.output("logits", logits, _FLOAT, ["batch", "kept", len(module.weight)])
        for name, value, shape in self._caches:
            graph.output(name, value, _FLOAT, shape)
        if self.forms.prefill is not None:
            graph.metadata[PREFILL] = json.dumps(self._kept)

    def _read(self, ids: ir.Value, mask: ir.Value, tokens: Vocabulary) -> ir.Value:
        """The final hidden states `[B, S, D]`."""
        self._read_mask(ids, mask)
        self._residual = tokens.rows(ids)
        return cast(ir.Value, self._family.graph(self, self.model))

    def _past(self, layer: int, shape: list[int | str]) -> list[ir.Value | None]:
        """The keys and values of tokens that were read before."""
        return [self.graph.input(f"past_key_values.{layer}.{part}", _FLOAT, shape) for part in ("key", "value")]

    def _read_mask(self, ids: ir.Value, mask: ir.Value) -> None:
        """From the mask: each row's last place in use, the length with the cache, and what hides padding on the left."""
        graph = self.graph
        last = graph.op("ArgMax", graph.op("Cast", mask, to=_INT32), axis=1, keepdims=0, select_last_index=1)
        self._lengths = graph.op("Cast", last, to=_INT32)
        self._total = graph.op("Cast", graph.op("Shape", mask, start=1, end=2), to=_INT32)
        row = self._hidden(mask)
        self._bias = self._for_each_query(row, graph.op("Shape", ids, start=1, end=2))

    # -- what families write with --------------------------------------------------------------------------------------------

    def positions(self, embedding: Any, first: int = 0) -> None:
        """Add the rows of a position embedding to the residual stream; `first` is the row of position 0."""
        rows = embedding.weight.detach()[first:].numpy()
        table = self.graph.weight(rows, f"{self._names[id(embedding)]}.weight")
        self._added = self.graph.op("Gather", table, self._positions)

    def scale(self, factor: float) -> None:
        """Multiply the residual stream."""
        self._residual = self.graph.op(
            "Mul", self._residual, self.graph.constant(np.float32(factor), "embedding_scale")
        )

    def attend(
        self, layer: int, x: ir.Value, heads: int, shared: int, size: int, scale: float,
        rotary: Sequence[ir.Value] = (), norms: Sequence[Any] = (), window: int | None = None,
    ) -> ir.Value:  # fmt: skip
        """Attention `[B, S, heads size]` with queries, keys and values side by side, `[B, S, (heads + 2 shared) size]`.

        `norms` are those of each head of the queries and of the keys, which `rotary` turns after them. A token sees `window`
        tokens, itself the last; None: all.
        """
        graph = self.graph
        past = self._past(layer, ["batch", shared, "past", size])
        settings: dict[str, Any] = {"scale": scale} | ({"local_window_size": window} if window else {})
        # It turns by places in the cache, pads counted: only distances matter. (Given position ids, ONNX Runtime 1.32 goes by
        # them in the prompt and by places in the steps after it.)
        turns = bool(rotary) and cast(Any, rotary[0].shape)[1] % _TURNED == 0
        settings |= {"do_rotary": 1} if turns else {}
        parts: Sequence[ir.Value | None] = (x, None, None)
        if norms or (rotary and not turns):
            parts = self._apart(x, heads, shared, size, norms, () if turns else rotary)
        output, key, value = graph.ops(
            "GroupQueryAttention", *parts, *past, self._lengths, self._total, *(rotary if turns else (None, None)), None,
            self._bias, outputs=3, domain=MICROSOFT, num_heads=heads, kv_num_heads=shared, **settings,
        )  # fmt: skip
        longer: list[int | str] = ["batch", shared, "total", size]
        self._caches += [(f"present.{layer}.key", key, longer), (f"present.{layer}.value", value, longer)]
        return output

    def _apart(
        self, x: ir.Value, heads: int, shared: int, size: int, norms: Sequence[Any], rotary: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Queries, keys and values, the first two normalized and turned head by head."""
        graph = self.graph
        sizes = graph.constant([heads * size, shared * size, shared * size], f"apart.{heads}.{shared}.{size}")
        *parts, value = graph.ops("Split", x, sizes, outputs=3, axis=2)
        if norms:
            parts = [self._normalize_heads(norm, part, size) for norm, part in zip(norms, parts, strict=True)]
        if rotary:
            turned = {"rotary_embedding_dim": 2 * cast(Any, rotary[0].shape)[1], "domain": MICROSOFT}
            pairs = zip(parts, (heads, shared), strict=True)
            parts = [
                graph.op("RotaryEmbedding", part, self._positions, *rotary, num_heads=n, **turned) for part, n in pairs
            ]
        return [*parts, value]

    def _normalize_heads(self, module: Any, x: ir.Value, size: int) -> ir.Value:
        graph = self.graph
        by_head = graph.op("Reshape", x, graph.constant([0, 0, -1, size], f"by_head.{size}"))
        return graph.op("Reshape", self.normalize_rms(module, by_head), graph.constant([0, 0, -1], "side_by_side"))

    def layer_norm(self, module: Any) -> ir.Value:
        """The normalized residual stream."""
        # SkipLayerNormalization would add as well, five times as slowly (its sums are not vectorized in ONNX Runtime 1.32).
        if self._added is not None:
            self._residual, self._added = self.graph.op("Add", self._added, self._residual), None
        return self.normalize(module, self._residual)

    def rms_norm(self, module: Any) -> ir.Value:
        """The residual stream normalized without mean and bias."""
        if self._added is None:
            return self.normalize_rms(module, self._residual)
        gamma, epsilon = self._rms_parts(module)
        normal, _, _, self._residual = self.graph.ops(
            "SkipSimplifiedLayerNormalization", self._added, self._residual, gamma, outputs=4, domain=MICROSOFT, epsilon=epsilon
        )  # fmt: skip
        self._added = None
        return normal

    def add(self, x: ir.Value | None, projection: Any, norm: Any = None) -> None:
        """Add a projection of `x` to the residual stream, through `norm` if there is one; of its bias alone without `x`.

        What was read of the stream before is not changed: attention and neurons may read it side by side.
        """
        if x is not None:
            added = self.project(x, projection)
            added = added if norm is None else self.normalize_rms(norm, added)
            self._added = added if self._added is None else self.graph.op("Add", self._added, added)
        elif projection.bias is not None:
            bias = projection.bias if norm is None else norm(projection.bias)
            constant = self.graph.weight(bias.detach().numpy(), f"{self._names[id(projection)]}.bias")
            self._residual = self.graph.op("Add", self._residual, constant)

    def project(self, x: ir.Value, *modules: Any, order: Tensor | None = None) -> ir.Value:
        """Project `x` by linear layers and join the results; `order` permutes the joined outputs."""
        names, matrix, bias = self._joined(modules)
        if order is not None:
            matrix, bias = matrix.ordered(order), None if bias is None else bias[order]
        self._note(names, names[0])
        return linear(self.graph, names[0], x, matrix, self.forms.of(names), bias, self.forms.group)

    def activate(self, x: ir.Value) -> ir.Value:
        """`x` through the family's activation."""
        return self._activate(x, self._family.activation(self.config))

    def _note(self, names: list[str], stored: str) -> None:
        if not {*names}.isdisjoint(self.forms.prefill or ()):
            self._kept.append(stored)


class DecoderClassifier(Decoder):
    """Writes the graph of a decoder that classifies a text by its last token, with pads on either side.

    Inputs: `input_ids`, `attention_mask`. Outputs: `logits` `[B, C]`; the head is in FP32 always.
    """

    int8: ClassVar[Form] = "int8-tokens"

    def write(self) -> None:
        graph = self.graph
        ids, mask = self._inputs()
        one, count = graph.constant(1, "first_token"), graph.op("CumSum", mask, graph.constant(1, "of_a_text"))
        self._positions = graph.op("Max", graph.op("Sub", count, one), graph.constant(0, "first_position"))
        hidden = self._read(ids, mask, self._embedding())
        last = graph.op("Unsqueeze", graph.op("Cast", self._lengths, to=_INT), graph.constant([1], "one"))
        self._classify(graph.op("GatherND", hidden, last, batch_dims=1))

    def _past(self, layer: int, shape: list[int | str]) -> list[ir.Value | None]:
        return [None, None]
