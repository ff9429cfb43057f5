"""ONNX graphs written node by node, their weights streamed to one file beside them.

Two names may stand for one place in that file. A tied head is stored once on disk that way, and in memory too: ONNX Runtime
maps each name by itself, packs the one that is multiplied with and lets go of its pages, and of the other reads only the rows
that are looked up.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

GRAPH, WEIGHTS = "model.onnx", "model.onnx_data"
MICROSOFT = "com.microsoft"  # the operators that ONNX Runtime adds to the standard's

OPSET = 18  # of the standard, unless a graph needs a later one
_IR_VERSION = 10
_PAGE = 4096  # what a file can be mapped by
_INLINE = 256  # bytes up to which a constant lies in the graph itself, where ONNX Runtime can fold it

Array = NDArray[Any]


class Weights:
    """Writes `model.onnx_data`, which the graphs of a folder share: a name stands for one array in all of them."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / WEIGHTS).open("wb")
        self._offsets: dict[str, int] = {}
        self.sizes: dict[str, int] = {}  # bytes of each weight, without what fills pages up

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def bytes(self) -> int:
        """The bytes of all weights, each counted once."""
        return sum(self.sizes.values())

    def write(self, name: str, array: Array) -> int:
        """Write an array that has no place in the file yet; returns its place."""
        if name not in self._offsets:
            self._file.write(b"\0" * (-self._file.tell() % _PAGE))
            self._offsets[name] = self._file.tell()
            self._file.write(np.ascontiguousarray(array).data)
        return self._offsets[name]


class Graph:
    """Collects the nodes of a graph, and writes it into a folder, by default as `model.onnx`; its weights beside it."""

    def __init__(self, folder: Path, weights: Weights, opset: int = OPSET, name: str = GRAPH) -> None:
        self._folder, self._weights, self._opset, self._name = folder, weights, opset, name
        self._tape = ir.tape.Tape()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self.metadata: dict[str, str] = {}  # of the model, as clients read it

    def input(
        self, name: str, dtype: ir.DataType, shape: Sequence[int | str], value: ir.Value | None = None
    ) -> ir.Value:
        """An input of the graph; named dimensions are free. `value` is one that nodes read already."""
        value = ir.Value() if value is None else value
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._inputs.append(value)
        return value

    def option(self, name: str, default: Array) -> ir.Value:
        """An input that may be left out (ONNX Runtime's overridable initializer)."""
        value = self._tape.initializer(ir.tensor(default, name=name))
        self._inputs.append(value)
        return value

    def output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        return self._tape.op(kind, inputs, attributes, domain=domain)

    def ops(self, kind: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any) -> Any:
        return self._tape.op_multi_out(kind, inputs, attributes, num_outputs=outputs, domain=domain)

    def rms_norm(self, x: ir.Value, gamma: ir.Value, epsilon: float) -> ir.Value:
        """`x` divided by the root of its mean square over the last axis, times gamma.

        ONNX Runtime fuses these into its own operator, which is in no domain that the standard's checker knows.
        """
        square = self.op("Pow", x, self.constant(np.float32(2), "two"))
        mean = self.op("ReduceMean", square, self.constant([-1], "last_axis"), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(np.float32(epsilon), f"epsilon.{epsilon}")))
        return self.op("Mul", self.op("Div", x, root), gamma)

    def constant(self, values: Any, name: str) -> ir.Value:
        """A small constant, once for each name."""
        found = next((value for value in self._tape.initializers if value.name == name), None)
        return found or self._tape.initializer(ir.tensor(np.asarray(values), name=name))

    def weight(self, array: Array, name: str) -> ir.Value:
        """An array as it is, written to the file unless it is small or there already."""
        self._weights.sizes[name] = array.nbytes
        if array.nbytes <= _INLINE:
            return self._tape.initializer(ir.tensor(array, name=name))
        offset = self._weights.write(name, array)
        return self._external(name, ir.DataType.from_numpy(array.dtype), array.shape, offset, array.nbytes)

    def again(self, weight: ir.Value, name: str, shape: tuple[int, ...] | None = None, first: int = 0) -> ir.Value:
        """A second name for a weight, at the same place of the file: in another shape, or from the row `first` on."""
        stored = cast(ir.TensorProtocol, weight.const_value)
        own = cast(tuple[int, ...], tuple(stored.shape))
        shape = own if shape is None else shape
        start, count = first * math.prod(own[1:]), math.prod(shape)
        if not isinstance(stored, ir.ExternalTensor):
            part = stored.numpy().flatten()[start : start + count].reshape(shape)
            return self._tape.initializer(ir.tensor(part, name=name))
        size = stored.nbytes // stored.size
        return self._external(name, stored.dtype, shape, cast(int, stored.offset) + start * size, count * size)

    def _external(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], offset: int, length: int) -> ir.Value:
        where: Any = {"shape": ir.Shape(shape), "name": name, "base_dir": self._folder}
        return self._tape.initializer(ir.ExternalTensor(WEIGHTS, offset, length, dtype, **where))

    def save(self) -> None:
        """Write the graph, once all its nodes are there."""
        # A weight may be known by its other names alone; one that no node reads is a warning to each client.
        used = {*self._inputs, *(value for node in self._tape.nodes for value in node.inputs)}
        kept = [value for value in self._tape.initializers if value in used]
        about: Any = {"opset_imports": {"": self._opset, MICROSOFT: 1}, "name": "model"}
        graph = ir.Graph(self._inputs, self._outputs, nodes=self._tape.nodes, initializers=kept, **about)
        model = ir.Model(graph, ir_version=_IR_VERSION, producer_name="lightgpt2", metadata_props=self.metadata)
        ir.save(model, self._folder / self._name)
