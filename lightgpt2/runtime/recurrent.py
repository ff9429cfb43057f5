"""A decoder that carries states in the place of keys and values, as an engine; and what runs one: PyTorch or ONNX Runtime."""

from typing import Any, Protocol

import numpy as np

from lightgpt2.runtime.engines import Floats, Ints

State = Any  # behind the last token of each sequence; what runs the model knows its form
_STRIDE = 32  # positions whose state is kept in a long text, and how many are read at once


class Steps(Protocol):
    """A model that reads on from a state.

    Attributes:
        vocabulary: V, the number of logits.
        sessions: What computes, if it is ONNX Runtime.
    """

    vocabulary: int
    sessions: list[Any]

    def run(self, ids: Ints, mask: Ints | None, state: State | None, whole: bool) -> tuple[Floats, State]:
        """Read tokens `[B, T]` behind a state (None: at the beginning), with 0 at pads on the left in `mask`.

        Returns the logits `[B, T, V]` if `whole`, else of the last tokens `[B, 1, V]`; and the state behind them.
        """


class RecurrentEngine:
    """Runs a model that carries states. See `Engine`.

    Args:
        steps: What runs it.
        context: How many tokens a text may have.
    """

    def __init__(self, steps: Steps, context: int) -> None:
        self.steps, self.vocabulary, self.context = steps, steps.vocabulary, context
        self._state: State = None
        self._read = np.empty(0, np.int64)  # by `resume`
        self._states: dict[int, State] = {}  # by the number of tokens before, ascending

    @property
    def sessions(self) -> list[Any]:
        """As for `OnnxEngine`."""
        return self.steps.sessions

    def prefill(self, ids: Ints, mask: Ints, new_tokens: int) -> Floats:
        logits, self._state = self.steps.run(ids, None if mask.all() else mask, None, False)
        return logits[:, -1]

    def decode(self, tokens: Ints) -> Floats:
        logits, self._state = self.steps.run(tokens[:, None], None, self._state, False)
        return logits[:, -1]

    def logits(self, ids: Ints, mask: Ints) -> Floats:
        return self.steps.run(ids, None if mask.all() else mask, None, True)[0]

    def resume(self, ids: Ints, kept: int) -> Floats:
        """See `Engine`: begins at the last state that is there, at most `_STRIDE` - 1 tokens before `kept`."""
        if kept > len(self._read):
            raise ValueError(f"{kept} tokens are to be kept, and {len(self._read)} were read")
        self._read = np.concatenate([self._read[:kept], ids])
        self._states = {place: state for place, state in self._states.items() if place <= kept}
        place, end = max(self._states, default=0), len(self._read)
        while place < end:
            following = min(end, place - place % _STRIDE + _STRIDE)
            state = self._states.get(place)
            logits, self._states[following] = self.steps.run(self._read[None, place:following], None, state, False)
            place = following
        # Edits are at the end: there every state is kept that was reached.
        self._states = {p: state for p, state in self._states.items() if p % _STRIDE == 0 or p > end - 2 * _STRIDE}
        return logits[0, -1]
