"""Cutting a narrower model out of a wide one: which channels stay, and how they are taken out of every tensor."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from lightgpt2.models.axes import (
    Named,
    Shape,
    attention_of,
    block_of,
    block_units,
    named_axes,
    tensors,
    with_block_sizes,
)
from lightgpt2.models.families import Family, blocks, family_of, recorded_states, stack_paths
from lightgpt2.models.loading import new_like

Importance = Literal["norm", "activation", "first"]


Channels = dict[tuple[str | None, str], Tensor]  # by block (None for the width) and role, see `families.base.Family`
Scores = Channels  # of each channel
Kept = Channels  # masks of the channels that stay; of what is not there all do


def kept_in_blocks(qk: Mapping[str, Tensor], vo: Mapping[str, Tensor], ffn: Mapping[str, Tensor], shape: Shape) -> Kept:
    """Masks from those of each attention's keys `[heads of keys * channels]`, values (likewise) and each block's neurons.

    The queries that read a head of keys, and what they give, have the same channels.
    """
    kept: Kept = {}
    for name in qk:
        block, kind = attention_of(name)
        kept |= {(block, f"{kind}key"): qk[name], (block, f"{kind}value"): vo[name]}
        for role, mask in (("query", qk[name]), ("context", vo[name])):
            by_head = mask.view(-1, shape.head).repeat_interleave(shape.groups, dim=0)
            kept[block, f"{kind}{role}"] = by_head.flatten()
        kept[block, f"{kind}head"] = by_head.any(dim=1)
    return kept | {(block, "ffn"): neurons for block, neurons in ffn.items()}


def as_digits(mask: Tensor) -> str:
    """A mask as a hexadecimal number; its first element is the highest bit."""
    return f"{int('0' + ''.join('1' if bit else '0' for bit in mask.tolist()), 2):x}"


def as_mask(text: str, size: int) -> Tensor:
    """The mask of this size that `as_digits` wrote."""
    bits = f"{int(text, 16):0{size}b}"[:size]
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool, device="cpu")  # whatever the context


@torch.no_grad()
def norm_scores(model: PreTrainedModel) -> Scores:
    """The squared norm of the weights that read or write a channel; each tensor's share counts alike."""
    scores: Scores = defaultdict(lambda: torch.zeros(()))
    shape = Shape.of(model.config)
    for named in named_axes(model):
        if named.value.ndim < 2:
            continue
        squares = named.value.float().square()
        for axis in range(2):
            for role, part in named.split(axis, squares.sum(dim=1 - axis), shape):
                key = _key(named, role)
                scores[key] = scores[key] + part / part.sum().clamp_min(torch.finfo(part.dtype).tiny)
    return scores


@torch.no_grad()
def activation_scores(model: PreTrainedModel, batches: Iterable[Tensor | Mapping[str, Tensor]]) -> Scores:
    """The load of each channel on calibration text: the mean absolute activation times the norm of the weights that read it.

    For the width it is the mean absolute hidden state alone, over all blocks (Muralidharan et al. 2024, arXiv:2407.14679; Sun
    et al. 2023, arXiv:2306.11695). Queries and keys have no such output: there it is the weights' norm. The model must be in
    eval mode; batches are token ids `[B, T]`, or inputs by name.
    """
    scores = norm_scores(model)
    sums: Scores = defaultdict(lambda: torch.zeros(()))
    readers = _readers(model)

    def add_inputs(key: tuple[str | None, str], _: nn.Module, args: tuple[Tensor, ...]) -> None:
        sums[key] = sums[key] + args[0].detach().flatten(0, -2).float().abs().sum(dim=0)

    family = family_of(model)
    names = [f"{stack}.{i}" for stack, depth in family.depths(model.config).items() for i in range(depth + 1)]
    with ExitStack() as hooks:
        for key, (module, _) in readers.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(add_inputs, key)))
        for batch in batches:
            with recorded_states(model, names) as states:
                family.final_states(model, **_as_inputs(batch, family, model.device))
            for state in states.values():
                sums[None, "width"] = sums[None, "width"] + state.flatten(0, -2).float().abs().mean(dim=0)
    scores[None, "width"] = sums[None, "width"]
    for key, (_, norms) in readers.items():
        scores[key] = sums[key] * norms
    return scores


