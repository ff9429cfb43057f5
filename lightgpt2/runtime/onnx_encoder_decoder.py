"""An exported ONNX encoder-decoder as an engine: onnxruntime and numpy only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.errors import UserError
from lightgpt2.runtime.engines import CONTEXT, DECODER, DECODER_WITH_PAST, ENCODER, Floats, Ints, physical_cores
from lightgpt2.runtime.ort import load_session, runtime

_PAST, _PRESENT, _SOURCE = "past_key_values.", "present.", ".encoder."


class OnnxEncoderDecoder:
    """Runs the three graphs of an ONNX encoder-decoder. See `engines.EncoderDecoder`.

    Keys and values of the source are computed once and stay where they are; those of the target move with their sequence.

    Args:
        folder: The exported folder.
        threads: Threads that compute; default: the physical cores that this process may use.
        name: The model's name in errors, which are `UserError`s.
        profile: Prefix of the files of its profiles; None: no profile.
    """

    def __init__(
        self, folder: Path, threads: int | None = None, name: str = "MODEL", profile: str | None = None
    ) -> None:
        self._encoder, self._first, self._next = self.sessions = [
            load_session(folder / file, threads or physical_cores(), name, profile and f"{profile}-{file}")
            for file in (ENCODER, DECODER, DECODER_WITH_PAST)
        ]
        first, self._outputs = ([each.name for each in session.get_outputs()] for session in self.sessions[1:])
        self._inputs = {each.name: each.shape for each in self._next.get_inputs() if each.name.startswith(_PAST)}
        if missing := [each for each in self._inputs if each.replace(_PAST, _PRESENT) not in first]:
            raise UserError(
                f"{name}: {folder / DECODER} does not give {missing[0]} of {DECODER_WITH_PAST}; export it again"
            )
        self.vocabulary = int(self._first.get_outputs()[0].shape[2])
        context = self._encoder.get_modelmeta().custom_metadata_map.get(CONTEXT)
        self.context = None if context is None else int(context)

    def prefill(self, ids: Ints, mask: Ints, start: Ints) -> Floats:
        states = self.read(ids, mask)
        names = ["logits", *(name.replace(_PAST, _PRESENT) for name in self._inputs)]
        logits, *cache = self._first.run(names, self._feeds(start, mask, states))
        self._mask, self._cache, self._rows = mask, dict(zip(self._inputs, cache, strict=True)), len(ids)
        found: Floats = logits[:, -1]
        return found

    def decode(self, tokens: Ints, rows: Ints | None = None) -> Floats:
        binding = self._next.io_binding()
        cache, self._rows = self._gone_on(rows), len(tokens)
        given = {"input_ids": tokens[:, None], "encoder_attention_mask": self._mask}
        for name, array in (given | cache).items():
            binding.bind_ortvalue_input(name, _shared(array))
        made = {"logits": np.empty((len(tokens), 1, self.vocabulary), np.float32)}
        for name, array in self._cache.items():
            if _SOURCE not in name:
                _, heads, length, size = array.shape
                made[name.replace(_PAST, _PRESENT)] = np.empty((len(tokens), heads, length + 1, size), np.float32)
        for name, array in made.items():
            binding.bind_ortvalue_output(name, _shared(array))
        self._next.run_with_iobinding(binding)
        self._cache |= {name.replace(_PRESENT, _PAST): each for name, each in made.items() if name != "logits"}
        return made["logits"][:, -1]

    def logits(self, ids: Ints, mask: Ints, targets: Ints) -> Floats:
        found: Floats
        (found,) = self._first.run(["logits"], self._feeds(targets, mask, self.read(ids, mask)))
        return found

    def read(self, ids: Ints, mask: Ints) -> Floats:
        """The encoder's hidden states `[B, S, D]` of sources `[B, S]`."""
        found: Floats
        (found,) = self._encoder.run(None, {"input_ids": ids, "attention_mask": mask})
        return found

    def _feeds(self, targets: Ints, mask: Ints, states: Floats) -> Mapping[str, Any]:
        return {"input_ids": targets, "encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _gone_on(self, rows: Ints | None) -> dict[str, NDArray[np.float32]]:
        """The cache with the target's keys and values of these rows, and those of the sources that they belong to."""
        if rows is None or np.array_equal(rows, np.arange(self._rows)):
            return self._cache
        sources = np.unique(rows // (self._rows // len(self._mask)))
        if len(sources) < len(self._mask):
            self._mask = self._mask[sources]
            self._cache |= {name: array[sources] for name, array in self._cache.items() if _SOURCE in name}
        self._cache |= {name: array[rows] for name, array in self._cache.items() if _SOURCE not in name}
        return self._cache


def _shared(array: NDArray[Any]) -> runtime.OrtValue:
    """An array for a binding, which reads or writes it where it lies and keeps it alive; a copy if it is not contiguous."""
    return runtime.OrtValue.ortvalue_from_numpy(np.require(array, requirements="C"))
