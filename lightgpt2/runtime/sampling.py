"""The choice of the next token from its logits, in numpy.

In the order of transformers: repetition penalty (Keskar et al. 2019, arXiv:1909.05858, section 4.1), no n-gram twice,
temperature, top-k, top-p (nucleus: Holtzman et al. 2020, arXiv:1904.09751).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightgpt2.errors import Problem, UserError
from lightgpt2.runtime.engines import Floats, Ints


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_k: Sample from the k most likely tokens (0: no limit).
        top_p: Sample from the fewest most likely tokens that have this share of the probability (1: no limit).
        repetition_penalty: Divisor of positive logits, and factor of negative ones, of tokens that were there before, in the
            prompt too (1: none).
        no_repeat_ngram: Length of the sequences of tokens that may not come twice, the prompt included (0: no limit).
        seed: Seed of the sampling, with a sequence's index.

    Raises:
        UserError: One line for each value that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "temperature": ("at least 0 (0: the most likely token)", 0 <= self.temperature < float("inf")),
            "top_k": ("at least 0 (0: no limit)", self.top_k >= 0),
            "top_p": ("above 0 and at most 1", 0 < self.top_p <= 1),
            "repetition_penalty": ("above 0 (1: none)", 0 < self.repetition_penalty < float("inf")),
            "no_repeat_ngram": ("at least 0 (0: no limit)", self.no_repeat_ngram >= 0),
            "seed": ("at least 0", self.seed >= 0),
        }
        wrong = {
            name: f"must be {words}, got {getattr(self, name)}" for name, (words, fits) in allowed.items() if not fits
        }
        if wrong:
            raise UserError(Problem(name, what) for name, what in wrong.items())


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
        self, settings: Sampling, prompts: Sequence[Sequence[int]], indices: Sequence[int], new_tokens: int
    ) -> None:
        self.settings = settings
        self._generators = [np.random.default_rng([settings.seed, index]) for index in indices]
        self._remembers = settings.repetition_penalty != 1 or settings.no_repeat_ngram > 0
        self._lengths = [len(prompt) for prompt in prompts]
        self._history = np.zeros((len(prompts), max(self._lengths) + new_tokens if self._remembers else 0), np.int64)
        if self._remembers:
            for row, prompt in zip(self._history, prompts, strict=True):
                row[: len(prompt)] = prompt

    def __call__(self, logits: Floats) -> Ints:
        """The next tokens `[B]`, from logits `[B, V]`, which are changed in place."""
        settings = self.settings
        if self._remembers:
            for row, history, length in zip(logits, self._history, self._lengths, strict=True):
                if settings.repetition_penalty != 1:
                    penalize(row, history[:length], settings.repetition_penalty)
                if settings.no_repeat_ngram:
                    forbid_ngrams(row, history[:length], settings.no_repeat_ngram)
        if settings.temperature == 0:
            tokens = logits.argmax(axis=1)
        else:
            tokens = np.array([self._sample(*pair) for pair in zip(logits, self._generators, strict=True)])
        if self._remembers:
            self._history[range(len(tokens)), self._lengths] = tokens
            self._lengths = [length + 1 for length in self._lengths]
        return tokens

    def _sample(self, logits: Floats, generator: np.random.Generator) -> int:
        ids, weights = distribution(logits, self.settings.temperature, self.settings.top_k, self.settings.top_p)
        sums = np.cumsum(weights)
        place = np.searchsorted(sums, generator.random() * sums[-1], side="right")  # never at a weight of 0
        return int(ids[min(place, len(ids) - 1)])
