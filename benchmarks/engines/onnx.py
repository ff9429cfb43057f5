"""ONNX Runtime: on a folder of `lightgpt2 export` by the engine that `lightgpt2 generate` runs, and on encoders."""

from pathlib import Path

from lightgpt2.runtime import ort
from lightgpt2.runtime.engines import Engine, Floats, Ints
from lightgpt2.runtime.folder import ONNX
from lightgpt2.runtime.loading import context_of
from lightgpt2.runtime.onnx_engine import OnnxEngine

ort.clips_products()  # a process's first session registers ONNX Runtime's operators
_ABOUT = f"onnxruntime {ort.runtime.__version__}"


def decoder(folder: Path, threads: int) -> tuple[Engine, str]:
    """An exported folder."""
    return OnnxEngine(folder / ONNX, context_of(folder, "model"), threads), _ABOUT


class Encoder:
    """An encoder's graph, with all inputs that it may have."""

    def __init__(self, session: ort.runtime.InferenceSession) -> None:
        self._session, self._names = session, [value.name for value in session.get_inputs()]

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
        return self._session.run(None, {name: given[name] for name in self._names})[0]


def encoder(file: Path, threads: int, exact: bool = False) -> tuple[Encoder, str]:
    """An ONNX file; if `exact`, as `lightgpt2` runs its own, else as ONNX Runtime does by default."""
    options = ort.session_options(threads) if exact else ort.runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return Encoder(ort.runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])), _ABOUT
