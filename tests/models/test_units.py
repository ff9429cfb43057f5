"""Heads, neurons, blocks and weights: what belongs to each, what a gate does, and that removal is what masking was."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lightgpt2.models.axes import Named, Shape, block_sizes, block_units, named_axes
from lightgpt2.models.families import DECODERS, block_linears, family_of
from lightgpt2.models.loading import load_model, new_model
from lightgpt2.models.surgery import apply, removal, replay
from lightgpt2.models.trimming import remove
from lightgpt2.models.units import Granularity, UnitMap, gate_weights, magnitudes, make_units, unit_map
from tests.support.models import IDS, assert_same_weights, logits, make_model, shake, write_tokenizer

Masks = dict[str, Tensor]  # by the names of attentions and blocks


def gated(model: PreTrainedModel, granularity: Granularity = "structured") -> tuple[UnitMap, nn.ModuleDict]:
    mapped = unit_map(model, granularity, 8)
    units = make_units(model, mapped, trained=True)
    gate_weights(model, mapped, units)
    return mapped, units


def random_masks(model: PreTrainedModel, seed: int) -> tuple[Masks, Masks]:
    """Heads and neurons of each layer; in every third layer none at all of one kind, in another one single head."""
    random = torch.Generator().manual_seed(seed)
    heads, ffn = (
        {name: torch.rand(n, generator=random) < float(torch.rand((), generator=random)) for name, n in counts.items()}
        for counts in block_units(model.config)
    )
    for name, masks in heads.items():
        place = int(name.split(".")[1])
        if place % 4 == seed % 4:
            masks[:] = False
        if place % 4 == (seed + 2) % 4:
            masks[:] = torch.arange(masks.numel()) == seed % masks.numel()
    for name, masks in ffn.items():
        if int(name.split(".")[1]) % 4 == (seed + 1 + seed // 4) % 4:
            masks[:] = False
    return heads, ffn


def counted(masks: Masks, size: int = 1) -> dict[str, int]:
    return {name: size * int(mask.sum()) for name, mask in masks.items()}


def every(model: PreTrainedModel, keep: Callable[[Tensor], Tensor]) -> list[Masks]:
    """Masks of all heads and neurons from the numbers that those of a layer have."""
    return [{name: keep(torch.arange(n)) for name, n in counts.items()} for counts in block_units(model.config)]


def mask(units: nn.ModuleDict, heads: Masks, ffn: Masks) -> None:
    for kind, masks in (("attention", heads), ("ffn", ffn)):
        units[kind].masks.set(masks)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 100), marks=pytest.mark.slow)], ids=["few", "many"])
def test_masked_and_removed_models_agree(family: str, seeds: range) -> None:
    for seed in seeds:
        model = make_model(family, seed, attention_bias=True, mlp_bias=True)
        shake(model)  # biases that matter
        heads, ffn = random_masks(model, seed)
        smaller = remove(model, heads, ffn).eval()
        mask(gated(model)[1], heads, ffn)
        difference = (logits(model) - logits(smaller)).abs().max()
        assert difference <= 1e-5, f"seed {seed}: {difference}"
        groups = Shape.of(model.config).groups
        assert block_sizes(smaller.config) == (counted(heads, groups), counted(ffn))


def sections(named: Named, shape: Shape) -> Iterator[tuple[int, str, list[int]]]:
    """For each axis that heads or neurons lie on: the axis, their kind, and the channels of a unit in each section."""
    for axis, roles in enumerate(named.axes):
        if named.block is not None and roles[0] not in ("width", "channel"):
            sizes = [shape.head * (shape.groups if role in ("query", "context") else 1) for role in roles]
            sizes = [sum(sizes)] if named.alternate else sizes
            yield axis, *(("ffn", [1] * len(roles)) if roles[0] == "ffn" else ("attention", sizes))


@pytest.mark.parametrize("family", DECODERS)
def test_a_gate_at_the_output_is_a_mask_on_everything(family: str) -> None:
    """As if all of a unit's weights and biases were zero."""
    model = make_model(family, 3)
    heads, ffn = random_masks(model, 3)
    naive = copy.deepcopy(model)
    for named in named_axes(naive):
        for axis, kind, sizes in sections(named, Shape.of(model.config)):
            unit = (ffn if kind == "ffn" else heads)[named.block]
            channels = torch.cat([unit.repeat_interleave(size) for size in sizes])
            named.value.data.mul_(channels.view([-1 if a == axis else 1 for a in range(named.value.ndim)]))
    mask(gated(model)[1], heads, ffn)
    torch.testing.assert_close(logits(model), logits(naive), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_a_heads_score_sums_over_query_key_value_and_output(family: str) -> None:
    """And a neuron's over all that reads and writes it: gradient times weight, biases included."""
    model = make_model(family, 1)
    naive, shape = copy.deepcopy(model), Shape.of(model.config)
    mapped, made = gated(model)
    for each in (model, naive):
        torch.nn.functional.cross_entropy(each(IDS).logits.flatten(0, 1), IDS.roll(-1, 1).flatten()).backward()
    expected: dict[tuple[str, str | None], Tensor] = defaultdict(lambda: torch.zeros(()))
    for named in named_axes(naive):
        for axis, kind, sizes in sections(named, shape):
            product = (named.value.grad * named.value).detach()
            channels = product.sum(dim=1 - axis) if product.ndim == 2 else product
            units = len(channels) // sum(sizes)
            for part, size in zip(channels.split([units * size for size in sizes]), sizes, strict=True):
                expected[kind, named.block] = expected[kind, named.block] + part.view(units, size).sum(dim=1)
    assert len(expected) == 8
    for (kind, layer), value in expected.items():
        torch.testing.assert_close(made[kind].scores[layer.replace(".", "/")].grad, value, rtol=1e-4, atol=1e-6)
    assert {name.rpartition(".")[0] for name in mapped} == {*block_linears(model)}
    model.zero_grad()
    made.zero_grad()
    mask(made, *every(model, lambda numbers: numbers < 0))
    model(IDS, labels=IDS).loss.backward()
    scores = [score for units in made.values() for score in units.scores.values()]
    assert all(score.grad is not None and score.grad.abs().min() > 0 for score in scores), "masked units still learn"


@pytest.mark.parametrize("granularity", ["block", "weight"])
@pytest.mark.parametrize("family", DECODERS)
def test_blocks_and_weights_are_of_the_blocks_linear_layers_only(family: str, granularity: Granularity) -> None:
    model = make_model(family, 4)
    plain = copy.deepcopy(model)
    mapped, made = gated(model, granularity)
    assert torch.equal(logits(model), logits(plain)), "open gates change nothing"
    assert {*mapped} == {f"{name}.weight" for name in block_linears(model)}
    random, side = torch.Generator().manual_seed(0), 8 if granularity == "block" else 1
    for name, blocks in mapped.items():
        weight = plain.get_parameter(name).data
        keep = torch.rand(blocks.shape(weight), generator=random) < 0.5
        made[blocks.kind].masks.set({name: keep})
        wide = keep.repeat_interleave(side, 0).repeat_interleave(side, 1)
        weight.mul_(wide[: weight.shape[0], : weight.shape[1]])
    assert torch.equal(logits(model), logits(plain))


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("granularity", ["structured", "block", "weight"])
def test_magnitudes_are_norms_over_a_unit(family: str, granularity: Granularity) -> None:
    model = make_model(family, 5)
    mapped = unit_map(model, granularity, 8)
    for kind, by_name in magnitudes(model, mapped).items():
        total = sum(float(value.square().sum()) for value in by_name.values())
        mine = [model.get_parameter(name) for name, part in mapped.items() if part.kind == kind]
        assert total == pytest.approx(sum(float(p.detach().square().sum()) for p in mine), rel=1e-4)
    if granularity == "structured":
        for named in named_axes(model):
            if named.block == "decoder.1" and ("ffn",) in named.axes:
                named.value.data.select(named.axes.index(("ffn",)), 3).mul_(100)
        assert int(magnitudes(model, mapped)["ffn"]["decoder.1"].argmax()) == 3


@pytest.mark.parametrize("family", DECODERS)
def test_a_removal_is_replayed_from_its_record(family: str) -> None:
    model = make_model(family, 6)
    heads, ffn = random_masks(model, 6)
    operation = removal(model.config, heads, ffn)
    smaller = remove(model, heads, ffn)
    assert_same_weights(smaller, apply(model, [operation]))
    assert_same_weights(smaller, replay(model.config, [operation]))
    counted = operation["heads"]
    assert counted["removed"] + sum(counted["left"]) == counted["of"] == 4 * Shape.of(model.config).heads


@pytest.mark.parametrize("family", DECODERS)
def test_shapes_that_plain_transformers_can_say_stay_plain(family: str) -> None:
    model = make_model(family, 7)
    (all_heads, _), (_, half) = (every(model, keep) for keep in (lambda n: n >= 0, lambda n: n % 2 == 0))
    assert type(remove(model, all_heads, half)) is type(model)
    fewer = remove(model, every(model, lambda n: n == 0)[0], half)
    shared = family_of(model).heads_share_width
    assert (type(fewer) is type(model)) == (not hasattr(fewer.config, "lightgpt2")) == (not shared)


@pytest.mark.parametrize("family", DECODERS)
def test_a_model_with_unlike_layers_is_one_like_any_other(family: str, tmp_path: Path) -> None:
    """Saved, loaded (also by plain transformers), generating with a cache, learning, pruned again.

    The first layer has no heads: from its cache transformers reads how many tokens there are. DDP waits for every gradient.
    """
    model = make_model(family, 9)
    heads, ffn = random_masks(model, 9)
    heads["decoder.0"][:] = False
    smaller = remove(model, heads, ffn).eval()
    write_tokenizer(tmp_path)
    smaller.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), "model").eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert type(loaded) is type(smaller) is not type(plain)
    assert torch.equal(logits(loaded), logits(smaller))
    assert torch.equal(logits(plain), logits(smaller))
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = loaded.generate(IDS[:, :8], use_cache=True, **options)
    assert torch.equal(with_cache, loaded.generate(IDS[:, :8], use_cache=False, **options))
    loaded.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert not [name for name, parameter in loaded.named_parameters() if parameter.grad is None]
    counts = block_units(smaller.config)
    again = remove(smaller, *every(smaller, lambda n: n % 2 == 1))
    assert block_units(again.config)[1] == {name: count // 2 for name, count in counts[1].items()}
    mapped, made = gated(smaller)
    assert mapped
    assert all(len(units.names) < 4 for units in made.values())
    torch.manual_seed(0)
    fresh = [p.detach() for n, p in new_model(smaller.config).named_parameters() if p.ndim == 2 and p.numel() > 64]
    assert all(0.005 < float(matrix.std()) < 0.03 for matrix in fresh), "random weights as of any model"
