"""An arm of a benchmark: one way to run one model."""

from dataclasses import dataclass
from pathlib import Path

from lightgpt2.errors import Problem
from lightgpt2.models.quantization import stored_precision
from lightgpt2.runtime.folder import is_exported, open_export

GRAPH = "graph"  # the attention of an exported ONNX folder: its graph's own


@dataclass(frozen=True)
class Arm:
    """One way to run one model."""

    name: str  # unique, as in tables
    source: str  # hub id, folder or GGUF file
    precision: str  # as for `load_for_inference`, or what the folder is quantized to or exported as already
    attention: str  # `sdpa`, `eager`, or `flash`, which is sdpa held to its flash kernel; `GRAPH` for exported ONNX
    trust_remote_code: bool = False


def is_graph(source: str) -> bool:
    """True for a folder that was exported for ONNX Runtime."""
    return is_exported(source) and any(Path(source).expanduser().glob("*.onnx"))


def own_precision(source: str, key: str, trust_remote_code: bool = False) -> str | None:
    """The precision or format that a model says its file is in; None for plain weights, a `UserError` if it is damaged."""
    if is_exported(source):
        return str(open_export(Path(source).expanduser(), key).get("format"))
    return stored_precision(source, key, trust_remote_code)


def cuda_problem(source: str) -> Problem:
    """Why an exported folder is not measured on CUDA."""
    what = f"{source} is exported for processors, and its figures would not be CUDA's"
    return Problem("--device", what, "give --device cpu")
