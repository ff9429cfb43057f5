"""Beam search in numpy, with the tokens that transformers' `generate` finds.

Several beginnings of a text, the beams, go on side by side. Each step keeps those with the largest sums of log probabilities;
those that end are put aside with their sum over a power of their length (`length_penalty`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.runtime.engines import Floats, Ints
from lightgpt2.runtime.options import Settings
from lightgpt2.runtime.sampling import check_finite, process

_NONE = np.float32(-1e9)  # the score of what there is not, as in transformers


class Beams:
    """The beams of the texts of a batch.

    Args:
        settings: The settings; `num_beams` is how many beams a text has.
        texts: B, the number of texts.
        start: The tokens that each text begins with.
        new_tokens: The most tokens that are added.

    A text for which nothing better can be found is done, and leaves the batch.

    Attributes:
        done: True once all texts are done.
    """

    def __init__(self, settings: Settings, texts: int, start: Sequence[int], new_tokens: int) -> None:
        self.settings, self.done = settings, False
        self._prompt = self._length = len(start)
        self._new_tokens, self._most = new_tokens, len(start) + new_tokens
        count = settings.num_beams
        # With one candidate for each end-of-text token beside it, as many beams as now can go on.
        self._candidates = max(2, 1 + len(settings.ends)) * count
        self._ends = np.array(sorted(settings.ends), np.int64)
        self._running = np.zeros((texts, count, self._most), np.int64)
        self._running[:, :, : self._prompt] = start
        self._scores = np.full((texts, count), _NONE)
        self._scores[:, 0] = 0  # all beams are equal: only the first may go on
        self._ended, self._lengths = self._running.copy(), np.zeros((texts, count), np.int64)
        self._ended_scores = np.full((texts, count), _NONE)
        self._is_ended = np.zeros((texts, count), bool)
        self._improvable = np.ones((texts, 1), bool)
        self._texts = np.arange(texts)  # those that are not done
        self._best: list[list[int]] = [[] for _ in range(texts)]

    def __call__(self, logits: Floats) -> tuple[Ints, Ints]:
        """The tokens that the beams go on with `[B K]`, and the rows `[B K]` of the logits that they go on from.

        B are the texts that are not done. The logits of the first step are `[B, V]`, of all others `[B K, V]`.
        """
        check_finite(logits)
        texts, count = self._scores.shape
        each = len(logits) // texts  # rows of a text: 1 at first
        scores = _log_softmax(logits)
        for row, history in zip(scores, self._running[:, :each].reshape(-1, self._most), strict=True):
            process(row, history[: self._length], self._prompt, self._new_tokens, self.settings)
        by_beam = np.broadcast_to(scores.reshape(texts, each, -1), (texts, count, scores.shape[1]))
        values, places = _largest((by_beam + self._scores[:, :, None]).reshape(texts, -1), self._candidates)
        beams, tokens = np.divmod(places, scores.shape[1])
        candidates = np.take_along_axis(self._running, beams[:, :, None], axis=1)
        candidates[:, :, self._length] = tokens
        self._length += 1
        ended = np.isin(tokens, self._ends) | (self._length >= self._most)
        self._keep_ended(candidates, values, ended)
        self._scores, chosen = _largest(values + ended * _NONE, count)
        self._running = np.take_along_axis(candidates, chosen[:, :, None], axis=1)
        self._improvable &= self._may_improve()
        rows = np.take_along_axis(beams, chosen, axis=1) % each + each * np.arange(texts)[:, None]
        tokens = np.take_along_axis(tokens, chosen, axis=1)
        going = (self._improvable & ~self._is_full())[:, 0] & (not ended.all())
        if not going.all():
            self._drop(~going)
        self.done = not going.any()
        return tokens[going].flatten(), rows[going].flatten()

    def best(self) -> list[list[int]]:
        """The best text of each beginning: its new tokens, with the one that ended it."""
        return self._best

    def _drop(self, done: NDArray[np.bool_]) -> None:
        """Put the best of the texts `[B]` that are done aside, and keep the others."""
        for text, row, length in zip(self._texts[done], self._ended[done, 0], self._lengths[done, 0], strict=True):
            self._best[text] = row[self._prompt : length].tolist()
        for name in (
            "_texts",
            "_running",
            "_scores",
            "_ended",
            "_lengths",
            "_ended_scores",
            "_is_ended",
            "_improvable",
        ):
            setattr(self, name, getattr(self, name)[~done])

    def _keep_ended(self, candidates: Ints, values: Floats, ended: NDArray[np.bool_]) -> None:
        """Put the best of what has ended aside; the lesser candidates are there for beams to go on with."""
        count = self._scores.shape[1]
        just = ended & (np.arange(self._candidates) < count)
        scores = values / (self._length - self._prompt) ** self.settings.length_penalty
        for missing in (self._is_full(), ~self._improvable, ~just):
            scores = scores + missing * _NONE
        lengths = np.full(scores.shape, self._length)
        self._ended_scores, chosen = _largest(np.concatenate([self._ended_scores, scores], axis=1), count)

        def joined(old: NDArray[Any], new: NDArray[Any]) -> Any:
            places = chosen if old.ndim == 2 else chosen[:, :, None]
            return np.take_along_axis(np.concatenate([old, new], axis=1), places, axis=1)

        self._ended, self._lengths = joined(self._ended, candidates), joined(self._lengths, lengths)
        self._is_ended = joined(self._is_ended, just)

    def _is_full(self) -> NDArray[np.bool_]:
        """True for the texts `[B, 1]` that have as many ends as beams, if those will do."""
        full: NDArray[np.bool_] = np.asarray(self._is_ended.all(axis=1, keepdims=True))
        return full if self.settings.early_stopping is True else np.zeros_like(full)

    def _may_improve(self) -> NDArray[np.bool_]:
        """True for the texts `[B, 1]` whose best beam may still end better than their worst end, by a rule of thumb."""
        never = self.settings.early_stopping == "never" and self.settings.length_penalty > 0
        length = (self._most if never else self._length) - self._prompt
        best = self._scores[:, :1] / length**self.settings.length_penalty
        worst = np.where(self._is_ended, self._ended_scores.min(axis=1, keepdims=True), _NONE)
        return (best > worst).any(axis=1, keepdims=True)


def _log_softmax(logits: Floats) -> Floats:
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _largest(values: Floats, count: int) -> tuple[Floats, Ints]:
    """The largest numbers of each row `[B, K]`, the largest first, and their places; of equal ones the first."""
    places = np.sort(np.argpartition(values, -count, axis=1)[:, -count:], axis=1)
    found = np.take_along_axis(values, places, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(places, order, axis=1)
