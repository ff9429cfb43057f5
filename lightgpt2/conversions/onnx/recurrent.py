"""Decoders that carry states as ONNX graphs: one operator a layer, of the standard or with integers.

Pads are on the left. Each row is turned around twice, first with its pads and then without, so that its tokens come first, as
the operators want them; and its outputs back.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.conversions.onnx.graph import MICROSOFT, Graph
from lightgpt2.conversions.onnx.weights import Form
from lightgpt2.conversions.onnx.writer import Forms, ModelWriter, Stored
from lightgpt2.errors import Problem
from lightgpt2.models.families import family_of, is_tied

_FLOAT, _INT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
_STATES = ("hidden", "cell")
_GATES = [0, 3, 1, 2]  # of PyTorch (input, forget, candidate, output) in the operators' order


class RecurrentDecoder(ModelWriter):
    """Writes the graph of a recurrent model.

    Inputs: `input_ids`, `attention_mask` (of the same tokens), `past_hidden` and `past_cell` `[L, B, H]`, zeros at the
    beginning; `num_logits_to_keep` may be left out. Outputs: `logits`, `present_hidden`, `present_cell`.
    """

    int8: ClassVar[Form] = "int8"
    layer_forms: ClassVar[tuple[Form, ...]] = ("fp32", "int8")

    def __init__(self, graph: Graph, model: PreTrainedModel, forms: Forms, stored: Stored | None = None) -> None:
        super().__init__(graph, model, forms, stored)
        self.hidden: ir.Value  # [S, B, H], tokens first
        self._present: list[list[ir.Value]] = []  # of each layer [1, B, H]

    @classmethod
    def problems(cls, config: PretrainedConfig) -> Iterator[Problem]:
        yield from (Problem("", *line.split("; ", 1)) for line in family_of(config).onnx_problems(config))

    def write(self) -> None:
        graph, depth, width = self.graph, self.config.num_hidden_layers, self.config.hidden_size
        ids, mask = self._inputs()
        shape: list[int | str] = [depth, "batch", width]
        past = [graph.input(f"past_{name}", _FLOAT, shape) for name in _STATES]
        ones = graph.constant([1] * depth, "each_layer")
        split = [graph.ops("Split", state, ones, outputs=depth, axis=0) for state in past]
        self._past = [*zip(*([parts] if depth == 1 else parts for parts in split), strict=True)]
        counted = graph.op("ReduceSum", mask, graph.constant([1], "one"), keepdims=0)
        self._lengths = graph.op("Cast", counted, to=_INT32)
        tokens = self._embedding()
        self.hidden = self._turned(graph.op("Transpose", tokens.rows(ids), perm=[1, 0, 2]), counted, True)
        hidden = self._turned(self._family.graph(self, self.model), counted, False)
        keep = graph.option("num_logits_to_keep", np.array(0))
        first = graph.op("Unsqueeze", graph.op("Neg", keep), graph.constant([0], "zero"))
        last = [graph.constant([np.iinfo(np.int64).max], "end"), graph.constant([0], "zero")]
        hidden = graph.op("Transpose", graph.op("Slice", hidden, first, *last), perm=[1, 0, 2])
        head: Any = self.model.get_output_embeddings()
        logits = self._logits(tokens if is_tied(self.model) else self._vocabulary(head, head), hidden)
        graph.output("logits", logits, _FLOAT, ["batch", "kept", len(head.weight)])
        for name, parts in zip(_STATES, zip(*self._present, strict=True), strict=True):
            graph.output(f"present_{name}", graph.op("Concat", *parts, axis=0), _FLOAT, shape)

    def _turned(self, x: ir.Value, lengths: ir.Value, forth: bool) -> ir.Value:
        """`[S, B, D]` with pads behind in the place of pads before, or back."""
        graph = self.graph
        last, end, back = ([-1], "last"), ([np.iinfo(np.int64).min], "beginning"), ([-1], "backwards")
        bounds = [graph.constant(*each) for each in (last, end, ([0], "zero"), back)]

        def own(value: ir.Value) -> ir.Value:
            return graph.op("ReverseSequence", value, lengths, time_axis=0, batch_axis=1)

        return own(graph.op("Slice", x, *bounds)) if forth else graph.op("Slice", own(x), *bounds)

    # -- what families write with --------------------------------------------------------------------------------------------

    def recur(self, inputs: Any, recurrent: Any) -> None:
        """Write one LSTM layer: the linear layers of its input, which has the bias, and of its state."""
        graph, width, layer = self.graph, self.config.hidden_size, len(self._present)
        order = torch.arange(4 * width).view(4, width)[_GATES].flatten()
        bias = inputs.bias.detach()[order]
        biases = graph.weight(torch.cat([bias, bias * 0])[None].numpy(), f"{self._names[id(inputs)]}.bias")
        names = [self._names[id(module)] for module in (inputs, recurrent)]
        form = self.forms.of(names)
        matrices = [self._matrix(module).ordered(order) for module in (inputs, recurrent)]
        settings: dict[str, Any] = {"hidden_size": width}
        scales: list[ir.Value] = []
        if form == "fp32":
            kind, values = "LSTM", [matrix.rows[None] for matrix in matrices]
        else:
            kind, settings["domain"] = "DynamicQuantizeLSTM", MICROSOFT
            matrices = [matrix.rounded("int8", 0) for matrix in matrices]
            values = [matrix.rows.flatten(1).T[None] for matrix in matrices]
            for name, matrix in zip(names, matrices, strict=True):
                # Where weights are made unsigned at loading, two that share their zero points cannot be loaded.
                zero = graph.constant(np.zeros((1, 4 * width), np.int8), f"{name}.zero")
                scales += [graph.weight(cast(Tensor, matrix.scale).flatten()[None].numpy(), f"{name}.scale"), zero]
        w, r = (
            graph.weight(value.contiguous().numpy(), f"{name}.weight")
            for name, value in zip(names, values, strict=True)
        )
        read = (self.hidden, w, r, biases, self._lengths, *self._past[layer], None, *scales)
        output, *present = graph.ops(kind, *read, outputs=3, **settings)
        self._present.append(present)
        self.hidden = graph.op("Squeeze", output, graph.constant([1], "one"))  # the one direction
