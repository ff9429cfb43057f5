"""llama.cpp through the C functions of llama-cpp-python: its Python class copies and converts the logits of every token."""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

from lightgpt2.runtime.engines import Floats, Ints

_UBATCH = 512  # llama.cpp's own
_LOG = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(_LOG, ctypes.c_void_p())
llama_cpp.llama_backend_init()


class LlamaCpp:
    """A GGUF file."""

    def __init__(self, path: Path, threads: int) -> None:
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if self._model is None:
            raise RuntimeError(f"llama.cpp can't load {path.name}")
        self._threads, self._one = threads, llama_cpp.llama_batch_init(1, 0, 1)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int, int], llama_cpp.llama_context_p] = {}

    def _context(self, length: int, sequences: int, outputs: int) -> llama_cpp.llama_context_p:
        key = length, sequences, outputs
        if key not in self._contexts:
            settings = llama_cpp.llama_context_default_params()
            settings.n_ctx = settings.n_batch = length * sequences
            settings.n_ubatch = min(_UBATCH, length * sequences)
            settings.n_seq_max, settings.n_outputs_max = sequences, outputs
            settings.n_threads = settings.n_threads_batch = self._threads
            self._contexts[key] = llama_cpp.llama_init_from_model(self._model, settings)
        if self._contexts[key] is None:
            raise RuntimeError(f"llama.cpp opens no context for {sequences} sequences of {length} tokens")
        return self._contexts[key]

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        self._position = ids.shape[1]
        self._decoding = self._context(self._position + new_tokens, 1, 1)
        return self._whole(self._decoding, ids, every=False)

    def decode(self, tokens: Ints) -> Floats:
        one = self._one
        one.n_tokens = 1
        one.token[0], one.pos[0] = int(tokens[0]), self._position
        one.n_seq_id[0], one.seq_id[0][0], one.logits[0] = 1, 0, 1
        self._position += 1
        return self._run(self._decoding, one, 1)

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        rows, length = ids.shape
        return self._whole(self._context(length, rows, ids.size), ids, every=True).reshape(rows, length, -1)

    def _whole(self, context: llama_cpp.llama_context_p, ids: Ints, every: bool) -> Floats:
        """A batch `[B, T]` from an empty cache, each row its own sequence; the logits of all positions or the last ones."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        (rows, length), count = ids.shape, ids.size
        batch = llama_cpp.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        values = {
            "token": ids.ravel(), "pos": np.tile(np.arange(length), rows), "n_seq_id": 1,
            "logits": 1 if every else np.arange(1, count + 1) % length == 0,
        }  # fmt: skip
        for name, value in values.items():
            np.ctypeslib.as_array(getattr(batch, name), (count,))[:] = value
        for position in range(count):
            batch.seq_id[position][0] = position // length
        found = self._run(context, batch, count if every else rows)
        llama_cpp.llama_batch_free(batch)
        return found

    def _run(self, context: llama_cpp.llama_context_p, batch: llama_cpp.llama_batch, outputs: int) -> Floats:
        if code := llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode answers {code}")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (outputs, self.vocabulary))  # its own buffer


def decoder(folder: Path, threads: int) -> tuple[LlamaCpp, str]:
    """A folder with one GGUF file."""
    (path,) = folder.glob("*.gguf")
    switches = llama_cpp.llama_print_system_info().decode().replace(" = 1", "").replace("|", " ")
    return LlamaCpp(path, threads), f"llama-cpp-python {llama_cpp.__version__} ({' '.join(switches.split())})"
