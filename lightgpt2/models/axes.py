"""The meaning of each axis of each parameter, for slices and sums of importances; and sizes of blocks."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from lightgpt2.models.families import Shape, family_of, stack_paths

__all__ = [
    "Named", "Shape", "attention_of", "block_of", "block_sizes", "block_units", "named_axes", "tensors", "uneven_sizes",
    "unit_names", "with_block_sizes",
]  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A parameter and what its axes stand for."""

    name: str
    value: Tensor
    block: str | None  # by stack and index; None for embeddings, the final norms and the head
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
    """All tensors of a model without adapters, tied ones once; a ValueError if its family does not know one."""
    family = family_of(model)
    known = {**family.axes, "score": ("class", "width")}  # which transformers gives every decoder that classifies
    paths = stack_paths(model)
    for name, value in tensors(model).items():
        path, _, kind = name.rpartition(".")
        axes = next((axes for pattern, axes in known.items() if re.fullmatch(pattern, path)), None)
        if axes is None:
            raise ValueError(f"unknown parameter {name} of a {model.config.model_type} model")
        if kind == "bias" and len(axes) == 2:
            axes = (
                axes[1:] if family.conv1d and axes[0] not in ("vocabulary", "class") else axes[:1]
            )  # heads are no Conv1D
        roles = tuple(tuple(re.split(r"[+/]", axis)) for axis in axes)
        yield Named(name, value, block_of(name, paths), roles, any("/" in axis for axis in axes))


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters of a model by name, tied ones once, and the buffers that lie in its file with them."""
    saved = model.state_dict().keys()
    return dict(model.named_parameters()) | {name: value for name, value in model.named_buffers() if name in saved}


def block_of(name: str, paths: Mapping[str, str]) -> str | None:
    """The block of a parameter by stack and index, from the paths of the stacks."""
    inside = next((path for path in paths if name.startswith(f"{path}.")), None)
    return None if inside is None else f"{paths[inside]}.{name.removeprefix(inside).split('.')[1]}"


def unit_names(counts: Mapping[str, int]) -> list[str]:
    """Name the part of each block: `{"decoder.cross": 2}` gives `decoder.0.cross` and `decoder.1.cross`."""
    names = []
    for place, count in counts.items():
        stack, *part = place.split(".")
        names += [".".join([stack, str(i), *part]) for i in range(count)]
    return names


def attention_of(name: str) -> tuple[str, str]:
    """The block of an attention, and what the roles of its axes begin with: `decoder.3.cross` has `cross_query`."""
    stack, index, *part = name.split(".")
    return f"{stack}.{index}", "cross_" if part else ""


def uneven_sizes(config: PretrainedConfig) -> dict[str, dict[str, list[int]]]:
    """The sizes that differ from block to block (`standalone.modeling_lightgpt2`), by place; none in plain transformers."""
    said = getattr(config, "lightgpt2", {})
    found = {name: said[name] for name in ("heads", "ffn") if name in said}
    one = family_of(config).stack  # whose sizes are a list
    return {name: sizes if isinstance(sizes, dict) else {one: sizes} for name, sizes in found.items()}


def block_sizes(config: PretrainedConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of heads of each attention, and of neurons of each block, by name: `decoder.3`, `decoder.3.cross`."""
    shape, family, uneven = Shape.of(config), family_of(config), uneven_sizes(config)
    heads = _sizes(family.attentions(config), uneven.get("heads"), shape.heads)
    return heads, _sizes(family.depths(config), uneven.get("ffn"), shape.ffn)


def _sizes(counts: Mapping[str, int], uneven: Mapping[str, list[int]] | None, same: int) -> dict[str, int]:
    sizes = uneven or {place: [same] * count for place, count in counts.items()}
    flat = [size for place in counts for size in sizes[place]]
    return dict(zip(unit_names(counts), flat, strict=True))


def block_units(config: PretrainedConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of each attention's heads, those that share keys and values counted as one; and of each block's neurons."""
    heads, neurons = block_sizes(config)
    return {name: count // Shape.of(config).groups for name, count in heads.items()}, neurons


def with_block_sizes(config: PretrainedConfig, heads: Mapping[str, int], ffn: Mapping[str, int]) -> PretrainedConfig:
    """A copy of a configuration with these numbers of attention heads and neurons, by name as `block_sizes` gives them.

    It stays one of plain transformers if the family's own settings can say them; else `lightgpt2` does, for
    `models.standalone`.
    """
    family, shape = family_of(config), Shape.of(config)
    own = {key: value for key, value in getattr(config, "lightgpt2", {}).items() if key not in ("heads", "ffn")}
    (count, *other_counts), (neurons, *other_neurons) = ({*sizes.values()} for sizes in (heads, ffn))
    # Where heads have their own size, transformers still wants their number to divide the width. Where they share something
    # by their place, those that stay may have other places in each block.
    fits = not (family.heads_share_width or family.heads_align) and count and shape.width % count == 0
    if not other_counts and (count == shape.heads or fits):
        shape = replace(shape, heads=count)
    else:
        own["heads"] = _in_places(family.attentions(config), heads)
    if not other_neurons and neurons:
        shape = replace(shape, ffn=neurons)
    else:
        own["ffn"] = _in_places(family.depths(config), ffn)
    sized = shape.applied(config)
    for name in ("lightgpt2", "auto_map"):  # saving writes them again if they are needed
        sized.__dict__.pop(name, None)
    if own:
        sized.lightgpt2 = own
    return sized


def _in_places(counts: Mapping[str, int], sizes: Mapping[str, int]) -> list[int] | dict[str, list[int]]:
    """Named sizes as `config.lightgpt2` has them: of one stack a list."""
    found = {place: [sizes[name] for name in unit_names({place: count})] for place, count in counts.items()}
    return found if len(found) > 1 else next(iter(found.values()))
