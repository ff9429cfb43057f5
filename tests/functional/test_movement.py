"""The mathematics of movement pruning against its definition in double precision."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightgpt2.functional.movement import (
    Scope,
    Units,
    opened,
    spread_blocks,
    spread_channels,
    straight_through,
    total_blocks,
    total_channels,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_of_a_score_is_the_sum_of_gradient_times_weight(seed: int) -> None:
    """Against the sum over each block, for a weight that is used as W' = M(S) W; masked blocks included."""
    weight, inputs, outputs = normal(6, 7, seed=seed), normal(5, 6, seed=seed + 100), normal(5, 7, seed=seed + 200)
    scores = normal(3, 3, seed=seed + 300).requires_grad_()
    keep = normal(3, 3, seed=seed + 400) > 0
    weight.requires_grad_()
    gated = weight * spread_blocks(straight_through(scores, keep), weight.shape, 3)
    gated.retain_grad()
    ((inputs @ gated).tanh() * outputs).sum().backward()
    for row, column in itertools.product(range(3), range(3)):
        block = slice(3 * row, 3 * row + 3), slice(3 * column, 3 * column + 3)
        kept = float(keep[row, column])
        assert torch.equal(gated[block], weight[block] * kept)
        assert torch.equal(weight.grad[block], gated.grad[block] * kept)
        expected = float((gated.grad[block] * weight.detach()[block]).sum())
        assert float(scores.grad[row, column]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("spread", "total", "units", "weights"),
    [
        (lambda gate: spread_channels(gate, (4, 4, 4)), lambda x: total_channels(x, (4, 4, 4)), (3,), (36,)),
        (lambda gate: spread_channels(gate, (6, 2)), lambda x: total_channels(x, (6, 2)), (3,), (24,)),
        (lambda gate: spread_blocks(gate, (7, 10), 4), lambda x: total_blocks(x, 4), (2, 3), (7, 10)),
        (lambda gate: spread_blocks(gate, (7, 10), 1), lambda x: total_blocks(x, 1), (7, 10), (7, 10)),
    ],
    ids=["heads in three sections", "unlike sections", "blocks", "weights"],
)
def test_a_total_is_the_transpose_of_a_spread(spread: Any, total: Any, units: Any, weights: Any) -> None:
    """<spread(g), v> = <g, total(v)> for all g and v."""
    gate, values = normal(*units), normal(*weights, seed=1)
    assert spread(gate).shape == values.shape
    assert float((spread(gate) * values).sum()) == pytest.approx(float((gate * total(values)).sum()), rel=1e-12)


def test_channels_are_gated_section_by_section() -> None:
    gate = torch.tensor([1.0, 0.0])
    assert spread_channels(gate, (2, 1)).tolist() == [1, 1, 0, 0, 1, 0]


def test_an_opened_gate_lets_everything_through_and_hands_its_gradient_on() -> None:
    scores = normal(4).requires_grad_()
    keep = torch.tensor([True, False, True, False])
    gate = opened(straight_through(scores, keep))
    assert gate.tolist() == [1.0] * 4
    (gate * torch.arange(4.0)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 1, 2, 3]


def units(values: dict[str, list[float]]) -> Units:
    made = Units({name: (len(row),) for name, row in values.items()}, trained=True)
    made.set_scores({name: torch.tensor(row) for name, row in values.items()})
    return made


ROWS = {"0": [-3.0, 2.0, 0.5, -1.0], "1": [4.0, 5.0, -2.0, 6.0]}


@pytest.mark.parametrize(
    ("scope", "first", "second"),
    [("global", [0, 1, 0, 0], [1, 1, 0, 1]), ("layer", [0, 1, 1, 0], [0, 1, 0, 1])],
)
def test_the_lowest_scores_of_all_or_each_layer_go(scope: Scope, first: list[int], second: list[int]) -> None:
    made = units(ROWS)
    assert made.decide(0.5, scope, regrow=False) == {"flips": 4, "threshold": 2.0 if scope == "global" else 0.5}
    assert made.keep("0").tolist() == first
    assert made.keep("1").tolist() == second


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_went_comes_back_only_if_it_may(scope: Scope) -> None:
    for regrow in (True, False):
        made = units({"0": ROWS["0"]})
        made.decide(0.5, scope, regrow)
        before = made.keep("0")
        made.set_scores({"0": torch.tensor([9.0, 2.0, 0.5, -1.0])})
        assert made.decide(0.5, scope, regrow)["flips"] == (2 if regrow else 0)
        assert made.keep("0").tolist() == ([True, True, False, False] if regrow else before.tolist())
        made.decide(0.75, scope, regrow)
        assert made.keep("0").tolist() == ([True, False, False, False] if regrow else [False, True, False, False])
        assert made.decide_above(0.55, regrow)["flips"] == (2 if regrow else 0)


def test_all_scores_are_equal_at_first_and_the_share_is_exact() -> None:
    made = Units({"a.weight": (5, 4), "b.weight": (3, 3)}, trained=True)
    for amount in (0.0, 0.1, 0.5, 0.9):
        made.decide(amount, "global", regrow=False)
        left = sum(int(made.keep(name).sum()) for name in made.names)
        assert left == 29 - round(amount * 29)


def test_a_threshold_leaves_what_is_above_it_even_nothing() -> None:
    made = units(ROWS)
    found = made.decide_above(0.6, regrow=False)  # sigmoid(0.405)
    assert made.keep("0").tolist() == [False, True, True, False]
    assert found["threshold"] == pytest.approx(1 / (1 + torch.tensor(-0.5).exp().item()))
    assert made.decide_above(0.9999, regrow=False)["threshold"] == float("inf")
    assert not any(made.keep(name).any() for name in made.names)


def test_openness_is_the_mean_sigmoid_and_pulls_scores_down() -> None:
    made = units(ROWS)
    flat = torch.tensor([x for row in ROWS.values() for x in row], dtype=torch.float64)
    value = made.openness()
    assert float(value) == pytest.approx(float((1 / (1 + (-flat).exp())).mean()), rel=1e-6)
    value.backward()
    assert all((score.grad > 0).all() for score in made.scores.values())  # type: ignore[operator]
