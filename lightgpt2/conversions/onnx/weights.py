"""Matrices in an ONNX graph: in FP32, or as integers with scales, each multiplied by the operator that is fastest with it.

`int8`: one scale for each output channel; inputs are rounded to 8 bits while it runs, with one scale for all of them.
`int8-tokens`: the same integers; inputs are rounded with one scale for each token, as quantization-aware training rounds them,
so that no text's result depends on another's.
`int8-blocks`: the same integers; inputs are rounded with one scale for each block of each token. It is slower with many
tokens, but a few inputs a hundred times as large as the others do no harm to those.
`int4`: one scale and zero point for each group of an output channel's inputs; inputs as for `int8-blocks`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightgpt2.conversions.onnx.graph import MICROSOFT, Graph
from lightgpt2.functional.quantization import affine_integers, grouped, integers
from lightgpt2.models.standalone import stored_weights

Form = Literal["fp32", "int8", "int8-tokens", "int8-blocks", "int4"]
GROUP = 32  # inputs that share a scale in INT4, unless it is said otherwise

_SIZES = (128, 64, 32)  # of blocks of inputs, what the operator is fast with first
_PARTS = 16  # of a quantized head
_INT8_COMPUTE = 4  # MatMulNBits' `accuracy_level`: multiply integers


@dataclass(frozen=True)
class Matrix:
    """A weight `[O, I]`, one row for each output channel."""

    rows: Tensor  # in FP32 [O, I]; or the integers that stand for it, [O, G, g] in int8, the last group filled up
    scale: Tensor | None  # what the integers are multiplied with, [O, G, 1]; None in FP32
    zero: Tensor | None  # what is subtracted from them before, [O, G, 1]; None for 0
    inputs: int  # I
    power: Tensor | None = None  # mean square of each input [I], if it is known

    @classmethod
    def of(cls, rows: Tensor, power: Tensor | None = None) -> "Matrix":
        return cls(rows.float(), None, None, rows.shape[1], power)

    @classmethod
    def joined(cls, parts: "list[Matrix]") -> "Matrix":
        """Matrices of the same inputs below each other."""
        scales = [part.scale for part in parts if part.scale is not None]
        joined = torch.cat([part.rows for part in parts])
        return cls(joined, torch.cat(scales) if scales else None, None, parts[0].inputs, parts[0].power)

    def ordered(self, order: Tensor) -> "Matrix":
        """The same output channels in another order, by index."""
        return replace(self, rows=self.rows[order], scale=None if self.scale is None else self.scale[order])

    def rounded(self, form: Form, group: int) -> "Matrix":
        """As integers: those it has, or the nearest ones; in INT4, with `power`, those that change the outputs least."""
        if self.scale is not None:
            return self
        if form == "int4":
            return Matrix(*affine_integers(self.rows, group, self.power), self.inputs)
        return Matrix(*integers(self.rows, 8), None, self.inputs)


def linear(
    graph: Graph, name: str, x: ir.Value, matrix: Matrix, form: Form, bias: Tensor | None = None, group: int = GROUP
) -> ir.Value:
    """`x @ matrix.T + bias` of `x` `[..., I]`; `group` inputs share a scale in INT4, unless the matrix is integers already."""
    added = None if bias is None else graph.weight(bias.numpy(), f"{name}.bias")
    if form == "fp32":
        product = graph.op("MatMul", x, graph.weight(matrix.rows.T.numpy(), f"{name}.weight"))
        return product if added is None else graph.op("Add", product, added)
    matrix = matrix.rounded(form, group)
    if form in ("int8", "int8-tokens"):
        weight = graph.weight(matrix.rows.flatten(1).T.numpy(), f"{name}.weight")
        scales = graph.weight(cast(Tensor, matrix.scale).flatten().numpy(), f"{name}.scale")
        if form == "int8":
            return graph.op("DynamicQuantizeMatMul", x, weight, scales, None, added, domain=MICROSOFT)
        product = _by_tokens(graph, x, weight, scales)
        return product if added is None else graph.op("Add", product, added)
    blocks = Blocks.of(matrix, form)
    return blocks.product(graph, x, blocks.write(graph, name), len(blocks.data), added)


def _by_tokens(graph: Graph, x: ir.Value, weight: ir.Value, scales: ir.Value) -> ir.Value:
    """`x @ weight` with each token of `x` rounded as by `stored_weights.round_inputs`."""
    largest = graph.op("ReduceMax", graph.op("Abs", x), graph.constant([-1], "last_axis"))
    step = graph.op("Div", largest, graph.constant(np.float32(127), "most"))
    step = graph.op("Max", step, graph.constant(np.finfo(np.float32).tiny, "tiny"))
    unit, zero = graph.constant(np.float32(1), "unit"), graph.constant(np.uint8(128), "middle")
    whole = graph.op("QuantizeLinear", graph.op("Mul", x, graph.op("Reciprocal", step)), unit, zero)
    product = graph.op("MatMulIntegerToFloat", whole, weight, unit, scales, zero, domain=MICROSOFT)
    return graph.op("Mul", product, step)


def block_size(group: int) -> int:
    """The largest power of two from 16 to 256 that divides a group of inputs, as ONNX Runtime's blocks must; 0 if none does."""
    return next((size for size in (256, 128, 64, 32, 16) if group % size == 0), 0)


