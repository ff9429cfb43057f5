"""Map weights to units: heads and neurons by the roles of axes, blocks by their place in a matrix."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightgpt2.functional.movement import Units, opened, spread_blocks, spread_channels, total_blocks, total_channels
from lightgpt2.models.axes import Named, Shape, named_axes
from lightgpt2.models.families import block_linears, compute_with, family_of

Granularity = Literal["structured", "block", "weight"]
Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")


@dataclass(frozen=True)
class ChannelMap:
    """The heads or neurons of a parameter: each has some channels of one axis.

    A unit is masked where the rest of the model reads it. That is enough for the function to be that of a model without it,
    bias and all; and with everything else of a unit zero as well no gradient would ever reach its score again.
    """

    kind: Kind
    name: str  # of the layer in `Units`
    axis: int  # of the channels
    repeats: tuple[int, ...]  # channels of a unit in each section of the axis
    reads: bool  # True if the rest of the model reads the units through this parameter

    def shape(self, value: Tensor) -> tuple[int, ...]:
        """The shape of the scores."""
        return (value.shape[self.axis] // sum(self.repeats),)

    def gated(self, value: Tensor, gate: Tensor) -> Tensor:
        """The parameter times the gate of its units."""
        channels = spread_channels(gate if self.reads else opened(gate), self.repeats)
        return value * channels.view([-1 if axis == self.axis else 1 for axis in range(value.ndim)])

    def total(self, values: Tensor) -> Tensor:
        """The sum over each unit of values that are shaped like the parameter."""
        others = [axis for axis in range(values.ndim) if axis != self.axis]
        return total_channels(values.sum(dim=others) if others else values, self.repeats)


@dataclass(frozen=True)
class BlockMap:
    """The blocks of weights of a matrix; single weights if a block has one row and column."""

    kind: Kind
    name: str  # of the matrix, also in `Units`
    block: int  # rows and columns of a block

    def shape(self, value: Tensor) -> tuple[int, ...]:
        return tuple(-(-size // self.block) for size in value.shape)

    def gated(self, value: Tensor, gate: Tensor) -> Tensor:
        return value * spread_blocks(gate, value.shape, self.block)

    def total(self, values: Tensor) -> Tensor:
        return total_blocks(values, self.block)


UnitMap = Mapping[str, ChannelMap | BlockMap]  # by the names of parameters


def unit_map(model: PreTrainedModel, granularity: Granularity, block: int) -> UnitMap:
    """Map the weights of the blocks' linear layers to units; embeddings, norms and the head belong to none.

    A head of keys and values goes with all the queries that read it. `block` is the rows and columns of a block.
    """
    shape, linears, inputs = Shape.of(model.config), block_linears(model), 0 if family_of(model).conv1d else 1
    found: dict[str, ChannelMap | BlockMap] = {}
    for named in named_axes(model):
        if named.name.rpartition(".")[0] not in linears:
            continue
        if granularity == "structured":
            if channels := _channel_map(named, shape, inputs):
                found[named.name] = channels
        elif named.value.ndim == 2:
            kind: Kind = "ffn" if any("ffn" in roles for roles in named.axes) else "attention"
            found[named.name] = BlockMap(kind, named.name, block if granularity == "block" else 1)
    return found


def _channel_map(named: Named, shape: Shape, inputs: int) -> ChannelMap | None:
    """None for the bias behind a layer's heads or neurons, which stays; `inputs` is the axis of a weight's inputs."""
    channels = {"query": shape.groups * shape.head, "key": shape.head, "value": shape.head, "ffn": 1}
    channels["context"] = channels["query"]
    for axis, roles in enumerate(named.axes):
        if roles != ("width",):
            kind: Kind = "ffn" if "ffn" in roles else "attention"
            reads = named.value.ndim == 2 and axis == inputs
            repeats = tuple(channels[role.removeprefix("cross_")] for role in roles)
            name = f"{named.block}.cross" if roles[0].startswith("cross_") else str(named.block)
            return ChannelMap(kind, name, axis, (sum(repeats),) if named.alternate else repeats, reads)
    return None


def make_units(model: PreTrainedModel, mapped: UnitMap, trained: bool) -> nn.ModuleDict:
    """The `Units` of a model by kind, all of which stay; their scores learn if `trained`."""
    parameters = dict(model.named_parameters())
    shapes: dict[str, dict[str, tuple[int, ...]]] = {kind: {} for kind in KINDS}
    for name, part in mapped.items():
        shapes[part.kind][part.name] = part.shape(parameters[name])
    return nn.ModuleDict({kind: Units(found, trained) for kind, found in shapes.items() if found})


def gate_weights(model: PreTrainedModel, mapped: UnitMap, units: nn.ModuleDict) -> None:
    """Let a model compute with its weights times the gates of their units, in training and evaluation alike."""

    def gated(path: str, name: str, value: Tensor) -> Tensor:
        if (part := mapped.get(f"{path}.{name}")) is None:
            return value
        of_kind = units[part.kind]
        assert isinstance(of_kind, Units)
        return part.gated(value, of_kind.gate(part.name))

    for path in {name.rpartition(".")[0]: None for name in mapped}:
        compute_with(model.get_submodule(path), partial(gated, path))


@torch.no_grad()
def magnitudes(model: PreTrainedModel, mapped: UnitMap) -> dict[Kind, dict[str, Tensor]]:
    """The norm of each unit's weights, over all its parameters: the control that learns no scores."""
    parameters = dict(model.named_parameters())
    squares: Mapping[Kind, dict[str, Tensor]] = defaultdict(dict)
    for name, part in mapped.items():
        total = part.total(parameters[name].detach().float().square())
        squares[part.kind][part.name] = squares[part.kind].get(part.name, torch.zeros_like(total)) + total
    return {kind: {name: value.sqrt() for name, value in found.items()} for kind, found in squares.items()}
