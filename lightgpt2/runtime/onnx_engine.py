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
from lightgpt2.runtime.ort import line_of, load_session, runtime

_PAST = "past_key_values."
_ROOM = 256  # the least positions of a cache that grows


class OnnxEngine:
    """Runs an ONNX decoder with a cache that is allocated once for a batch. See `Engine`.

    Args:
        model: The `.onnx` file.
        context: How many positions the model has.
        threads: Threads that compute; default: the physical cores that this process may use.
        name: The model's name in errors, which are `UserError`s.
        profile: Prefix of the files of its profiles; None: no profile.
        session: The file, if it is loaded already.
    """

    def __init__(
        self,
        model: Path,
        context: int,
        threads: int | None = None,
        name: str = "MODEL",
        profile: str | None = None,
        session: runtime.InferenceSession | None = None,
    ) -> None:
        threads = threads or physical_cores()
        self._session = session or load_session(model, threads, name, profile)
        shapes = {each.name: each.shape for each in self._session.get_inputs()}
        outputs = {each.name: each.shape for each in self._session.get_outputs()}
        # name of the past, name of the present, heads, width of a head
        pasts = [(key, key.replace(_PAST, "present."), *shapes[key][1::2]) for key in shapes if key.startswith(_PAST)]
        if not pasts or not {"logits", *(now for _, now, _, _ in pasts)} <= outputs.keys():
            raise UserError(f"{name}: {model} must be a decoder with a cache (past_key_values.N, logits)")
        self._reader = self._session  # what reads many tokens at once
        kept = self._session.get_modelmeta().custom_metadata_map.get(PREFILL)
        if kept is not None:
            from lightgpt2.runtime.prefill import prefill_session  # and onnx: only what was exported so pays for it

            try:
                self._reader = prefill_session(model, json.loads(kept), threads, profile and f"{profile}-prefill")
            except OSError as error:
                what = f"the weights that read prompts could not be written to a temporary file ({line_of(error)})"
                raise UserError([Problem(name, what, "make room, or set TMPDIR to a folder that has some")]) from error
        self._layers = pasts
        self.vocabulary, self.context = int(outputs["logits"][2]), context
        self._caches: dict[str, NDArray[np.float32]] = {}
        self._sequence: dict[str, NDArray[np.float32]] = {}  # the cache of `resume`
        self._wide = np.empty((0, 0, self.vocabulary), np.float32)

    @property
    def sessions(self) -> list[runtime.InferenceSession]:
        """What computes: one session; or one that decodes and one that reads prompts."""
        return [*dict.fromkeys((self._session, self._reader))]

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        batch, self._length = ids.shape
        for past, _, heads, width in self._layers:  # the batch before may have left room of the right size
            shape = (batch, heads, self._length + new_tokens, width)
            if past not in self._caches or self._caches[past].shape != shape:
                self._caches[past] = np.zeros(shape, np.float32)
        self._mask = np.pad(mask, ((0, 0), (0, new_tokens)), constant_values=1)
        self._flat_mask = np.empty(self._mask.size, np.int64)
        self._logits = np.empty((batch, 1, self.vocabulary), np.float32)
        places = positions(mask)
        self._run(self._reader, self._bound(self._reader, self._caches, self._logits, ids, places))
        # From here on, one token at a time, everything but the mask stays where it is.
        self._tokens, self._places = np.empty((batch, 1), np.int64), places[:, -1:].copy()
        self._steps = self._bound(self._session, self._caches, self._logits, self._tokens, self._places)
        return self._logits[:, -1]

    def decode(self, tokens: Ints) -> Floats:
        self._length += 1
        self._tokens[:, 0] = tokens
        self._places += 1
        self._run(self._session, self._steps)
        return self._logits[:, -1]

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        shape = (*ids.shape, self.vocabulary)
        if self._wide.shape != shape:  # new memory for each call would cost a tenth of its time
            self._wide = np.empty(shape, np.float32)
        feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)}
        feeds |= {past: np.empty((len(ids), heads, 0, width), np.float32) for past, _, heads, width in self._layers}
        binding = self._reader.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, _shared(array))
        binding.bind_ortvalue_output("logits", _shared(self._wide))
        self._reader.run_with_iobinding(binding)
        return self._wide

    def resume(self, ids: Ints, kept: int) -> Floats:
        length = kept + len(ids)
        self._make_room(length, kept)
        if len(ids) == 1:
            session, binding = self._session, self._step
            self._one[0], self._one[1] = ids, kept
        else:
            session, places = self._reader, np.arange(kept, length)[None]
            binding = self._bound(session, self._sequence, self._next, ids[None], places)
        binding.bind_cpu_input("attention_mask", np.ones((1, length), np.int64))
        session.run_with_iobinding(binding)
        return self._next[0, -1]

    def _make_room(self, length: int, kept: int) -> None:
        """Enlarge the cache of `resume` to the next power of two; its first `kept` positions stay."""
        room = max(_ROOM, 1 << (length - 1).bit_length())
        if self._sequence and next(iter(self._sequence.values())).shape[2] >= room:
            return
        old, self._sequence = self._sequence, {}
        for past, _, heads, width in self._layers:
            self._sequence[past] = np.zeros((1, heads, room, width), np.float32)
            if kept:
                self._sequence[past][:, :, :kept] = old[past][:, :, :kept]
        self._one = np.empty((2, 1, 1), np.int64)  # a token, and its position
        self._next = np.empty((1, 1, self.vocabulary), np.float32)
        self._step = self._bound(self._session, self._sequence, self._next, self._one[0], self._one[1])

    def _bound(
        self,
        session: runtime.InferenceSession,
        caches: dict[str, NDArray[np.float32]],
        logits: NDArray[np.float32],
        ids: Ints,
        places: Ints,
    ) -> Any:
        """A binding of a cache, tokens to read and room for the last one's logits: of everything but the mask."""
        binding = session.io_binding()
        for past, now, *_ in self._layers:
            cache = _shared(caches[past])
            binding.bind_ortvalue_input(past, cache)
            binding.bind_ortvalue_output(now, cache)
        for name, array in {"num_logits_to_keep": np.array(1), "input_ids": ids, "position_ids": places}.items():
            binding.bind_ortvalue_input(name, _shared(array))
        binding.bind_ortvalue_output("logits", _shared(logits))
        return binding

    def _run(self, session: runtime.InferenceSession, binding: Any) -> None:
        batch, length = len(self._mask), self._length
        mask = self._flat_mask[: batch * length].reshape(batch, length)  # rows lie one behind the other
        mask[:] = self._mask[:, :length]
        binding.bind_cpu_input("attention_mask", mask)
        session.run_with_iobinding(binding)


def _shared(array: NDArray[Any]) -> runtime.OrtValue:
    """An array for a binding, which reads or writes it where it lies and keeps it alive; a copy if it is not contiguous."""
    return runtime.OrtValue.ortvalue_from_numpy(np.require(array, requirements="C"))