Written = tuple[ir.Value, ir.Value, ir.Value | None]  # integers, scales and zero points in a graph


@dataclass(frozen=True)
class Blocks:
    """A weight as `MatMulNBits` wants it."""

    # [O, G, g] with half of their range added; of 4 bits two in a byte, the first in the low half
    data: NDArray[np.uint8]
    scales: NDArray[np.float32]  # [O, G]
    zeros: NDArray[np.uint8] | None  # zero points likewise, [O, ceil(G / 2)]; None for half of the range
    bits: int  # 4 or 8
    inputs: int  # I
    size: int  # g, a power of two

    @classmethod
    def of(cls, matrix: Matrix, form: Form) -> "Blocks":
        scale, inputs = cast(Tensor, matrix.scale), matrix.inputs
        if form != "int4":
            rows = matrix.rows.flatten(1)[:, :inputs]
            size = next((size for size in _SIZES if inputs % size == 0), _SIZES[-1])
            data = grouped(rows.to(torch.int16) + 128, size).to(torch.uint8)
            scales = scale.squeeze(2).expand(-1, data.shape[1])
            return cls(data.numpy(), scales.contiguous().numpy(), None, 8, inputs, size)
        group = matrix.rows.shape[-1]
        size = block_size(group)
        count = -(-inputs // size)
        data = _halved(matrix.rows.reshape(len(matrix.rows), -1, size)[:, :count])
        scales = scale.expand(-1, -1, group // size).flatten(1)[:, :count].contiguous()
        zeros = None if matrix.zero is None else _halved(matrix.zero.squeeze(2)).numpy()
        return cls(data.numpy(), scales.numpy(), zeros, 4, inputs, size)

    def write(self, graph: Graph, name: str) -> Written:
        zeros = None if self.zeros is None else graph.weight(self.zeros, f"{name}.zero")
        return graph.weight(self.data, f"{name}.weight"), graph.weight(self.scales, f"{name}.scale"), zeros

    def product(self, graph: Graph, x: ir.Value, written: Written, rows: int, bias: ir.Value | None = None) -> ir.Value:
        """`x @ weight.T + bias`, the weight being what `write` gave, or some rows of it."""
        shape = {"N": rows, "K": self.inputs, "bits": self.bits, "block_size": self.size}
        settings = {"accuracy_level": _INT8_COMPUTE, **shape}
        return graph.op("MatMulNBits", x, *written, None, bias, domain=MICROSOFT, **settings)


def _halved(whole: Tensor) -> Tensor:
    """Integers from -8 to 7 `[..., g]` as unsigned ones, two in a byte, `[..., ceil(g / 2)]`."""
    return stored_weights.halved((whole + 8).to(torch.int8)).contiguous()


class Vocabulary:
    """Token embedding and vocabulary head `[V, D]`, stored once; the arguments are those of `linear`."""

    def __init__(self, graph: Graph, name: str, matrix: Matrix, form: Form, group: int = GROUP) -> None:
        self._graph, self._name, self._form = graph, name, form
        self._rows, self._width = len(matrix.rows), matrix.inputs
        if form == "fp32":
            self._weight = graph.weight(matrix.rows.numpy(), f"{name}.weight")
            return
        matrix = matrix.rounded(form, group)
        if form == "int8":
            self._weight = graph.weight(matrix.rows.flatten(1).numpy(), f"{name}.weight")
            self._scale = graph.weight(cast(Tensor, matrix.scale).squeeze(2).numpy(), f"{name}.scale")
            return
        self._blocks = Blocks.of(matrix, form)
        self._written = self._blocks.write(graph, name)

    def rows(self, ids: ir.Value) -> ir.Value:
        """The embeddings `[B, S, D]` of tokens `[B, S]`."""
        graph, lookup = self._graph, f"{self._name}.lookup"
        if self._form in ("fp32", "int8"):
            found = graph.op("Gather", graph.again(self._weight, lookup), ids)
            if self._form == "fp32":
                return found
            scales = graph.op("Gather", graph.again(self._scale, f"{lookup}_scale"), ids)
            return graph.op("Mul", graph.op("Cast", found, to=ir.DataType.FLOAT), scales)
        blocks = self._blocks
        filled = blocks.scales.shape[1] * blocks.size
        weight, scale, zero = self._written
        flat = graph.again(weight, lookup, (self._rows, filled * blocks.bits // 8))
        scale = graph.again(scale, f"{lookup}_scale")
        zero = zero and graph.again(zero, f"{lookup}_zero")
        settings = {"bits": blocks.bits, "block_size": blocks.size, "gather_axis": 0, "quantize_axis": 1}
        found = graph.op("GatherBlockQuantized", flat, ids, scale, zero, domain=MICROSOFT, **settings)
        if filled == blocks.inputs:
            return found
        bounds = {"zero": 0, "width": blocks.inputs, "channels": 2}
        return graph.op("Slice", found, *(graph.constant([value], name) for name, value in bounds.items()))

    def scores(self, hidden: ir.Value) -> ir.Value:
        """The logits `[B, S, V]` of hidden states `[B, S, D]`."""
        graph, form = self._graph, self._form
        if form == "fp32":
            return graph.op("FusedMatMul", hidden, self._weight, domain=MICROSOFT, transB=1)
        # ONNX Runtime packs a weight while the file's own is still mapped, and turns one in INT8 over before: in parts that
        # takes less memory.
        size = -(-self._rows // _PARTS)
        bounds = [(first, min(size, self._rows - first)) for first in range(0, self._rows, size)]
        if form != "int8":
            return graph.op("Concat", *(self._blocked_part(hidden, *part) for part in bounds), axis=2)
        flat = graph.op("Reshape", hidden, graph.constant([-1, self._width], "flat"))
        rounded = graph.ops("DynamicQuantizeLinear", flat, outputs=3)
        shape = graph.op("Concat", graph.op("Shape", hidden, start=0, end=2), graph.constant([-1], "rest"), axis=0)
        parts = [graph.op("Reshape", self._part(rounded, *part), shape) for part in bounds]
        return graph.op("Concat", *parts, axis=2)

    def _part(self, rounded: Any, first: int, count: int) -> ir.Value:
        """The logits `[B * S, count]` of some of the tokens, of hidden states in 8 bits."""
        weight = self._some("weight", self._weight, first, count)
        scales = self._graph.again(self._scale, f"{self._name}.from_{first}.scale", (count,), first)
        # One for each part: where weights are made unsigned at loading, two parts that share one cannot be loaded.
        zero = self._graph.constant(np.zeros(count, np.int8), f"{self._name}.from_{first}.zero")
        return self._graph.op("QGemm", *rounded, weight, scales, zero, domain=MICROSOFT, transB=1)

    def _blocked_part(self, hidden: ir.Value, first: int, count: int) -> ir.Value:
        """The logits `[B, S, count]` of some of the tokens."""
        weight, scales, zeros = self._written
        some = self._some("weight", weight, first, count), self._some("scale", scales, first, count)
        zeros = None if zeros is None else self._some("zero", zeros, first, count)
        return self._blocks.product(self._graph, hidden, (*some, zeros), count)

    def _some(self, what: str, value: ir.Value, first: int, count: int) -> ir.Value:
        shape = (count, *cast(Any, value.const_value).shape[1:])
        return self._graph.again(value, f"{self._name}.from_{first}.{what}", shape, first)