def _as_inputs(batch: Tensor | Mapping[str, Tensor], family: Family, device: torch.device) -> dict[str, Tensor]:
    """The inputs of a model: token ids alone are all of its texts."""
    given = dict.fromkeys(family.text_inputs, batch) if isinstance(batch, Tensor) else batch
    return {name: value.to(device) for name, value in given.items() if name in family.model_inputs}


def _readers(model: PreTrainedModel) -> dict[tuple[str | None, str], tuple[nn.Module, Tensor]]:
    """The modules that read a block's contexts and its neurons, with the norm of the weights that read each channel."""
    found: dict[tuple[str | None, str], tuple[nn.Module, Tensor]] = {}
    inputs = 0 if family_of(model).conv1d else 1  # the axis of a weight
    for named in named_axes(model):
        if len(named.axes) == 2 and (role := named.axes[inputs][0]).endswith(("context", "ffn")):
            module = model.get_submodule(named.name.rpartition(".")[0])
            found[named.block, role] = (module, named.value.float().norm(dim=1 - inputs))
    return found


def first_scores(model: PreTrainedModel) -> Scores:
    """The earlier a channel the higher: the control, and the only choice without weights."""
    sizes = Shape.of(model.config).channels()
    places: list[str | None] = [None, *blocks(model)]
    return {(place, role): -torch.arange(float(size), device="cpu") for place in places for role, size in sizes.items()}


