"""Matrices in an ONNX graph: in FP32, or as integers with scales, each multiplied by the operator that is fastest with it.

`int8`: one scale for each output channel; inputs are rounded to 8 bits while it runs, with one scale for all of them.
`int4`: one scale for each block of an output channel's inputs; inputs are rounded to 8 bits by blocks as well.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightgpt2.exporting.onnx_graph import MICROSOFT, Graph
from lightgpt2.functional.quantization import integers

Form = Literal["fp32", "int8", "int4"]
BLOCK = 32  # inputs that share a scale in INT4

_PARTS = 8  # of a head in INT8
_INT8_COMPUTE = 4  # MatMulNBits' `accuracy_level`: multiply integers


@dataclass(frozen=True)
class Matrix:
    """A weight `[O, I]`, one row an output channel.

    Attributes:
        rows: Its numbers in FP32 `[O, I]`; or the integers that stand for them, `[O, G, g]` in int8.
        scale: What the integers are multiplied with, `[O, G, 1]`; None for numbers in FP32.
    """

    rows: Tensor
    scale: Tensor | None = None

    @classmethod
    def joined(cls, parts: "list[Matrix]") -> "Matrix":
        """Matrices of the same inputs below each other."""
        scales = [part.scale for part in parts if part.scale is not None]
        return cls(torch.cat([part.rows for part in parts]), torch.cat(scales) if scales else None)

    @classmethod
    def stored_as(
        cls, whole: Tensor, scale: Tensor, bits: int, group: int, shape: list[int], transposed: bool
    ) -> "Matrix":
        """What a model's file holds; see `standalone.stored_weights`."""
        return cls(whole, scale)

    def stored(self, form: Form) -> tuple[Tensor, Tensor]:
        """Integers `[O, G, g]` and scales `[O, G, 1]`: those it has, or the nearest ones."""
        if self.scale is not None:
            return self.rows, self.scale
        return integers(self.rows.float(), 8 if form == "int8" else 4, None if form == "int8" else BLOCK)


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
    weight = graph.weight(_halved(whole), f"{name}.weight")
    scales = graph.weight(scale.squeeze(2).numpy(), f"{name}.scale")
    return _blocked(graph, x, weight, scales, added)


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
        stored = whole.flatten(1).numpy() if form == "int8" else _halved(whole)
        self._weight = graph.weight(stored, f"{name}.weight")
        self._scale = graph.weight(scale.squeeze(2).numpy(), f"{name}.scale")

    def rows(self, ids: ir.Value) -> ir.Value:
        """The embeddings `[B, S, D]` of tokens `[B, S]`."""
        graph, form = self._graph, self._form
        if form == "int4":
            flat = graph.again(self._weight, f"{self._name}.lookup", (self._rows, self._width // 2))
            scales = graph.again(self._scale, f"{self._name}.lookup_scale")
            settings = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
            return graph.op("GatherBlockQuantized", flat, ids, scales, domain=MICROSOFT, **settings)
        found = graph.op("Gather", graph.again(self._weight, f"{self._name}.lookup"), ids)
        if form == "fp32":
            return found
        scales = graph.op("Gather", graph.again(self._scale, f"{self._name}.lookup_scale"), ids)
        return graph.op("Mul", graph.op("Cast", found, to=ir.DataType.FLOAT), scales)

    def scores(self, hidden: ir.Value) -> ir.Value:
        """The logits `[B, S, V]` of hidden states `[B, S, D]`."""
        graph, form = self._graph, self._form
        if form == "fp32":
            return graph.op("FusedMatMul", hidden, self._weight, domain=MICROSOFT, transB=1)
        if form == "int4":
            return _blocked(graph, hidden, self._weight, self._scale, None)
        flat = graph.op("Reshape", hidden, graph.constant([-1, self._width], "flat"))
        whole, scale, zero = graph.ops("DynamicQuantizeLinear", flat, outputs=3)
        shape = graph.op("Concat", graph.op("Shape", hidden, start=0, end=2), graph.constant([-1], "rest"), axis=0)
        parts = []
        # ONNX Runtime turns a weight over before it packs it: in parts, for which less memory is needed at a time.
        for index, first in enumerate(range(0, self._rows, size := -(-self._rows // _PARTS))):
            count = min(size, self._rows - first)
            name = f"{self._name}.part_{index}"
            weight = graph.again(self._weight, f"{name}.weight", (count, self._width), first * self._width)
            scales = graph.again(self._scale, f"{name}.scale", (count,), first)
            none = graph.constant(np.zeros(count, np.int8), f"zeros_{count}")
            product = graph.op("QGemm", whole, scale, zero, weight, scales, none, domain=MICROSOFT, transB=1)
            parts.append(graph.op("Reshape", product, shape))
        return graph.op("Concat", *parts, axis=2)


def _blocked(graph: Graph, x: ir.Value, weight: ir.Value, scale: ir.Value, bias: ir.Value | None) -> ir.Value:
    outputs, blocks = (int(n) for n in scale.shape)
    shape = {"N": outputs, "K": blocks * BLOCK, "bits": 4, "block_size": BLOCK, "accuracy_level": _INT8_COMPUTE}
    return graph.op("MatMulNBits", x, weight, scale, None, None, bias, domain=MICROSOFT, **shape)


def _halved(whole: Tensor) -> NDArray[np.uint8]:
    """Integers from -8 to 7 `[O, G, g]`, two in a byte with 8 added, `[O, G, g / 2]`: the first one in the low half."""
    shifted = (whole + 8).to(torch.uint8)
    halved: NDArray[Any] = (shifted[..., ::2] | shifted[..., 1::2] << 4).numpy()
    return halved
