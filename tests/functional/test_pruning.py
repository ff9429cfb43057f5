"""Which weights go: against a plain reference, with ties, over many tensors, and again and again."""

import math
from itertools import pairwise

import pytest
import torch

from lightgpt2.functional.pruning import Masks, keep_masks, magnitudes, random_scores
from lightgpt2.functional.schedules import cubic


def tensors(seed: int, coarse: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=generator) for name, shape in (("a", (7, 11)), ("b", (5, 3)), ("c", (1, 40)))
    }
    return {name: (t * 2).round() / 2 if coarse else t for name, t in made.items()}


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "many ties"])
@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 0.8, 0.995])
def test_masks_equal_a_sorted_list(amount: float, coarse: bool) -> None:
    for seed in range(20):
        weights = tensors(seed, coarse)
        masks = keep_masks(magnitudes(weights), amount)
        flat = torch.cat([w.flatten() for w in weights.values()]).double().abs().tolist()
        order = sorted(range(len(flat)), key=lambda i: (flat[i], i))  # by magnitude, then by position
        gone = set(order[: round(amount * len(flat))])
        kept = torch.cat([m.flatten() for m in masks.values()]).tolist()
        assert [i not in gone for i in range(len(flat))] == kept
        assert {name: m.shape for name, m in masks.items()} == {name: w.shape for name, w in weights.items()}


def test_one_threshold_over_all_tensors() -> None:
    masks = keep_masks({"small": torch.full((10,), 0.1), "large": torch.arange(1.0, 11.0)}, 0.5)
    assert not masks["small"].any()
    assert masks["large"].all()


@pytest.mark.parametrize("amount", [-0.1, 1.0, 1.5, math.nan])
def test_amount_outside_the_half_open_interval_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        keep_masks({"a": torch.ones(3)}, amount)


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_what_went_goes_again_first(criterion: str) -> None:
    """So that a growing amount only ever adds, though the weights move meanwhile."""
    masks: dict[str, torch.Tensor] = {}
    for step, amount in enumerate((0.1, 0.3, 0.3, 0.8)):
        weights = tensors(step, coarse=False)
        scores = magnitudes(weights) if criterion == "l1" else random_scores(weights, seed=3)
        larger = keep_masks(scores, amount, masks)
        assert sum(int((~m).sum()) for m in larger.values()) == round(amount * 132)
        assert all(not (larger[name] & ~m).any() for name, m in masks.items())
        masks = larger


def test_what_went_stays_gone_under_a_smaller_amount() -> None:
    weights = tensors(0, coarse=False)
    masks = keep_masks(magnitudes(weights), 0.5)
    again = keep_masks(magnitudes(weights), 0.2, masks)
    assert all(torch.equal(masks[name], again[name]) for name in masks)


def test_random_scores_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = random_scores(tensors(0, coarse=False), seed=1)
    before = torch.get_rng_state()
    with torch.device("meta"):  # Lightning makes the device of a fit the default one
        second = random_scores(tensors(5, coarse=False), seed=1)
    assert torch.equal(before, torch.get_rng_state()), "drawing moves the training's own generator"
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["a"], random_scores(tensors(0, coarse=False), seed=2)["a"])


def test_masks_zero_weights_and_gradients_and_travel_in_a_state_dict() -> None:
    layer = torch.nn.Linear(6, 4)
    masks = Masks()
    masks.set({"weight": torch.rand(4, 6) > 0.5})
    masks.set({"weight": (mask := torch.rand(4, 6) > 0.5)})
    layer(torch.ones(2, 6)).sum().backward()
    bias = layer.bias.detach().clone()
    masks.weights_(layer)
    masks.gradients_(layer)
    assert torch.equal(layer.weight != 0, mask)
    assert torch.equal(layer.weight.grad != 0, mask)  # type: ignore[operator]
    assert torch.equal(layer.bias, bias)
    assert masks.counts() == (24, 24 - int(mask.sum()))
    restored = Masks()
    state = {f"masks.{key}": value for key, value in masks.state_dict().items()}
    restored.allocate(state, "masks.")
    restored.load_state_dict(masks.state_dict())
    assert [(name, m.tolist()) for name, m in restored.items()] == [("weight", mask.tolist())]


def test_cubic_schedule_is_that_of_the_paper() -> None:
    values = [cubic(step, 20, 70, 0.0, 0.8) for step in range(101)]
    assert values[:21] == [0.0] * 21
    assert values[70:] == [0.8] * 31
    assert values[45] == pytest.approx(0.8 - 0.8 * (1 - 25 / 50) ** 3)
    steps = [b - a for a, b in pairwise(values[20:71])]
    assert all(a > b > 0 for a, b in pairwise(steps)), "steep at first, flat at the end"
    assert [cubic(step, 5, 5, 0.2, 0.8) for step in (4, 5)] == [0.2, 0.8]
