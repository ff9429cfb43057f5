"""Layer choice and learning-rate factors."""

from itertools import pairwise

import pytest

from lightgpt2.functional.layers import check_layers, even_layers
from lightgpt2.functional.schedules import Decay, warmup_decay


def test_published_layer_choice() -> None:
    assert even_layers(12, 6) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize("deep", range(1, 33))
def test_even_layers_increase_and_keep_both_ends(deep: int) -> None:
    for shallow in range(2, deep + 1):
        layers = even_layers(deep, shallow)
        assert len(layers) == shallow
        assert layers == sorted(set(layers))
        assert (layers[0], layers[-1]) == (0, deep - 1)
    assert even_layers(deep, deep) == list(range(deep))


@pytest.mark.parametrize("shallow", [0, 5])
def test_impossible_choice_is_refused(shallow: int) -> None:
    with pytest.raises(ValueError, match="cannot choose"):
        even_layers(4, shallow)


@pytest.mark.parametrize("layers", [[], [4], [-1], [0, 12]])
def test_layers_out_of_range_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="has layers 0 to 3"):
        check_layers(layers, 4)


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_factor_rises_then_falls_to_the_floor(decay: Decay) -> None:
    factors = [warmup_decay(step, 100, 10, decay, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(1.0 if decay == "constant" else 0.1)
    assert max(factors) == 1


def test_a_run_of_warmup_only_never_divides_by_zero() -> None:
    assert [warmup_decay(s, 3, 3, "cosine", 0.0) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert warmup_decay(0, 1, 0, "linear", 0.0) == 1
