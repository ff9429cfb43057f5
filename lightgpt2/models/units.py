"""Which weights belong to which unit: heads and neurons by the table of axes, blocks by their place in a matrix."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightgpt2.functional.movement import (
    Units,
    opened,
    spread_blocks,
    spread_channels,
    total_blocks,
    total_channels,
)
from lightgpt2.models.axes import Named, Shape, named_axes
from lightgpt2.models.families import block_linears, compute_with

Granularity = Literal["structured", "block", "weight"]
Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")


@dataclass(frozen=True)
class ChannelGrip:
    """How heads or neurons hold a parameter: each some channels of one axis.

    A unit is taken out where the rest of the model reads it. That is enough for the function to be that of a model without it,
    bias and all; and with everything else of a unit zero as well no gradient would ever reach its score again.

    Attributes:
        kind: Heads (`attention`) or neurons (`ffn`).
        name: What `Units` call the layer.
        axis: The axis that the channels are on.
        repeats: Channels that a unit has in each section of the axis.
        reads: Whether the parameter is what the rest of the model reads the units by.
    """

    kind: Kind
    name: str
    axis: int
    repeats: tuple[int, ...]
    reads: bool

    def shape(self, value: Tensor) -> tuple[int, ...]:
        """Shape of the scores."""
        return (value.shape[self.axis] // sum(self.repeats),)

    def gated(self, value: Tensor, gate: Tensor) -> Tensor:
        """The parameter times its units' gate."""
        channels = spread_channels(gate if self.reads else opened(gate), self.repeats)
        return value * channels.view([-1 if axis == self.axis else 1 for axis in range(value.ndim)])

    def total(self, values: Tensor) -> Tensor:
        """The sum over each unit of values that are shaped like the parameter."""
        others = [axis for axis in range(values.ndim) if axis != self.axis]
        return total_channels(values.sum(dim=others) if others else values, self.repeats)


@dataclass(frozen=True)
class BlockGrip:
    """How blocks of weights hold a matrix; of one weight each, where a block has one row and column.

    Attributes:
        kind: What the matrix is part of.
        name: What `Units` call the matrix.
        block: Rows and columns of a block.
    """

    kind: Kind
    name: str
    block: int

    def shape(self, value: Tensor) -> tuple[int, ...]:
        """Shape of the scores."""
        return tuple(-(-size // self.block) for size in value.shape)

    def gated(self, value: Tensor, gate: Tensor) -> Tensor:
        """The matrix times its blocks' gate."""
        return value * spread_blocks(gate, value.shape, self.block)

    def total(self, values: Tensor) -> Tensor:
        """The sum over each block of values that are shaped like the matrix."""
        return total_blocks(values, self.block)


Grips = dict[str, ChannelGrip | BlockGrip]


def grips(model: PreTrainedModel, granularity: Granularity, block: int) -> Grips:
    """What of a model units hold, by the parameters' names: of the blocks' linear layers, never embeddings, norms or the head.

    Args:
        model: A decoder of a supported family.
        granularity: What a unit is. A head of keys and values goes with all the queries that read it.
        block: Rows and columns of a block.
    """
    shape, linears = Shape.of(model.config), block_linears(model)
    found: Grips = {}
    for named in named_axes(model):
        module = linears.get(named.name.rpartition(".")[0])
        if module is None:
            continue
        if granularity != "structured":
            if named.value.ndim == 2:
                kind: Kind = "ffn" if ("ffn",) in named.axes else "attention"
                found[named.name] = BlockGrip(kind, named.name, block if granularity == "block" else 1)
        elif grip := _channel_grip(named, shape, isinstance(module, nn.Linear)):
            found[named.name] = grip
    return found


def _channel_grip(named: Named, shape: Shape, is_linear: bool) -> ChannelGrip | None:
    """None for the bias behind a layer's heads or neurons, which stays."""
    channels = {"query": shape.groups * shape.head, "key": shape.head, "value": shape.head, "ffn": 1}
    channels["context"] = channels["query"]
    for axis, roles in enumerate(named.axes):
        if roles != ("width",):
            inputs = 1 if is_linear else 0  # a Conv1D's weight is [inputs, outputs], a Linear's the other way round
            reads = named.value.ndim == 2 and axis == inputs
            kind: Kind = "ffn" if roles == ("ffn",) else "attention"
            return ChannelGrip(kind, str(named.layer), axis, tuple(channels[role] for role in roles), reads)
    return None


def make_units(model: PreTrainedModel, held: Grips, trained: bool) -> nn.ModuleDict:
    """Units of both kinds for a model, all of which stay.

    Args:
        model: The model.
        held: What units hold of it.
        trained: Whether the scores are learnt.

    Returns:
        `Units` by kind.
    """
    parameters = dict(model.named_parameters())
    shapes: dict[str, dict[str, tuple[int, ...]]] = {kind: {} for kind in KINDS}
    for name, grip in held.items():
        shapes[grip.kind][grip.name] = grip.shape(parameters[name])
    return nn.ModuleDict({kind: Units(found, trained) for kind, found in shapes.items() if found})


def gate_weights(model: PreTrainedModel, held: Grips, units: nn.ModuleDict) -> None:
    """Makes a model compute with its weights times the gates of their units, in training and evaluation alike.

    Args:
        model: The model; changed in place. Its parameters stay what they are.
        held: What units hold of it.
        units: The units by kind.
    """

    def gating(path: str) -> None:
        def substitute(name: str, value: Tensor) -> Tensor:
            grip = held.get(f"{path}.{name}")
            if grip is None:
                return value
            of_kind = units[grip.kind]
            assert isinstance(of_kind, Units)
            return grip.gated(value, of_kind.gate(grip.name))

        compute_with(model.get_submodule(path), substitute)

    for path in {name.rpartition(".")[0]: None for name in held}:
        gating(path)


@torch.no_grad()
def magnitudes(model: PreTrainedModel, held: Grips) -> dict[Kind, dict[str, Tensor]]:
    """The norm of each unit's weights, over all parameters that it holds: the control that learns no scores.

    Args:
        model: The model.
        held: What units hold of it.
    """
    parameters = dict(model.named_parameters())
    squares: Mapping[Kind, dict[str, Tensor]] = defaultdict(dict)
    for name, grip in held.items():
        total = grip.total(parameters[name].detach().float().square())
        squares[grip.kind][grip.name] = squares[grip.kind].get(grip.name, torch.zeros_like(total)) + total
    return {kind: {name: value.sqrt() for name, value in found.items()} for kind, found in squares.items()}
