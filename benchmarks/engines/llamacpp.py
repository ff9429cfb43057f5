"""llama.cpp through the C functions of llama-cpp-python: its Python class copies and converts the logits of every token."""

import ctypes

import llama_cpp
import numpy as np

from benchmarks.engines.base import Engine, Ids, Logits

_UBATCH = 512  # llama.cpp's own


class LlamaCppEngine(Engine):
    """A GGUF file."""

    def prepare(self) -> None:
        """Loads what computes, and silences it."""
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()

    def load(self, capacity: int) -> None:
        """Maps the file and opens a context for one sequence."""
        (path,) = self.folder.glob("*.gguf")
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise RuntimeError(f"llama.cpp can't load {path.name}")
        self._model = model
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._context = self._new_context(capacity, 1, 1)
        self._one = llama_cpp.llama_batch_init(1, 0, 1)
        self._wide: tuple[tuple[int, ...], llama_cpp.llama_context_p] | None = None

    def _new_context(self, length: int, sequences: int, outputs: int) -> llama_cpp.llama_context_p:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = length * sequences
        settings.n_ubatch = min(_UBATCH, length * sequences)
        settings.n_seq_max, settings.n_outputs_max = sequences, outputs
        settings.n_threads = settings.n_threads_batch = self.threads
        context = llama_cpp.llama_init_from_model(self._model, settings)
        if context is None:
            raise RuntimeError(f"llama.cpp opens no context for {sequences} sequences of {length} tokens")
        return context

    def prefill(self, prompt: Ids) -> Logits:
        self._position = len(prompt)
        return self._whole(self._context, prompt[None], every=False)[0]

    def decode(self, token: int) -> Logits:
        one = self._one
        one.n_tokens = 1
        one.token[0], one.pos[0], one.n_seq_id[0], one.seq_id[0][0], one.logits[0] = token, self._position, 1, 0, 1
        self._position += 1
        return self._run(self._context, one, 1)[0]

    def logits(self, ids: Ids) -> Logits:
        if self._wide is None or self._wide[0] != ids.shape:
            self.release()
            self._wide = ids.shape, self._new_context(ids.shape[1], ids.shape[0], ids.size)
        return self._whole(self._wide[1], ids, every=True).reshape(*ids.shape, self._vocabulary)

    def _whole(self, context: llama_cpp.llama_context_p, ids: Ids, every: bool) -> Logits:
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

    def _run(self, context: llama_cpp.llama_context_p, batch: llama_cpp.llama_batch, outputs: int) -> Logits:
        if code := llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode answers {code}")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (outputs, self._vocabulary))  # its own buffer

    def release(self) -> None:
        """Frees the context of the last batch."""
        if self._wide is not None:
            llama_cpp.llama_free(self._wide[1])
            self._wide = None

    def describe(self) -> str:
        """Version, and what it was compiled for."""
        switches = llama_cpp.llama_print_system_info().decode().replace(" = 1", "")
        return f"llama-cpp-python {llama_cpp.__version__} ({' '.join(switches.replace('|', ' ').split())})"
