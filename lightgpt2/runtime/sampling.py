"""The choice of the next token from its logits, in numpy.

In the order of transformers: repetition penalty (Keskar et al. 2019, arXiv:1909.05858, section 4.1), no n-gram twice,
temperature, top-k, top-p (nucleus: Holtzman et al. 2020, arXiv:1904.09751).
"""

from collections.abc import Sequence

import numpy as np

from lightgpt2.runtime.engines import Floats, Ints
from lightgpt2.runtime.options import Settings


def penalize(logits: Floats, history: Ints, penalty: float) -> None:
    """Lower, in place, the logits `[V]` of tokens that were there before, for a penalty above 1."""
    seen = logits[history]  # a token that is there twice is written twice, with the same value
    logits[history] = np.where(seen < 0, seen * penalty, seen / penalty)


def forbid_ngrams(logits: Floats, history: Ints, length: int) -> None:
    """Rule out, in place, the tokens that would complete a sequence of this length that was there before."""
    if len(history) < length:
        return
    windows = np.lib.stride_tricks.sliding_window_view(history, length)
    begun = history[len(history) - length + 1 :]
    logits[windows[(windows[:, :-1] == begun).all(axis=1), -1]] = -np.inf


def distribution(logits: Floats, temperature: float, top_k: int = 0, top_p: float = 1.0) -> tuple[Ints, Floats]:
    """The tokens that may be sampled, of logits `[V]`: their ids `[K]`, and probabilities `[K]` that sum to 1.

    Of `top_k`, tokens as likely as the last of them are kept too. `temperature` is above 0.
    """
    ids = np.arange(len(logits))
    if 0 < top_k < len(logits):
        place = len(logits) - top_k
        ids = np.flatnonzero(logits >= np.partition(logits, place)[place])
        logits = logits[ids]
    # The largest is subtracted first: a tiny temperature would make infinities of what it divides.
    weights = np.exp((logits - logits.max()) / temperature).astype(np.float64)
    weights /= weights.sum()
    if top_p < 1:
        nucleus = _nucleus(weights, 1 - top_p)
        ids, weights = ids[nucleus], weights[nucleus]
        weights /= weights.sum()
    return ids, weights


def _nucleus(weights: Floats, tail: float) -> Ints:
    """Places of the fewest largest weights that leave at most `tail` to the others."""
    # Those up to a V-th of the tail have no more than the tail together: most of a vocabulary need not be sorted.
    candidates = np.flatnonzero(weights > tail / len(weights))
    order = candidates[np.argsort(weights[candidates])]
    below = weights.sum() - weights[candidates].sum() + np.cumsum(weights[order])
    below[-1:] = np.inf  # one is always left
    return order[below > tail]


class Sampler:
    """Chooses the next token of each sequence of a batch, each with its own random generator.

    So what is sampled depends on the seed and the sequence's index, and not on what else is in the batch.
    """

    def __init__(
        self, settings: Settings, prompts: Sequence[Sequence[int]], indices: Sequence[int], new_tokens: int
    ) -> None:
        self.settings = settings
        self._generators = [np.random.default_rng([settings.seed, index]) for index in indices]
        self._lengths = [len(prompt) for prompt in prompts]
        self._history = np.zeros((len(prompts), max(self._lengths) + new_tokens), np.int64)
        for row, prompt in zip(self._history, prompts, strict=True):
            row[: len(prompt)] = prompt

    def __call__(self, logits: Floats) -> Ints:
        """The next tokens `[B]`, from logits `[B, V]`, which are changed in place."""
        settings = self.settings
        for row, history, length in zip(logits, self._history, self._lengths, strict=True):
            if settings.repetition_penalty != 1:
                penalize(row, history[:length], settings.repetition_penalty)
            if settings.no_repeat_ngram:
                forbid_ngrams(row, history[:length], settings.no_repeat_ngram)
        if settings.temperature == 0:
            tokens = logits.argmax(axis=1)
        else:
            tokens = np.array([self._sample(*pair) for pair in zip(logits, self._generators, strict=True)])
        self._history[range(len(tokens)), self._lengths] = tokens
        self._lengths = [length + 1 for length in self._lengths]
        return tokens

    def _sample(self, logits: Floats, generator: np.random.Generator) -> int:
        ids, weights = distribution(logits, self.settings.temperature, self.settings.top_k, self.settings.top_p)
        sums = np.cumsum(weights)
        place = np.searchsorted(sums, generator.random() * sums[-1], side="right")  # never at a weight of 0
        return int(ids[min(place, len(ids) - 1)])
