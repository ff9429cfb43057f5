"""Changes to a model's shape, each an entry of the ledger that can be replayed on another model of the same source.

An operation is a dictionary `{"op": name, ...parameters}`. Applied to a model with weights, it does the surgery. The same list
applied to a model of the source's configuration without weights gives the shape that saved weights are loaded into.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.axes import Shape, block_units, tensors, uneven_sizes
from lightgpt2.models.families import family_of, stack_paths
from lightgpt2.models.layers import Layers, check_stacks, recorded
from lightgpt2.models.loading import new_like, new_model
from lightgpt2.models.operations import KINDS, Operation, kind_of
from lightgpt2.models.trimming import Importance, Kept, as_digits, as_mask, cut, cut_vocabulary, kept_in_blocks, remove

_RECORDED = {"qk": "key", "vo": "value", "ffn": "ffn"}  # whose masks a trim records for each block; the others follow


def extract_layers(model: PreTrainedModel, layers: Sequence[int] | Layers) -> PreTrainedModel:
    """A copy of a model with only the blocks of these indices, in this order; it shares no tensor with the model.

    `layers`: a list for a model with one stack; else a list by the name of each.
    """
    family = family_of(model)
    chosen = layers if isinstance(layers, Mapping) else {family.stack: layers}
    check_stacks(chosen, family.depths(model.config))
    config = copy.deepcopy(model.config)
    keep_layers(config, chosen)
    smaller, old, paths = new_like(model, config), tensors(model), stack_paths(model)
    with torch.no_grad():
        for name, value in tensors(smaller).items():
            if path := next((path for path in paths if name.startswith(f"{path}.")), None):
                index, _, rest = name.removeprefix(f"{path}.").partition(".")
                name = f"{path}.{chosen[paths[path]][int(index)]}.{rest}"
            value.copy_(old[name if name in old else family.lender(name)])
        family.renumbered(smaller, chosen)
    return smaller


def keep_layers(config: PretrainedConfig, layers: Layers) -> None:
    """Let a configuration have only the layers of these indices, in this order, in each stack; a ValueError if no model can."""
    uneven = uneven_sizes(config)
    family_of(config).keep_layers(config, layers)
    for name, places in uneven.items():
        kept = {place: [sizes[i] for i in layers[place.partition(".")[0]]] for place, sizes in places.items()}
        config.lightgpt2 |= {name: recorded(kept)}


def trim_operation(target: Shape, kept: Kept, importance: Importance) -> Operation:
    """The record of a cut: its shape and the channels that stay."""
    digits = {
        name: [as_digits(mask) for (_, role), mask in kept.items() if role in (kind, f"cross_{kind}")]
        for name, kind in _RECORDED.items()
    }
    about = {"importance": importance, "kept": {"width": as_digits(kept[None, "width"]), **digits}}
    return KINDS["trim"].record(**asdict(target), **about)


def _trim(model: PreTrainedModel, kept: dict[str, Any], importance: Importance, **target: int) -> PreTrainedModel:
    shape = Shape.of(model.config)
    sizes = shape.channels()
    qk, vo, ffn = (
        dict(zip(names, (as_mask(text, sizes[role]) for text in kept[name]), strict=True))
        for names, (name, role) in zip(_unit_names(model.config), _RECORDED.items(), strict=True)
    )
    masks = {(None, "width"): as_mask(kept["width"], shape.width), **kept_in_blocks(qk, vo, ffn, shape)}
    return cut(model, Shape(**target).applied(model.config), masks)


def _unit_names(config: PretrainedConfig) -> tuple[list[str], list[str], list[str]]:
    """The names of attentions, once more, and of blocks, in the order in which operations record them."""
    attentions, neurons = ([*sizes] for sizes in block_units(config))
    return attentions, attentions, neurons


def removal(config: PretrainedConfig, heads: Mapping[str, Tensor], ffn: Mapping[str, Tensor]) -> Operation:
    """The record of heads and neurons that are removed, from masks as for `trimming.remove`: how many, and which stay."""
    attentions, neurons = block_units(config)
    left = [heads[name] for name in attentions], [ffn[name] for name in neurons]
    return KINDS["remove"].record(heads=_counted(left[0], Shape.of(config).groups), ffn=_counted(left[1], 1))


def _counted(masks: Sequence[Tensor], size: int) -> dict[str, Any]:
    left, whole = [size * int(mask.sum()) for mask in masks], size * sum(mask.numel() for mask in masks)
    return {"removed": whole - sum(left), "of": whole, "left": left, "kept": [*map(as_digits, masks)]}


def _remove(model: PreTrainedModel, heads: dict[str, Any], ffn: dict[str, Any], **_: Any) -> PreTrainedModel:
    masks = (
        {name: as_mask(text, count) for (name, count), text in zip(counts.items(), found["kept"], strict=True)}
        for counts, found in zip(block_units(model.config), (heads, ffn), strict=True)
    )
    return remove(model, *masks)


def vocabulary_operation(ids: Sequence[int], before: int) -> Operation:
    """The record of a smaller vocabulary: the number of tokens before and after, and those that stay."""
    kept = torch.zeros(before, dtype=torch.bool, device="cpu")
    kept[ids] = True
    return KINDS["trim_vocabulary"].record(before=before, after=len(ids), kept=as_digits(kept))


def _trim_vocabulary(model: PreTrainedModel, before: int, after: int, kept: str) -> PreTrainedModel:
    if before != model.config.vocab_size:
        raise ValueError(f"a cut of {before} tokens does not fit a model of {model.config.vocab_size}")
    return cut_vocabulary(model, as_mask(kept, before))


_OPERATIONS: dict[str, Callable[..., PreTrainedModel]] = {
    "extract_layers": extract_layers,
    "trim": _trim,
    "remove": _remove,
    "trim_vocabulary": _trim_vocabulary,
}


def apply(model: PreTrainedModel, operations: Sequence[Operation]) -> PreTrainedModel:
    """Apply operations in order; a `UserError` if one is unknown, a ValueError if it does not fit the model."""
    for operation in operations:
        if kind_of(operation).changes_shape:
            parameters = {key: value for key, value in operation.items() if key != "op"}
            model = _OPERATIONS[operation["op"]](model, **parameters)
    return model


def replay(config: PretrainedConfig, operations: Sequence[Operation]) -> PreTrainedModel:
    """The shape after `operations` of the model of `config`, on the meta device, without weights."""
    with torch.device("meta"):
        return apply(new_model(config), operations)
