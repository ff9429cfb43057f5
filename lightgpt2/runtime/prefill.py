"""A second graph for prompts, of a model in 4 bits: its products of many tokens with the same weights in 8 bits.

With one token a product takes as long as its weights take to be read, and 4 bits are the fastest. With many, what counts is
how they are multiplied: `DynamicQuantizeMatMul`, one scale for an output channel, is faster than `MatMulNBits`. So the second
graph is made when the model is loaded, from the integers in its file, whose size stays what it is.
"""

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightgpt2.runtime.ort import open_session, runtime

_MICROSOFT = "com.microsoft"
_LARGEST = 127  # what a channel's largest weight becomes


def prefill_session(model: Path, kept: list[str], threads: int, profile: str | None = None) -> runtime.InferenceSession:
    """Load a graph with its 4-bit products turned into those of 8 bits; see `open_session`.

    They are written to a temporary file, which has no name afterwards and goes with the session: ONNX Runtime lets go of a
    file's numbers once it has packed them, and of those in memory it does not. Matrices whose inputs one scale would not do
    for (`kept`) stay as they are.
    """
    loaded = ir.load(model)
    for value in loaded.graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            # Read when it is wanted; and where the file is linked to as well, as hub caches do.
            read = partial(_read, tensor, model.parent)
            value.const_value = ir.LazyTensor(read, tensor.dtype, tensor.shape, name=value.name)
    for node in list(loaded.graph):
        if node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == 4:
            stored = cast(str, cast(ir.Value, node.inputs[1]).name)
            if not any(stored.startswith(f"{name}.") for name in kept):
                _replace(loaded.graph, node, stored)
    used = {*loaded.graph.inputs, *(value for node in loaded.graph for value in node.inputs)}
    for name, value in [*loaded.graph.initializers.items()]:
        if value not in used:
            del loaded.graph.initializers[name]
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / model.name
        ir.save(loaded, graph, external_data="weights")
        return open_session(graph, threads, profile)


def from_blocks(
    data: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, inputs: int
) -> NDArray[np.float32]:
    """Dequantize 4-bit integers in the layout of `MatMulNBits` to `[O, I]`.

    Args:
        data: `[O, G, g / 2]`, two in a byte, the first one in the low half.
        scales: `[O, G]`.
        zeros: Zero points likewise, `[O, ceil(G / 2)]`; None for 8.
        inputs: I.
    """
    integers = _halves(data).astype(np.float32)
    integers -= 8 if zeros is None else _halves(zeros)[:, : scales.shape[1], None]
    integers *= scales[:, :, None]
    return integers.reshape(len(integers), -1)[:, :inputs]


def rounded(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round `[O, I]` to 8 bits with one scale for each output channel: integers `[I, O]` and scales `[O]`."""
    steps = np.maximum(np.abs(rows).max(axis=1) / _LARGEST, np.finfo(np.float32).tiny)
    return np.ascontiguousarray(np.rint(rows / steps[:, None]).astype(np.int8).T), steps


def _replace(graph: ir.Graph, node: ir.Node, stored: str) -> None:
    """Put a product with 8 bits in the place of one with 4."""
    x, integers, scales, zeros, _, bias = (*node.inputs, None)[:6]
    outputs, inputs = (node.attributes[name].as_int() for name in ("N", "K"))

    def compute(part: int) -> ir.TensorProtocol:
        whole = from_blocks(_array(integers), _array(scales), None if zeros is None else _array(zeros), inputs)
        return ir.tensor(rounded(whole)[part])

    added = []
    kinds: Any = (("", ir.DataType.INT8, (inputs, outputs)), ("_scale", ir.DataType.FLOAT, (outputs,)))
    for part, (ending, dtype, shape) in enumerate(kinds):
        about: Any = {"name": f"{stored}.prefill{ending}", "shape": ir.Shape(shape)}
        # Computed when it is written: one matrix in memory at a time.
        tensor = ir.LazyTensor(partial(compute, part), dtype, **about)
        added.append(ir.Value(type=ir.TensorType(dtype), const_value=tensor, **about))
        graph.register_initializer(added[-1])
    product = ir.node("DynamicQuantizeMatMul", [x, *added, None, bias], domain=_MICROSOFT)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)


def _read(stored: ir.ExternalTensor, folder: Path) -> ir.TensorProtocol:
    dtype, shape = stored.dtype.numpy(), tuple(stored.shape.numpy())
    flat = np.fromfile(folder / stored.location, dtype, math.prod(shape), offset=stored.offset or 0)
    return ir.tensor(flat.reshape(shape), stored.dtype)


def _array(value: ir.Value | None) -> NDArray[Any]:
    return cast(ir.TensorProtocol, cast(ir.Value, value).const_value).numpy()


def _halves(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[..., n]` bytes as `[..., 2 n]` numbers of 4 bits."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
