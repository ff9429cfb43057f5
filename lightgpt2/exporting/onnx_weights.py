"""Matrices in an ONNX graph: in FP32, or as integers with scales, each multiplied by the operator that is fastest with it.

`int8`: one scale for each output channel; inputs are rounded to 8 bits while it runs, with one scale for all of them.
`int8-blocks`: the same integers; inputs are rounded with one scale for each block of each token. It is slower with many
tokens, but a few inputs a hundred times as large as the others do no harm to those.
`int4`: one scale for each block of an output channel's inputs; inputs as for `int8-blocks`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightgpt2.exporting.onnx_graph import MICROSOFT, Graph
from lightgpt2.functional.quantization import grouped, integers

Form = Literal["fp32", "int8", "int8-blocks", "int4"]
BLOCK = 32  # inputs that share a scale in INT4

_SIZES = (128, 64, 32)  # of blocks of inputs, what the operator is fast with first
_PARTS = 8  # of a head in INT8
_INT8_COMPUTE = 4  # MatMulNBits' `accuracy_level`: multiply integers


@dataclass(frozen=True)
class Matrix:
    """A weight `[O, I]`, one row an output channel.

    Attributes:
        rows: Its numbers in FP32 `[O, I]`; or the integers that stand for them, `[O, G, g]` in int8, the last group filled up.
        scale: What the integers are multiplied with, `[O, G, 1]`; None for numbers in FP32.
        inputs: I.
    """

    rows: Tensor
    scale: Tensor | None
    inputs: int

    @classmethod
    def of(cls, rows: Tensor) -> "Matrix":
        """Numbers in FP32 `[O, I]`."""
        return cls(rows.float(), None, rows.shape[1])

    @classmethod
    def joined(cls, parts: "list[Matrix]") -> "Matrix":
        """Matrices of the same inputs below each other."""
        scales = [part.scale for part in parts if part.scale is not None]
        return cls(torch.cat([part.rows for part in parts]), torch.cat(scales) if scales else None, parts[0].inputs)

    def stored(self, form: Form) -> tuple[Tensor, Tensor]:
        """Integers `[O, G, g]` and scales `[O, G, 1]`: those it has, or the nearest ones."""
        if self.scale is not None:
            return self.rows, self.scale
        return integers(self.rows, 4, BLOCK) if form == "int4" else integers(self.rows, 8)


def linear(graph: Graph, name: str, x: ir.Value, matrix: Matrix, form: Form, bias: Tensor | None = None) -> ir.Value:
    """`x @ matrix.T + bias`.

    Args:
        graph: The graph.
        name: What the weight is called there.
        x: `[..., I]`.
        matrix: `[O, I]`.
        form: How it is stored.
        bias: `[O]`.
    """
    added = None if bias is None else graph.weight(bias.numpy(), f"{name}.bias")
    if form == "fp32":
        product = graph.op("MatMul", x, graph.weight(matrix.rows.T.numpy(), f"{name}.weight"))
        return product if added is None else graph.op("Add", product, added)
    whole, scale = matrix.stored(form)
    if form == "int8":
        weight = graph.weight(whole.flatten(1).T.numpy(), f"{name}.weight")
        scales = graph.weight(scale.flatten().numpy(), f"{name}.scale")
        return graph.op("DynamicQuantizeMatMul", x, weight, scales, None, added, domain=MICROSOFT)
    blocks = Blocks.of(whole, scale, matrix.inputs, form)
    weight, scales = graph.weight(blocks.data, f"{name}.weight"), graph.weight(blocks.scales, f"{name}.scale")
    return blocks.product(graph, x, weight, scales, added)


def block_size(group: int) -> int:
    """Length of the blocks that groups of inputs are cut into, each with the group's scale: ONNX Runtime's are powers of two.

    Args:
        group: Inputs that share a scale.

    Returns:
        The largest power of two from 16 to 256 that divides it; 0 where there is none.
    """
    return next((size for size in (256, 128, 64, 32, 16) if group % size == 0), 0)


@dataclass(frozen=True)
class Blocks:
    """A weight as `MatMulNBits` wants it.

    Attributes:
        data: Integers `[O, G, g]` with half of their range added; of 4 bits two in a byte, the first one in the low half.
        scales: `[O, G]`.
        bits: 4 or 8.
        inputs: I.
        size: g, a power of two.
    """

    data: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int
    inputs: int
    size: int

    @classmethod
    def of(cls, whole: Tensor, scale: Tensor, inputs: int, form: Form) -> "Blocks":
        """From integers `[O, G, g]` and scales `[O, G, 1]` of I inputs."""
        if form != "int4":
            rows = whole.flatten(1)[:, :inputs]
            size = next((size for size in _SIZES if inputs % size == 0), _SIZES[-1])
            data = grouped(rows.to(torch.int16) + 128, size).to(torch.uint8)
            return cls(data.numpy(), scale.squeeze(2).expand(-1, data.shape[1]).contiguous().numpy(), 8, inputs, size)
        group = whole.shape[-1]
        size = block_size(group)
        count = -(-inputs // size)
        shifted = (whole + 8).to(torch.uint8).view(len(whole), -1, size)[:, :count]
        halved = shifted[..., ::2] | shifted[..., 1::2] << 4
        scales = scale.expand(-1, -1, group // size).flatten(1)[:, :count].contiguous()
        return cls(halved.contiguous().numpy(), scales.numpy(), 4, inputs, size)

    def product(
        self, graph: Graph, x: ir.Value, weight: ir.Value, scales: ir.Value, bias: ir.Value | None = None
    ) -> ir.Value:
        """`x @ weight.T + bias`, the weight being `data` and `scales` in the graph."""
        settings = {"N": len(self.data), "K": self.inputs, "bits": self.bits, "block_size": self.size}
        inputs = (x, weight, scales, None, None, bias)
        return graph.op("MatMulNBits", *inputs, domain=MICROSOFT, accuracy_level=_INT8_COMPUTE, **settings)


class Vocabulary:
    """Token embedding and vocabulary head.

    Args:
        graph: The graph.
        name: What the embedding is called there.
        matrix: `[V, D]`.
        form: How it is stored.
        width: D.
    """

    def __init__(self, graph: Graph, name: str, matrix: Matrix, form: Form, width: int) -> None:
        self._graph, self._name, self._form, self._width = graph, name, form, width
        self._rows = len(matrix.rows)
        if form == "fp32":
            self._weight = graph.weight(matrix.rows.numpy(), f"{name}.weight")
            return
        whole, scale = matrix.stored(form)
        if form == "int8":
            self._weight = graph.weight(whole.flatten(1).numpy(), f"{name}.weight")
            self._scale = graph.weight(scale.squeeze(2).numpy(), f"{name}.scale")
            return
        self._blocks = Blocks.of(whole, scale, matrix.inputs, form)
        self._weight = graph.weight(self._blocks.data, f"{name}.weight")
        self._scale = graph.weight(self._blocks.scales, f"{name}.scale")

    def rows(self, ids: ir.Value) -> ir.Value:
        """The embeddings `[B, S, D]` of tokens `[B, S]`."""
        graph, form, lookup = self._graph, self._form, f"{self._name}.lookup"
        if form == "fp32":
            return graph.op("Gather", graph.again(self._weight, lookup), ids)
        if form == "int8":
            found = graph.op("Gather", graph.again(self._weight, lookup), ids)
            scales = graph.op("Gather", graph.again(self._scale, f"{lookup}_scale"), ids)
            return graph.op("Mul", graph.op("Cast", found, to=ir.DataType.FLOAT), scales)
        blocks = self._blocks
        filled = blocks.scales.shape[1] * blocks.size
        flat = graph.again(self._weight, lookup, (self._rows, filled * blocks.bits // 8))
        settings = {"bits": blocks.bits, "block_size": blocks.size, "gather_axis": 0, "quantize_axis": 1}
        scales = graph.again(self._scale, f"{lookup}_scale")
        found = graph.op("GatherBlockQuantized", flat, ids, scales, domain=MICROSOFT, **settings)
        if filled == blocks.inputs:
            return found
        bounds = (
            graph.constant([0], "zero"),
            graph.constant([blocks.inputs], "width"),
            graph.constant([2], "channels"),
        )
        return graph.op("Slice", found, *bounds)

    def scores(self, hidden: ir.Value) -> ir.Value:
        """The logits `[B, S, V]` of hidden states `[B, S, D]`."""
        graph, form = self._graph, self._form
        if form == "fp32":
            return graph.op("FusedMatMul", hidden, self._weight, domain=MICROSOFT, transB=1)
        if form != "int8":
            return self._blocks.product(graph, hidden, self._weight, self._scale)
        flat = graph.op("Reshape", hidden, graph.constant([-1, self._width], "flat"))
        rounded = graph.ops("DynamicQuantizeLinear", flat, outputs=3)
        shape = graph.op("Concat", graph.op("Shape", hidden, start=0, end=2), graph.constant([-1], "rest"), axis=0)
        # ONNX Runtime turns a weight over before it packs it: in parts, for which less memory is needed at a time.
        size = -(-self._rows // _PARTS)
        parts = [self._part(first, min(size, self._rows - first), rounded) for first in range(0, self._rows, size)]
        return graph.op("Concat", *(graph.op("Reshape", part, shape) for part in parts), axis=2)

    def _part(self, first: int, count: int, rounded: Any) -> ir.Value:
        """The logits `[B * S, count]` of some of the tokens."""
        graph, name = self._graph, f"{self._name}.from_{first}"
        weight = graph.again(self._weight, f"{name}.weight", (count, self._width), first * self._width)
        scales = graph.again(self._scale, f"{name}.scale", (count,), first)
        zero = graph.constant(np.zeros(count, np.int8), f"zeros_{count}")
        return graph.op("QGemm", *rounded, weight, scales, zero, domain=MICROSOFT, transB=1)