def choose(model: PreTrainedModel, target: Shape, scores: Scores) -> Kept:
    """The channels that a trimmed model keeps: in each block the heads of the highest scores, in the old order.

    Heads that share keys and values stay or go together. Where heads become narrower, each keeps its best channels; queries and
    keys the same ones, values and outputs the same ones.
    """
    old, (attentions, neurons) = Shape.of(model.config), block_units(model.config)
    compared, brought = dict[str, Tensor](), dict[str, Tensor]()
    for name in attentions:
        block, kind = attention_of(name)
        query, key, value, context = (scores[block, kind + role] for role in ("query", "key", "value", "context"))
        compared[name] = _by_head(query, old) + key.view(-1, old.head)
        brought[name] = _by_head(context, old) + value.view(-1, old.head)
    whole = {name: (compared[name] + brought[name]).sum(dim=1) for name in attentions}
    if family_of(model).heads_align:
        whole = _shared(whole)
    heads = {name: _best(score, target.heads // target.groups) for name, score in whole.items()}
    qk = {name: _inner(compared[name], heads[name], target.head) for name in attentions}
    vo = {name: _inner(brought[name], heads[name], target.head) for name in attentions}
    ffn = {name: _best(scores[name, "ffn"], target.ffn) for name in neurons}
    return {(None, "width"): _best(scores[None, "width"], target.width), **kept_in_blocks(qk, vo, ffn, old)}


def _shared(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores of heads summed over a stack's blocks, which keep those at the same places; not of cross-attention."""
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    inner = {name: name.partition(".")[0] for name in scores if not attention_of(name)[1]}
    for name, stack in inner.items():
        sums[stack] = sums[stack] + scores[name]
    return {name: sums[inner[name]] if name in inner else score for name, score in scores.items()}


def _by_head(channels: Tensor, shape: Shape) -> Tensor:
    """Scores of query channels summed over the heads that share keys `[heads of keys, channels]`."""
    return channels.view(-1, shape.groups, shape.head).sum(dim=1)


def _best(scores: Tensor, count: int) -> Tensor:
    """The mask of the highest scores; of equal ones the first."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device="cpu")
    mask[scores.cpu().sort(descending=True, stable=True).indices[:count]] = True
    return mask


def _inner(scores: Tensor, heads: Tensor, channels: int) -> Tensor:
    return torch.cat([_best(row, channels) & stays for row, stays in zip(scores, heads, strict=True)])


@torch.no_grad()
def cut(model: PreTrainedModel, config: PretrainedConfig, kept: Kept) -> PreTrainedModel:
    """A model of this configuration from the channels that stay; it shares no tensor with the old one, which is unchanged."""
    smaller, old, family = new_like(model, config), Shape.of(model.config), family_of(model)
    parameters, paths = {named.name: named for named in named_axes(model)}, stack_paths(smaller)
    for name, target in tensors(smaller).items():
        named = parameters.get(name) or replace(parameters[family.lender(name)], block=block_of(name, paths))
        value: Tensor = named.value.detach()
        for axis, roles in enumerate(named.axes):
            keys = [_key(named, role) for role in roles]
            if masks := [kept[key] for key in keys if key in kept]:
                stay = named.join(masks, old).nonzero().squeeze(1)
                value = value.index_select(axis, stay.to(value.device))
        target.copy_(value)
    family.narrowed(smaller, old.width)
    return smaller


def _key(named: Named, role: str) -> tuple[str | None, str]:
    """Where `Channels` have the channels of a role in a parameter's block."""
    return (None if role == "width" else named.block, role)


def cut_vocabulary(model: PreTrainedModel, kept: Tensor) -> PreTrainedModel:
    """A model of the tokens that stay `[V]`, numbered anew in the old order; it shares no tensor with the old one.

    Its distribution over them adds up to one again.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size = int(kept.sum())
    _renumber(config, kept)
    smaller = cut(model, config, {(None, "vocabulary"): kept})
    if hasattr(smaller, "generation_config"):
        _renumber(smaller.generation_config, kept)
        _renumber_rules(smaller.generation_config, kept)
    return smaller


def _renumbered(kept: Tensor) -> dict[int, int]:
    """The new id of each token that stays."""
    return {old: index for index, old in enumerate(kept.nonzero().flatten().tolist())}


def _renumber(config: PretrainedConfig | GenerationConfig, kept: Tensor) -> None:
    """Give the special tokens their new ids; None to one that is gone."""
    new = _renumbered(kept)
    for key, ids in config.to_dict().items():
        if key.endswith("_token_id"):
            setattr(config, key, [new[old] for old in ids if old in new] if isinstance(ids, list) else new.get(ids))


def _renumber_rules(settings: GenerationConfig, kept: Tensor) -> None:
    """Let rules on certain tokens be on the same ones; what is on a token that is gone goes too."""
    new = _renumbered(kept)
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        if ids := getattr(settings, key):
            setattr(settings, key, [new[old] for old in ids if old in new] or None)
    if words := settings.bad_words_ids:
        settings.bad_words_ids = [[new[old] for old in word] for word in words if {*word} <= new.keys()] or None
    if biases := settings.sequence_bias:
        pairs = biases.items() if isinstance(biases, dict) else biases
        found = [[[new[old] for old in ids], bias] for ids, bias in pairs if {*ids} <= new.keys()]
        settings.sequence_bias = found or None


def remove(model: PreTrainedModel, heads: Mapping[str, Tensor], ffn: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model of the heads and neurons that stay; its logits are those of the model with the others masked.

    `heads` has for each attention a mask of its heads of keys and values, with the queries that read them; `ffn` for each block
    one of its neurons.
    """
    shape = Shape.of(model.config)
    left = {name: shape.groups * int(mask.sum()) for name, mask in heads.items()}
    channels = {name: mask.cpu().repeat_interleave(shape.head) for name, mask in heads.items()}
    kept = kept_in_blocks(channels, channels, {name: mask.cpu() for name, mask in ffn.items()}, shape)
    return cut(model, with_block_sizes(model.config, left, {name: int(mask.sum()) for name, mask in ffn.items()}), kept)
