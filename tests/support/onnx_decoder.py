"""A one-layer ONNX decoder with the inputs and outputs of an exported one, and the same computed by numpy without a cache."""

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lightgpt2.runtime.folder import seal
from tests.support.models import write_tokenizer

HEADS, WIDTH, VOCABULARY, POSITIONS = 2, 8, 300, 64
_D = HEADS * WIDTH


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Its weights, by name."""
    random = np.random.default_rng(seed)
    shapes = {"wte": (VOCABULARY, _D), "wpe": (POSITIONS, _D), "wq": (_D, _D), "wk": (_D, _D), "wv": (_D, _D)}
    return {name: random.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def naive_logits(ids: NDArray[np.int64], seed: int = 0) -> NDArray[np.float32]:
    """Logits `[T, V]` of one sequence `[T]`."""
    w = weights(seed)
    x = w["wte"][ids] + w["wpe"][: len(ids)]
    q, k, v = ((x @ w[name]).reshape(-1, HEADS, WIDTH).swapaxes(0, 1) for name in ("wq", "wk", "wv"))
    scores = q @ k.swapaxes(1, 2) / WIDTH**0.5
    scores[:, np.triu(np.ones((len(ids), len(ids)), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ v
    return (x + mixed.swapaxes(0, 1).reshape(len(ids), _D)) @ w["wte"].T


def write_decoder(folder: Path, seed: int = 0, keeps: bool = True) -> Path:
    """An exported folder with its tokenizer.

    Args:
        folder: Where.
        seed: Of its weights.
        keeps: Whether it can leave out all logits but the last.
    """
    write_tokenizer(folder)
    onnx.save(_model(seed, keeps), folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": POSITIONS, "eos_token_id": 0}))
    seal(folder, {"format": "onnx"})
    return folder


def _model(seed: int, keeps: bool) -> onnx.ModelProto:
    constants = {
        "one": np.array(1, np.int64), "last": np.array([1], np.int64), "heads": np.array([1, 2], np.int64),
        "end": np.array([2**62], np.int64), "low": np.array(-1e4, np.float32),
        "num_logits_to_keep": np.array(0, np.int64), "whole": np.array([-1], np.int64),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Gather", ["wte", "input_ids"], ["tokens"]),
        node("Gather", ["wpe", "position_ids"], ["places"]),
        node("Add", ["tokens", "places"], ["x"]),
        *(node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"),
        node("Shape", ["attention_mask"], ["total64"], start=1),
        node("Squeeze", ["total64"], ["total64s"]),
        node("Cast", ["total64s"], ["total"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["batch"], end=1),
        node("Sub", ["total64s", "one"], ["used"]),
        node("Expand", ["used", "batch"], ["used_each"]),
        node("Cast", ["used_each"], ["lengths"], to=TensorProto.INT32),
        node("Sub", ["one", "attention_mask"], ["pads"]),
        node("Cast", ["pads"], ["pads_float"], to=TensorProto.FLOAT),
        node("Mul", ["pads_float", "low"], ["bias_flat"]),
        node("Unsqueeze", ["bias_flat", "heads"], ["bias_row"]),
        node("Shape", ["input_ids"], ["new"], start=1),
        node("Concat", ["batch", "last", "new", "total64"], ["bias_shape"], axis=0),
        node("Expand", ["bias_row", "bias_shape"], ["bias"]),
        node(
            "GroupQueryAttention",
            ["q", "k", "v", "past_key_values.0.key", "past_key_values.0.value", "lengths", "total", "", "", "", "bias"],
            ["mixed", "present.0.key", "present.0.value"],
            domain="com.microsoft", num_heads=HEADS, kv_num_heads=HEADS,
        ),
        node("Add", ["x", "mixed"], ["hidden"]),
        node("Neg", ["num_logits_to_keep"], ["from"]),
        node("Reshape", ["from", "whole"], ["start"]),
        node("Slice", ["hidden", "start", "end", "last"], ["kept"]),
        node("Transpose", ["wte"], ["head"]),
        node("MatMul", ["kept", "head"], ["logits"]),
    ]  # fmt: skip
    info = helper.make_tensor_value_info
    inputs = [
        info("input_ids", TensorProto.INT64, ["B", "S"]),
        info("attention_mask", TensorProto.INT64, ["B", "T"]),
        info("position_ids", TensorProto.INT64, ["B", "S"]),
        *(info(f"past_key_values.0.{x}", TensorProto.FLOAT, ["B", HEADS, "P", WIDTH]) for x in ("key", "value")),
    ]
    outputs = [
        info("logits", TensorProto.FLOAT, ["B", "kept", VOCABULARY]),
        *(info(f"present.0.{x}", TensorProto.FLOAT, ["B", HEADS, "T", WIDTH]) for x in ("key", "value")),
    ]
    arrays = {**weights(seed), **constants}
    if not keeps:
        nodes = [n for n in nodes if n.output[0] not in ("from", "start")]
        arrays["start"] = np.array([0], np.int64)
        del arrays["num_logits_to_keep"]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
