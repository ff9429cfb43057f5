"""Measure whether generated text repeats itself: the sign of a model that has collapsed."""

from collections.abc import Sequence


def repeated(tokens: Sequence[int], window: int = 16) -> float:
    """The share of tokens that are among the `window` tokens before them (Welleck et al. 2019, arXiv:1908.04319, `rep`)."""
    again = sum(token in tokens[max(0, i - window) : i] for i, token in enumerate(tokens))
    return again / len(tokens) if tokens else 0.0


def distinct(sequences: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams as a share of all n-grams of all sequences (Li et al. 2016, arXiv:1510.03055, distinct-n).

    It falls with the amount of text: compare equal amounts. It is 1 if no sequence has n tokens.
    """
    grams = [tuple(tokens[i : i + n]) for tokens in sequences for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
