"""The choice of the next token from its logits, in numpy.

In the order of transformers: repetition penalty (Keskar et al. 2019, arXiv:1909.05858, section 4.1), no n-gram twice,
temperature, top-k, top-p (nucleus: Holtzman et al. 2020, arXiv:1904.09751).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightgpt2.errors import UserError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: Divisor of the logits; 0 takes the likeliest token.
        top_k: How many of the likeliest tokens are left to choose from; 0 is all.
        top_p: Of those the fewest that have this share of the probability; 1 is all.
        repetition_penalty: Divisor of positive logits, and factor of negative ones, of tokens that were there before, in the
            prompt too; 1 is none.
        no_repeat_ngram: Length of the sequences of tokens that may not come twice, the prompt included; 0 is none.
        seed: Seed of the draws, with a sequence's index.

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
        wanted = {
            "temperature": ("of at least 0 (0: the likeliest token)", 0 <= self.temperature < float("inf")),
            "top_k": ("of at least 0 (0: all tokens)", self.top_k >= 0),
            "top_p": ("above 0 and of at most 1", 0 < self.top_p <= 1),
            "repetition_penalty": ("above 0 (1: none)", 0 < self.repetition_penalty < float("inf")),
            "no_repeat_ngram": ("of at least 0 (0: none)", self.no_repeat_ngram >= 0),
            "seed": ("of at least 0", self.seed >= 0),
        }
        problems = [
            f"{name}: {getattr(self, name)} is not allowed; give a value {words}"
            for name, (words, fits) in wanted.items()
            if not fits
        ]
        if problems:
            raise UserError(problems)


def penalize(logits: Floats, history: Ints, penalty: float) -> None:
    """Makes tokens that were there before less likely.

    Args:
        logits: `[V]`, changed in place.
        history: `[T]` tokens.
        penalty: Above 1 for less likely.
    """
    seen = logits[history]  # a token that is there twice is written twice, with the same value
    logits[history] = np.where(seen < 0, seen * penalty, seen / penalty)


def forbid_ngrams(logits: Floats, history: Ints, length: int) -> None:
    """Rules out the tokens that would complete a sequence that was there before.

    Args:
        logits: `[V]`, changed in place.
        history: `[T]` tokens.
        length: Length of the sequences.
    """
    if len(history) < length:
        return
    windows = np.lib.stride_tricks.sliding_window_view(history, length)
    begun = history[len(history) - length + 1 :]
    logits[windows[(windows[:, :-1] == begun).all(axis=1), -1]] = -np.inf


def distribution(logits: Floats, temperature: float, top_k: int = 0, top_p: float = 1.0) -> tuple[Ints, Floats]:
    """The tokens that may be drawn and their probabilities.

    Args:
        logits: `[V]`.
        temperature: Above 0.
        top_k: As in `Sampling`; tokens as likely as the last of them are kept too.
        top_p: As in `Sampling`.

    Returns:
        Ids `[K]`, and probabilities `[K]` that sum to 1.
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
    """Chooses the next token of each sequence of a batch; each has a random generator of its own.

    So a sequence's draws depend on the seed and its index, and not on what else is in the batch.

    Args:
        settings: How.
        prompts: The sequences' tokens so far.
        indices: A number for each sequence.
        room: How many tokens may be added.
    """

    def __init__(self, settings: Sampling, prompts: Sequence[Sequence[int]], indices: Sequence[int], room: int) -> None:
        self.settings = settings
        self._generators = [np.random.default_rng([settings.seed, index]) for index in indices]
        self._remembers = settings.repetition_penalty != 1 or settings.no_repeat_ngram > 0
        self._lengths = [len(prompt) for prompt in prompts]
        self._history = np.zeros((len(prompts), max(self._lengths) + room if self._remembers else 0), np.int64)
        if self._remembers:
            for row, prompt in zip(self._history, prompts, strict=True):
                row[: len(prompt)] = prompt

    def __call__(self, logits: Floats) -> Ints:
        """The next tokens.

        Args:
            logits: `[B, V]`; changed in place.

        Returns:
            `[B]`.
        """
        if self._remembers:
            for row, history, length in zip(logits, self._history, self._lengths, strict=True):
                self._hold_back(row, history[:length])
        if self.settings.temperature == 0:
            tokens = logits.argmax(axis=1)
        else:
            draws = zip(logits, self._generators, strict=True)
            tokens = np.array([self._draw(row, generator) for row, generator in draws])
        if self._remembers:
            self._history[range(len(tokens)), self._lengths] = tokens
            self._lengths = [length + 1 for length in self._lengths]
        return tokens

    def _hold_back(self, logits: Floats, history: Ints) -> None:
        if self.settings.repetition_penalty != 1:
            penalize(logits, history, self.settings.repetition_penalty)
        if self.settings.no_repeat_ngram:
            forbid_ngrams(logits, history, self.settings.no_repeat_ngram)

    def _draw(self, logits: Floats, generator: np.random.Generator) -> int:
        settings = self.settings
        ids, weights = distribution(logits, settings.temperature, settings.top_k, settings.top_p)
        sums = np.cumsum(weights)
        place = np.searchsorted(sums, generator.random() * sums[-1], side="right")  # never at a weight of 0
        return int(ids[min(place, len(ids) - 1)])
