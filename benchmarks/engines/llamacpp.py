"""llama.cpp through the C functions of llama-cpp-python: its Python class copies and converts the logits of every token."""

import ctypes

import llama_cpp
import numpy as np

from benchmarks.engines.base import Engine, Ids, Logits

_UBATCH = 512  # llama.cpp's own


class LlamaCppEngine(Engine):
    """A GGUF file."""

    def prepare(self) -> None:
        """What computes, and silence."""
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()

    def load(self, capacity: int) -> None:
        """Maps the file and makes a context for one sequence."""
        (path,) = self.folder.glob("*.gguf")
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise RuntimeError(f"llama.cpp can't load {path.name}")
        self._model = model
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._context = self._new_context(capacity, 1, 1)
        self._one = llama_cpp.llama_batch_init(1, 0, 1)
        self._wide: tuple[tuple[int, int], llama_cpp.llama_context_p] | None = None

    def _new_context(self, length: int, sequences: int, outputs: int) -> llama_cpp.llama_context_p:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = length * sequences
        settings.n_batch = length * sequences
        settings.n_ubatch = min(_UBATCH, length * sequences)
        settings.n_seq_max = sequences
        settings.n_outputs_max = outputs
        settings.n_threads = settings.n_threads_batch = self.threads
        context = llama_cpp.llama_init_from_model(self._model, settings)
        if context is None:
            raise RuntimeError(f"llama.cpp makes no context for {sequences} sequences of {length} tokens")
        return context

    def start(self, prompt: Ids) -> int:
        """An empty cache and one pass over the prompt."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        batch = llama_cpp.llama_batch_init(len(prompt), 0, 1)
        _fill(batch, prompt[None], every=False)
        self._position = len(prompt)
        chosen = self._best(batch)
        llama_cpp.llama_batch_free(batch)
        return chosen

    def step(self, token: int) -> int:
        """One pass over one token."""
        one = self._one
        one.n_tokens = 1
        one.token[0], one.pos[0], one.n_seq_id[0], one.seq_id[0][0], one.logits[0] = token, self._position, 1, 0, 1
        self._position += 1
        return self._best(one)

    def _best(self, batch: llama_cpp.llama_batch) -> int:
        _decode(self._context, batch)
        return int(np.argmax(self._logits(self._context, 1)))

    def _logits(self, context: llama_cpp.llama_context_p, rows: int) -> Logits:
        """A view of the context's own buffer."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (rows, self._vocabulary))

    def forward(self, ids: Ids) -> Logits:
        """Each row a sequence of its own."""
        batch_size, length = ids.shape
        if self._wide is None or self._wide[0] != ids.shape:
            self.release()
            self._wide = (batch_size, length), self._new_context(length, batch_size, ids.size)
        context = self._wide[1]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        batch = llama_cpp.llama_batch_init(ids.size, 0, 1)
        _fill(batch, ids, every=True)
        _decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        return self._logits(context, ids.size).reshape(batch_size, length, self._vocabulary)

    def release(self) -> None:
        """Frees the context of the last batch."""
        if self._wide is not None:
            llama_cpp.llama_free(self._wide[1])
            self._wide = None

    def describe(self) -> str:
        """Version, and what it was compiled for."""
        switches = llama_cpp.llama_print_system_info().decode().replace(" = 1", "")
        return f"llama-cpp-python {llama_cpp.__version__} ({' '.join(switches.replace('|', ' ').split())})"


def _fill(batch: llama_cpp.llama_batch, ids: Ids, every: bool) -> None:
    """Writes the tokens of a batch `[B, T]`; logits of every position or of each last one."""
    rows, length = ids.shape
    count = rows * length
    batch.n_tokens = count
    np.ctypeslib.as_array(batch.token, (count,))[:] = ids.ravel()
    np.ctypeslib.as_array(batch.pos, (count,))[:] = np.tile(np.arange(length), rows)
    np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
    np.ctypeslib.as_array(batch.logits, (count,))[:] = 1 if every else np.arange(1, count + 1) % length == 0
    for position in range(count):
        batch.seq_id[position][0] = position // length


def _decode(context: llama_cpp.llama_context_p, batch: llama_cpp.llama_batch) -> None:
    if code := llama_cpp.llama_decode(context, batch):
        raise RuntimeError(f"llama_decode answers {code}")
