"""Changes to a model's shape, each an entry of the ledger that can be replayed on another model of the same source.

An operation is a dictionary `{"op": name, ...parameters}`. Applied to a model with weights, it does the surgery. The same list
applied to a model of the source's configuration without weights gives the shape that saved weights are loaded into.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.functional.layers import check_layers
from lightgpt2.models.axes import Shape, block_units, uneven_sizes
from lightgpt2.models.families import blocks, family_of
from lightgpt2.models.loading import carry_generation, new_model
from lightgpt2.models.operations import KINDS, Operation, kind_of
from lightgpt2.models.trimming import Importance, Kept, as_digits, as_mask, cut, cut_vocabulary, kept_in_blocks, remove

_RECORDED = {"qk": "key", "vo": "value", "ffn": "ffn"}  # whose masks a trim records for each block; the others follow


def extract_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy of a model with only the blocks of these indices, in this order; it shares no tensor with the model."""
    check_layers(layers, model.config.num_hidden_layers)
    config = copy.deepcopy(model.config)
    keep_layers(config, layers)
    with torch.random.fork_rng(devices=[]):  # its first weights are written over
        smaller = new_model(config).to(model.device)
    old = dict(model.named_parameters())
    path = next(name for name, module in model.named_modules() if module is blocks(model))
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            if name.startswith(f"{path}."):
                index, _, rest = name.removeprefix(f"{path}.").partition(".")
                name = f"{path}.{layers[int(index)]}.{rest}"
            parameter.copy_(old[name])
        family_of(smaller).renumbered(smaller, layers)
    carry_generation(model, smaller)
    return smaller.train(model.training)


def keep_layers(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Let a configuration have only the layers of these indices, in this order; a ValueError if no model can have that."""
    if family_of(config).first_differs and [i for i, layer in enumerate(layers) if not layer] != [0]:
        what = f"the first layer of a {config.model_type} has other parts than the others"
        raise ValueError(f"layers {[*layers]}: {what}; begin with layer 0, and name it once")
    config.num_hidden_layers = len(layers)
    for name in family_of(config).layer_settings:
        if values := getattr(config, name, None):
            setattr(config, name, [values[i] for i in layers])
    if uneven := uneven_sizes(config):
        config.lightgpt2 |= {name: [sizes[i] for i in layers] for name, sizes in uneven.items()}


def trim_operation(target: Shape, kept: Kept, importance: Importance) -> Operation:
    """The record of a cut: its shape and the channels that stay."""
    layers = range(sum(role == "ffn" for _, role in kept))
    digits = {name: [as_digits(kept[layer, role]) for layer in layers] for name, role in _RECORDED.items()}
    about = {"importance": importance, "kept": {"width": as_digits(kept[None, "width"]), **digits}}
    return KINDS["trim"].record(**asdict(target), **about)


def _trim(model: PreTrainedModel, kept: dict[str, Any], importance: Importance, **target: int) -> PreTrainedModel:
    shape = Shape.of(model.config)
    sizes = shape.channels()
    qk, vo, ffn = ([as_mask(text, sizes[role]) for text in kept[name]] for name, role in _RECORDED.items())
    masks = {(None, "width"): as_mask(kept["width"], shape.width), **kept_in_blocks(qk, vo, ffn, shape)}
    return cut(model, Shape(**target).applied(model.config), masks)


def removal(config: PretrainedConfig, heads: Sequence[Tensor], ffn: Sequence[Tensor]) -> Operation:
    """The record of heads and neurons that are removed, from masks as for `trimming.remove`: how many, and which stay."""
    return KINDS["remove"].record(heads=_counted(heads, Shape.of(config).groups), ffn=_counted(ffn, 1))


def _counted(masks: Sequence[Tensor], size: int) -> dict[str, Any]:
    left, whole = [size * int(mask.sum()) for mask in masks], size * sum(mask.numel() for mask in masks)
    return {"removed": whole - sum(left), "of": whole, "left": left, "kept": [*map(as_digits, masks)]}


def _remove(model: PreTrainedModel, heads: dict[str, Any], ffn: dict[str, Any], **_: Any) -> PreTrainedModel:
    counts, neurons = block_units(model.config)
    return remove(model, [*map(as_mask, heads["kept"], counts)], [*map(as_mask, ffn["kept"], neurons)])


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
