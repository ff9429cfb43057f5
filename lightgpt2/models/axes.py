"""The meaning of each axis of each parameter, for slices and sums of importances; and sizes of blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families import Shape, family_of

__all__ = ["Named", "Shape", "block_sizes", "block_units", "named_axes", "uneven_sizes", "with_block_sizes"]


@dataclass(frozen=True)
class Named:
    """A parameter and what its axes stand for."""

    name: str
    value: Tensor
    layer: int | None  # index of its block; None for embeddings, the final norm and the head
    axes: tuple[tuple[str, ...], ...]  # for each axis the roles of its sections; see `Family`
    alternate: bool  # whether sections alternate head by head

    def split(self, axis: int, values: Tensor, shape: Shape) -> list[tuple[str, Tensor]]:
        """The roles of an axis's sections, and their values `[channels]`."""
        roles, sizes = self.axes[axis], shape.channels()
        if len(roles) == 1:
            return [(roles[0], values)]
        if self.alternate:
            parts = [part.flatten() for part in values.view(-1, len(roles), shape.head).unbind(dim=1)]
        else:
            parts = [*values.split([sizes[role] for role in roles])]
        return [*zip(roles, parts, strict=True)]

    def join(self, parts: list[Tensor], shape: Shape) -> Tensor:
        """The values of an axis from those of its sections."""
        if self.alternate and len(parts) > 1:
            return torch.stack([part.view(-1, shape.head) for part in parts], dim=1).flatten()
        return torch.cat(parts)


def named_axes(model: PreTrainedModel) -> Iterator[Named]:
    """All parameters of a model without adapters, tied ones once; a ValueError if its family does not know one."""
    family = family_of(model)
    known = {**family.axes, "score": ("class", "width")}  # which transformers gives every decoder that classifies
    for name, value in model.named_parameters():
        path, _, kind = name.rpartition(".")
        axes = next((axes for pattern, axes in known.items() if re.fullmatch(pattern, path)), None)
        if axes is None:
            raise ValueError(f"unknown parameter {name} of a {model.config.model_type} model")
        if kind == "bias" and len(axes) == 2:
            axes = (
                axes[1:] if family.conv1d and axes[0] not in ("vocabulary", "class") else axes[:1]
            )  # heads are no Conv1D
        layer = re.search(r"\.(\d+)\.", name)
        roles = tuple(tuple(re.split(r"[+/]", axis)) for axis in axes)
        yield Named(name, value, int(layer[1]) if layer else None, roles, any("/" in axis for axis in axes))


def uneven_sizes(config: PretrainedConfig) -> dict[str, list[int]]:
    """The sizes that differ from layer to layer (`standalone.modeling_lightgpt2`); empty for a model of plain transformers."""
    return {name: sizes for name, sizes in getattr(config, "lightgpt2", {}).items() if name in ("heads", "ffn")}


def block_sizes(config: PretrainedConfig) -> tuple[list[int], list[int]]:
    """Numbers of attention heads and of neurons of each block."""
    shape, count, uneven = Shape.of(config), config.num_hidden_layers, uneven_sizes(config)
    return uneven.get("heads", [shape.heads] * count), uneven.get("ffn", [shape.ffn] * count)


def block_units(config: PretrainedConfig) -> tuple[list[int], list[int]]:
    """Numbers of each block's heads, those that share keys and values counted as one; and of its neurons."""
    heads, neurons = block_sizes(config)
    return [count // Shape.of(config).groups for count in heads], neurons


def with_block_sizes(config: PretrainedConfig, heads: list[int], ffn: list[int]) -> PretrainedConfig:
    """A copy of a configuration with these numbers of attention heads and neurons.

    It stays one of plain transformers if the family's own settings can say them; else `lightgpt2` does, for
    `models.standalone`.
    """
    shape = Shape.of(config)
    own = {key: value for key, value in getattr(config, "lightgpt2", {}).items() if key not in ("heads", "ffn")}
    # Where heads have their own size, transformers still wants their number to divide the width.
    fits = not family_of(config).heads_share_width and heads[0] and shape.width % heads[0] == 0
    if len({*heads}) == 1 and (heads[0] == shape.heads or fits):
        shape = replace(shape, heads=heads[0])
    else:
        own["heads"] = heads
    if len({*ffn}) == 1 and ffn[0]:
        shape = replace(shape, ffn=ffn[0])
    else:
        own["ffn"] = ffn
    sized = shape.applied(config)
    for name in ("lightgpt2", "auto_map"):  # saving writes them again if they are needed
        sized.__dict__.pop(name, None)
    if own:
        sized.lightgpt2 = own
    return sized
