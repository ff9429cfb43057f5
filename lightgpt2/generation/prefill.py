"""A second graph for prompts, of a model in 4 bits: its products of many tokens with the same weights in 8 bits.

With one token a product takes as long as its weights take to be read, and 4 bits are the fastest. With many, what counts is how
they are multiplied: `DynamicQuantizeMatMul`, one scale for an output channel, is several times as fast as `MatMulNBits`. So the
second graph is made in memory when the model is loaded, from the integers in its file, whose size stays what it is.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lightgpt2.ort import runtime

_MICROSOFT = "com.microsoft"
_LARGEST = 127  # what a channel's largest weight becomes


def prefill_session(model: Path, kept: list[str], options: runtime.SessionOptions) -> runtime.InferenceSession:
    """Loads a graph with its 4-bit products turned into those of 8 bits.

    Args:
        model: The `.onnx` file.
        kept: Matrices whose inputs one scale would not do for; they stay as they are.
        options: What the session is made with; it is changed.
    """
    loaded = ir.load(model)
    weights: dict[str, NDArray[Any]] = {}
    for node in list(loaded.graph):
        if node.op_type != "MatMulNBits" or node.attributes["bits"].as_int() != 4:
            continue
        x, stored, scales, zeros, _, bias = (*node.inputs, None)[:6]
        assert stored is not None and scales is not None
        assert stored.name is not None
        if any(stored.name.startswith(f"{name}.") for name in kept):
            continue
        whole = from_blocks(
            _array(stored),
            _array(scales),
            None if zeros is None else _array(zeros),
            node.attributes["K"].as_int(),
        )
        integers, steps = rounded(whole)
        added = [
            _external(loaded.graph, f"{stored.name}.prefill", integers, weights),
            _external(loaded.graph, f"{stored.name}.prefill_scale", steps, weights),
        ]
        product = ir.node("DynamicQuantizeMatMul", [x, *added, None, bias], domain=_MICROSOFT)
        ir.convenience.replace_nodes_and_values(
            loaded.graph, node, [node], [product], node.outputs, product.outputs
        )
    _forget_unused(loaded.graph)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    values = [runtime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers([*weights], values)
    serialized = ir.to_proto(loaded).SerializeToString()
    return runtime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])


def from_blocks(
    data: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8] | None, inputs: int
) -> NDArray[np.float32]:
    """The numbers that 4-bit integers in the layout of `MatMulNBits` stand for.

    Args:
        data: `[O, G, g / 2]`, two in a byte, the first one in the low half.
        scales: `[O, G]`.
        zeros: Zero points likewise, `[O, ceil(G / 2)]`; None for 8.
        inputs: I.

    Returns:
        `[O, I]`.
    """
    integers = _halves(data).astype(np.float32)
    integers -= 8 if zeros is None else _halves(zeros)[:, : scales.shape[1], None]
    integers *= scales[:, :, None]
    return integers.reshape(len(integers), -1)[:, :inputs]


def rounded(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rounds to 8 bits with one scale for each output channel.

    Args:
        rows: `[O, I]`.

    Returns:
        Integers `[I, O]` and scales `[O]`.
    """
    steps = np.maximum(np.abs(rows).max(axis=1) / _LARGEST, np.finfo(np.float32).tiny)
    return np.ascontiguousarray(np.rint(rows / steps[:, None]).astype(np.int8).T), steps


def _halves(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[..., n]` bytes as `[..., 2 n]` numbers of 4 bits."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def _array(value: ir.Value) -> NDArray[Any]:
    return cast(ir.TensorProtocol, value.const_value).numpy()


def _external(graph: ir.Graph, name: str, array: NDArray[Any], weights: dict[str, NDArray[Any]]) -> ir.Value:
    """An initializer whose numbers are handed over beside the graph, which has room for 2 GB only."""
    dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    tensor = ir.ExternalTensor("memory", 0, array.nbytes, dtype, shape=shape, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    weights[name] = array
    return value


def _forget_unused(graph: ir.Graph) -> None:
    """Takes out what was multiplied with before, so that it is not loaded again."""
    used = {*graph.inputs, *(value for node in graph for value in node.inputs)}
    for name, value in [*graph.initializers.items()]:
        if value not in used:
            del graph.initializers[name]
