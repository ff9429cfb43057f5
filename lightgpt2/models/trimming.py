"""Cutting a narrower model out of a wide one: which channels stay, and how they are taken out of every tensor."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from lightgpt2.models.axes import Named, Shape, named_axes, with_block_sizes
from lightgpt2.models.families import blocks, family_of, recorded_states
from lightgpt2.models.loading import carry_generation, new_model

Importance = Literal["norm", "activation", "first"]


Channels = dict[tuple[int | None, str], Tensor]  # by block (None for the width) and role, see `families.base.Family`
Scores = Channels  # of each channel
Kept = Channels  # masks of the channels that stay; of what is not there all do


def kept_in_blocks(qk: Sequence[Tensor], vo: Sequence[Tensor], ffn: Sequence[Tensor], shape: Shape) -> Kept:
    """Masks from those of each block's keys `[heads of keys * channels]`, values (likewise) and neurons.

    The queries that read a head of keys, and what they give, have the same channels.
    """
    kept: Kept = {}
    for layer, (keys, values, neurons) in enumerate(zip(qk, vo, ffn, strict=True)):
        kept |= {(layer, "key"): keys, (layer, "value"): values, (layer, "ffn"): neurons}
        for role, mask in (("query", keys), ("context", values)):
            kept[layer, role] = mask.view(-1, shape.head).repeat_interleave(shape.groups, dim=0).flatten()
    return kept


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
def activation_scores(model: PreTrainedModel, batches: Iterable[Tensor]) -> Scores:
    """The load of each channel on calibration text: the mean absolute activation times the norm of the weights that read it.

    For the width it is the mean absolute hidden state alone, over all blocks (Muralidharan et al. 2024, arXiv:2407.14679; Sun
    et al. 2023, arXiv:2306.11695). Queries and keys have no such output: there it is the weights' norm. The model must be in
    eval mode; batches are token ids `[B, T]`.
    """
    scores = norm_scores(model)
    sums: Scores = defaultdict(lambda: torch.zeros(()))
    readers = _readers(model)

    def add_inputs(key: tuple[int | None, str], _: nn.Module, args: tuple[Tensor, ...]) -> None:
        sums[key] = sums[key] + args[0].detach().flatten(0, -2).float().abs().sum(dim=0)

    layers = list(range(len(blocks(model)) + 1))
    with ExitStack() as hooks:
        for key, (module, _) in readers.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(add_inputs, key)))
        for ids in batches:
            with recorded_states(model, layers) as states:
                model.base_model(input_ids=ids.to(model.device), use_cache=False)
            for state in states.values():
                sums[None, "width"] = sums[None, "width"] + state.flatten(0, -2).float().abs().mean(dim=0)
    scores[None, "width"] = sums[None, "width"]
    for key, (_, norms) in readers.items():
        scores[key] = sums[key] * norms
    return scores


def _readers(model: PreTrainedModel) -> dict[tuple[int | None, str], tuple[nn.Module, Tensor]]:
    """The modules that read a block's context and its neurons, with the norm of the weights that read each channel."""
    found: dict[tuple[int | None, str], tuple[nn.Module, Tensor]] = {}
    inputs = 0 if family_of(model).conv1d else 1  # the axis of a weight
    for named in named_axes(model):
        if len(named.axes) == 2 and (role := named.axes[inputs][0]) in ("context", "ffn"):
            module = model.get_submodule(named.name.rpartition(".")[0])
            found[named.layer, role] = (module, named.value.float().norm(dim=1 - inputs))
    return found


def first_scores(model: PreTrainedModel) -> Scores:
    """The earlier a channel the higher: the control, and the only choice without weights."""
    sizes = Shape.of(model.config).channels()
    layers: list[int | None] = [None, *range(len(blocks(model)))]
    return {(layer, role): -torch.arange(float(size), device="cpu") for layer in layers for role, size in sizes.items()}


def choose(model: PreTrainedModel, target: Shape, scores: Scores) -> Kept:
    """The channels that a trimmed model keeps: in each block the heads of the highest scores, in the old order.

    Heads that share keys and values stay or go together. Where heads become narrower, each keeps its best channels; queries and
    keys the same ones, values and outputs the same ones.
    """
    old = Shape.of(model.config)
    qk, vo, ffn = list[Tensor](), list[Tensor](), list[Tensor]()
    for layer in range(len(blocks(model))):
        compared = _by_head(scores[layer, "query"], old) + scores[layer, "key"].view(-1, old.head)
        brought = _by_head(scores[layer, "context"], old) + scores[layer, "value"].view(-1, old.head)
        heads = _best((compared + brought).sum(dim=1), target.heads // target.groups)
        qk.append(_inner(compared, heads, target.head))
        vo.append(_inner(brought, heads, target.head))
        ffn.append(_best(scores[layer, "ffn"], target.ffn))
    return {(None, "width"): _best(scores[None, "width"], target.width), **kept_in_blocks(qk, vo, ffn, old)}


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
    with torch.random.fork_rng(devices=[]):  # its first weights are written over
        smaller = new_model(config).to(model.device)
    new, old = dict(smaller.named_parameters()), Shape.of(model.config)
    for named in named_axes(model):
        value: Tensor = named.value.detach()
        for axis, roles in enumerate(named.axes):
            keys = [_key(named, role) for role in roles]
            if masks := [kept[key] for key in keys if key in kept]:
                stay = named.join(masks, old).nonzero().squeeze(1)
                value = value.index_select(axis, stay.to(value.device))
        if named.name in new:  # a layer without heads or neurons has no weights of them
            new.pop(named.name).copy_(value)
    assert not new, f"no weights for {', '.join(new)}"
    family_of(model).narrowed(smaller, old.width)
    carry_generation(model, smaller)
    return smaller.train(model.training)


def _key(named: Named, role: str) -> tuple[int | None, str]:
    """Where `Channels` have the channels of a role in a parameter's block."""
    return (None if role == "width" else named.layer, role)


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


def remove(model: PreTrainedModel, heads: Sequence[Tensor], ffn: Sequence[Tensor]) -> PreTrainedModel:
    """A model of the heads and neurons that stay; its logits are those of the model with the others masked.

    `heads` has for each block a mask of its heads of keys and values, with the queries that read them; `ffn` of its neurons.
    """
    shape = Shape.of(model.config)
    left = [shape.groups * int(mask.sum()) for mask in heads], [int(mask.sum()) for mask in ffn]
    channels = [mask.cpu().repeat_interleave(shape.head) for mask in heads]
    kept = kept_in_blocks(channels, channels, [mask.cpu() for mask in ffn], shape)
    return cut(model, with_block_sizes(model.config, *left), kept)
