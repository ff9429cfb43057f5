"""An exported ONNX decoder as an engine: onnxruntime and numpy only.

The graph takes keys and values of the past that lie in buffers longer than what is used of them, and writes those of new tokens
behind, in place, where `past_key_values.N` and `present.N` are bound to the same memory (see `conversions.onnx`). So what
is bound once stays bound: a step changes the numbers in its inputs, and the length of the mask.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.errors import Problem, UserError
from lightgpt2.runtime.engines import PREFILL, Floats, Ints, physical_cores, positions
from lightgpt2.runtime.ort import open_session, runtime

_PAST = "past_key_values."
_KEEP = "num_logits_to_keep"


class OnnxEngine:
    """Runs an ONNX decoder with a cache that is allocated once for a batch. See `Engine`.

    Args:
        model: The `.onnx` file.
        context: How many positions the model has.
        threads: Threads that compute; default: the physical cores that this process may use.
        name: The model's name in errors, which are `UserError`s.
        profile: Prefix of the files of its profiles; None: no profile.
    """

    def __init__(
        self, model: Path, context: int, threads: int | None = None, name: str = "MODEL", profile: str | None = None
    ) -> None:
        threads = threads or physical_cores()
        try:
            self._session = open_session(model, threads, profile)
        except Exception as error:  # ONNX Runtime has a class for each error code, and no common base
            raise UserError(f"{name}: {model} could not be loaded ({_line(error)}); export it again") from error
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        outputs = {each.name: each for each in self._session.get_outputs()}
        pasts = {key: key.replace(_PAST, "present.") for key in self._inputs if key.startswith(_PAST)}
        if not pasts or not {"logits", *pasts.values()} <= outputs.keys():
            raise UserError(f"{name}: {model} must be a decoder with a cache (past_key_values.N, logits)")
        kept = self._session.get_modelmeta().custom_metadata_map.get(PREFILL)
        # What reads many tokens at once.
        self._reader = self._session
        if kept is not None:
            from lightgpt2.runtime.prefill import prefill_session  # and onnx: only what was exported so pays for it

            try:
                self._reader = prefill_session(model, json.loads(kept), threads, profile and f"{profile}-prefill")
            except OSError as error:
                what = f"the weights that read prompts could not be written to a temporary file ({_line(error)})"
                raise UserError([Problem(name, what, "make room, or set TMPDIR to a folder that has some")]) from error
        # name of the past, name of the present, heads, width of a head
        self._layers = [(past, now, *self._inputs[past].shape[1::2]) for past, now in pasts.items()]
        self._keeps = _KEEP in {each.name for each in self._session.get_overridable_initializers()}
        self.vocabulary, self.context = int(outputs["logits"].shape[2]), context
        self._caches: dict[str, NDArray[np.float32]] = {}
        self._wide: NDArray[np.float32] | None = None

    @property
    def sessions(self) -> list[runtime.InferenceSession]:
        """What computes: one session; or one that decodes and one that reads prompts."""
        return [*dict.fromkeys((self._session, self._reader))]

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        """See `Engine`."""
        batch, length = ids.shape
        for past, _, heads, width in self._layers:  # the batch before may have left room of the right size
            shape = (batch, heads, length + new_tokens, width)
            if past not in self._caches or self._caches[past].shape != shape:
                self._caches[past] = np.zeros(shape, np.float32)
        self._mask = np.pad(mask, ((0, 0), (0, new_tokens)), constant_values=1)
        self._flat_mask = np.empty(self._mask.size, np.int64)
        self._length = length
        places = positions(mask)
        last = 1 if self._keeps else length
        logits = np.empty((batch, last, self.vocabulary), np.float32)
        self._run(self._bound(self._reader, ids, places, logits))
        # From here on, one token at a time, everything but the mask stays where it is.
        self._tokens, self._places = np.empty((batch, 1), np.int64), places[:, -1:].copy()
        self._logits = logits if last == 1 else np.empty((batch, 1, self.vocabulary), np.float32)
        self._steps = self._bound(self._session, self._tokens, self._places, self._logits)
        return logits[:, -1]

    def decode(self, tokens: Ints) -> Floats:
        """See `Engine`."""
        self._length += 1
        self._tokens[:, 0] = tokens
        self._places += 1
        self._run(self._steps)
        return self._logits[:, -1]

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        """See `Engine`."""
        shape = (*ids.shape, self.vocabulary)
        if self._wide is None or self._wide.shape != shape:  # new memory for each call would cost a tenth of its time
            self._wide = np.empty(shape, np.float32)
        bound = _Bound(self._reader)
        feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
        feeds |= {past: np.empty((len(ids), heads, 0, width), np.float32) for past, _, heads, width in self._layers}
        for key in self._inputs:
            bound.bind(key, feeds[key])
        bound.bind("logits", self._wide, output=True)
        bound.run()
        return self._wide

    def _bound(self, session: runtime.InferenceSession, ids: Ints, places: Ints, logits: Floats) -> "_Bound":
        """A session with the cache, tokens to read and room for their logits; with everything but the mask."""
        bound = _Bound(session)
        for past, now, *_ in self._layers:
            bound.bind(past, self._caches[past])
            bound.bind(now, self._caches[past], output=True)
        if self._keeps:
            bound.bind(_KEEP, np.array(1, np.int64))
        bound.bind("input_ids", ids)
        if "position_ids" in self._inputs:
            bound.bind("position_ids", places)
        bound.bind("logits", logits, output=True)
        return bound

    def _run(self, bound: "_Bound") -> None:
        batch, length = len(self._mask), self._length
        mask = self._flat_mask[: batch * length].reshape(batch, length)  # rows lie one behind the other
        mask[:] = self._mask[:, :length]
        bound.bind("attention_mask", mask)
        bound.run()


class _Bound:
    """A session and the memory that it reads and writes, which lives as long as this does."""

    def __init__(self, session: runtime.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        self._memory: dict[str, NDArray[Any]] = {}

    def bind(self, name: str, array: NDArray[Any], output: bool = False) -> None:
        """Bind memory to an input or an output; what is contiguous already is bound where it is."""
        bind = self._binding.bind_output if output else self._binding.bind_input
        array = np.require(array, requirements="C")
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._memory[name] = array

    def run(self) -> None:
        """Read the inputs, write the outputs."""
        self._session.run_with_iobinding(self._binding)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
