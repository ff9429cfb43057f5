"""Figures of repetition, on sequences whose values one can count."""

import pytest

from lightgpt2.functional.diversity import distinct, repeated


@pytest.mark.parametrize(
    ("tokens", "window", "share"),
    [([], 16, 0.0), ([1, 2, 3, 4], 16, 0.0), ([1, 1, 1, 1], 16, 0.75), ([1, 2, 1, 2], 1, 0.0), ([1, 2, 1, 2], 2, 0.5),
     ([1, *range(2, 18), 1], 16, 0.0), ([1, *range(2, 17), 1], 16, 1 / 17)],
)  # fmt: skip
def test_a_token_is_repeated_when_it_is_among_those_before_it(tokens: list[int], window: int, share: float) -> None:
    assert repeated(tokens, window) == pytest.approx(share)


@pytest.mark.parametrize(
    ("sequences", "n", "share"),
    [([], 2, 1.0), ([[1]], 2, 1.0), ([[1, 2, 3]], 2, 1.0), ([[1, 2, 3], [1, 2, 4]], 2, 0.75), ([[5] * 11], 2, 0.1),
     ([[1, 2], [3, 4]], 1, 1.0)],
)  # fmt: skip
def test_distinct_counts_over_all_sequences(sequences: list[list[int]], n: int, share: float) -> None:
    assert distinct(sequences, n) == pytest.approx(share)
