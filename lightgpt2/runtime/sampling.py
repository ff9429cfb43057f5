"""The choice of the next token from its logits, in numpy.

In the order of transformers: repetition penalty (Keskar et al. 2019, arXiv:1909.05858, section 4.1), no n-gram twice,
temperature, top-k, top-p (nucleus: Holtzman et al. 2020, arXiv:1904.09751), and what only a folder asks for: min-p, typical
sampling (Meister et al. 2022, arXiv:2202.00666), epsilon and eta sampling (Hewitt et al. 2022, arXiv:2210.15191).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightgpt2.errors import Problem, UserError
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


def check_finite(logits: Floats) -> None:
    """Raise a `UserError` if logits `[B, V]` are not finite."""
    if not np.isfinite(logits.max(axis=1)).all():  # the largest of numbers with a NaN is NaN
        what = "the model's logits are not finite: its weights are damaged, or overflow"
        raise UserError([Problem("model", what, "fetch the model or make it again")])


def process(logits: Floats, history: Ints, prompt: int, new_tokens: int, settings: Settings) -> None:
    """Change, in place, the logits `[V]` of the token behind `history`, of which the first `prompt` tokens were given."""
    for each in settings.first:
        each(logits, history, prompt, new_tokens)
    if settings.repetition_penalty != 1:
        penalize(logits, history, settings.repetition_penalty)
    if settings.no_repeat_ngram:
        forbid_ngrams(logits, history, settings.no_repeat_ngram)
    for each in settings.later:
        each(logits, history, prompt, new_tokens)


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


def narrowed(ids: Ints, weights: Floats, settings: Settings) -> tuple[Ints, Floats]:
    """The tokens and probabilities that a folder's further settings leave."""
    for name, kept in _KEPT:
        if (value := getattr(settings, name)) != getattr(Settings, name):
            chosen = kept(weights, value)
            chosen[weights.argmax()] |= not chosen.any()  # one is always left
            ids, weights = ids[chosen], weights[chosen] / weights[chosen].sum()
    return ids, weights


def _entropy(weights: Floats) -> float:
    present = weights[weights > 0]
    return -float((present * np.log(present)).sum())


def _typical(weights: Floats, share: float) -> NDArray[np.bool_]:
    """The tokens whose surprise is nearest to the entropy, up to the one with which they have this share."""
    with np.errstate(divide="ignore"):
        order = np.argsort(np.abs(-np.log(weights) - _entropy(weights)), kind="stable")
    chosen = np.zeros(len(weights), bool)
    chosen[order[: np.searchsorted(np.cumsum(weights[order]), share) + 1]] = True
    return chosen


# By the names of settings, in order: which of the probabilities `[K]` stay.
_KEPT: list[tuple[str, Callable[[Floats, float], NDArray[np.bool_]]]] = [
    ("min_p", lambda weights, share: weights >= share * weights.max()),
    ("typical_p", _typical),
    ("epsilon_cutoff", lambda weights, least: weights >= least),
    ("eta_cutoff", lambda weights, eta: weights >= min(eta, eta**0.5 * np.exp(-_entropy(weights)))),
]


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
        self._prompts, self._new_tokens = [len(prompt) for prompt in prompts], new_tokens
        self._lengths = [*self._prompts]
        self._history = np.zeros((len(prompts), max(self._lengths) + new_tokens), np.int64)
        for row, prompt in zip(self._history, prompts, strict=True):
            row[: len(prompt)] = prompt

    def __call__(self, logits: Floats, rows: Sequence[int] | None = None) -> Ints:
        """The next tokens `[N]` of these sequences, by default of all, from logits `[N, V]`, which are changed in place."""
        settings, rows = self.settings, range(len(self._prompts)) if rows is None else rows
        check_finite(logits)
        for row, values in zip(rows, logits, strict=True):
            process(values, self._history[row, : self._lengths[row]], self._prompts[row], self._new_tokens, settings)
        if settings.temperature == 0:
            tokens = logits.argmax(axis=1)
        else:
            pairs = zip(logits, (self._generators[row] for row in rows), strict=True)
            tokens = np.array([self._sample(*pair) for pair in pairs])
        for row, token in zip(rows, tokens, strict=True):
            self._history[row, self._lengths[row]] = token
            self._lengths[row] += 1
        return tokens

    def _sample(self, logits: Floats, generator: np.random.Generator) -> int:
        ids, weights = distribution(logits, self.settings.temperature, self.settings.top_k, self.settings.top_p)
        ids, weights = narrowed(ids, weights, self.settings)
        sums = np.cumsum(weights)
        place = np.searchsorted(sums, generator.random() * sums[-1], side="right")  # never at a weight of 0
        return int(ids[min(place, len(ids) - 1)])
