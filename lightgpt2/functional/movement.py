"""Movement pruning: the units of the weights that stay are learned with the weights (Sanh et al. 2020, arXiv:2005.07683).

    W' = M(S) * W        dL/dS = sum over the unit of dL/dW' * W        (eq. 3-6, straight through M)

M is 1 where a unit stays and 0 where it goes. A score S that rises belongs to weights that move away from zero. Units are
single weights, blocks of them, or whole heads and neurons (Lagunas et al. 2021, arXiv:2109.04838).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightgpt2.functional.pruning import Masks, keep_masks

Scope = Literal["global", "layer"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: Tensor) -> Tensor:
        return keep.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(scores: Tensor, keep: Tensor) -> Tensor:
    """The boolean mask as numbers, whose gradient goes to the scores, of the same shape, as it is."""
    return _StraightThrough.apply(scores, keep)  # type: ignore[no-untyped-call]


def opened(gate: Tensor) -> Tensor:
    """A gate that lets everything through and still passes its gradient on."""
    return gate - gate.detach() + 1


def spread_channels(gate: Tensor, repeats: Sequence[int]) -> Tensor:
    """Spread the gates of units `[units]` over their channels along an axis, section by section, `[sum(units * repeats)]`.

    `repeats` are the channels that a unit has in each of the sections of the axis.
    """
    return torch.cat([gate.repeat_interleave(count) for count in repeats])


def total_channels(values: Tensor, repeats: Sequence[int]) -> Tensor:
    """Sum values over each unit's channels, `[units]`: the transpose of `spread_channels`."""
    units = values.numel() // sum(repeats)
    sections = values.split([units * count for count in repeats])
    return torch.stack([part.view(units, -1).sum(dim=1) for part in sections]).sum(dim=0)


def spread_blocks(gate: Tensor, shape: Sequence[int], block: int) -> Tensor:
    """Spread the gates of blocks `[ceil(rows / block), ceil(columns / block)]` over the weights of a matrix of this shape."""
    if block == 1:
        return gate
    rows, columns = shape
    return gate.repeat_interleave(block, dim=0)[:rows].repeat_interleave(block, dim=1)[:, :columns]


def total_blocks(values: Tensor, block: int) -> Tensor:
    """The sum of a matrix's values over each block: the transpose of `spread_blocks`."""
    if block == 1:
        return values
    rows, columns = (-(-size // block) for size in values.shape)
    padded = values.new_zeros(rows * block, columns * block)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded.view(rows, block, columns, block).sum(dim=(1, 3))


class Units(nn.Module):
    """The units of one kind: their scores, which start at 0, and which of them stay.

    Args:
        shapes: Shape of the scores by the name of the layer or matrix that the units belong to.
        trained: Whether the scores are learned.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], trained: bool) -> None:
        super().__init__()
        self.names = list(shapes)
        self.scores = nn.ParameterDict(
            {_key(name): nn.Parameter(torch.zeros(*shape), requires_grad=trained) for name, shape in shapes.items()}
        )
        self.masks = Masks()
        self.masks.set({name: torch.ones(*shape, dtype=torch.bool) for name, shape in shapes.items()})

    def gate(self, name: str) -> Tensor:
        """1 for each unit that stays and 0 for the others, differentiable with respect to the scores."""
        return straight_through(self.scores[_key(name)], self.keep(name))

    def keep(self, name: str) -> Tensor:
        """The gate as a boolean mask."""
        return self.masks.get_buffer(_key(name))

    @torch.no_grad()
    def set_scores(self, scores: Mapping[str, Tensor]) -> None:
        """Sets scores that are not learned."""
        for name, value in scores.items():
            self.scores[_key(name)].copy_(value)

    def decide(
        self, amount: float, scope: Scope, regrow: bool, left: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Takes out the units with the lowest scores (top-v, eq. 3).

        Args:
            amount: Share of the units that goes, in [0, 1).
            scope: Whether that is of all units or of each layer's.
            regrow: Whether units that went may come back.
            left: Masks by name, false where a unit is zero already; those go before any other.

        Returns:
            `flips`: the number of units that changed sides; `threshold`: the lowest score that stayed.
        """
        scores = {name: self.scores[_key(name)].detach() for name in self.names}
        groups = [scores] if scope == "global" else [{name: value} for name, value in scores.items()]
        first = dict(left or {})
        if not regrow:
            first = {n: self.keep(n) & first[n] if n in first else self.keep(n) for n in self.names}
        keep = {name: mask for group in groups for name, mask in keep_masks(group, amount, first).items()}
        return self._take(keep, lambda name: scores[name])

    def decide_above(self, threshold: float, regrow: bool) -> dict[str, float]:
        """Takes out units whose score has a sigmoid not above a threshold in [0, 1) (soft movement pruning, section 3).

        Returns:
            As `decide`.
        """
        values = {name: self.scores[_key(name)].detach().sigmoid() for name in self.names}
        keep = {name: (value > threshold) & (self.keep(name) | regrow) for name, value in values.items()}
        return self._take(keep, lambda name: values[name])

    def _take(self, keep: Mapping[str, Tensor], values: Callable[[str], Tensor]) -> dict[str, float]:
        flips = sum(int((self.keep(name) != mask).sum()) for name, mask in keep.items())
        self.masks.set(keep)
        stayed = [values(name)[mask] for name, mask in keep.items() if mask.any()]
        lowest = min((float(part.min()) for part in stayed), default=float("inf"))
        return {"flips": float(flips), "threshold": lowest}

    def sparsity(self) -> dict[str, float]:
        """The share of units that is out: of all, and of each layer or matrix."""
        gone = {f"sparsity/{name}": 1 - float(self.keep(name).float().mean()) for name in self.names}
        sizes = [self.keep(name).numel() for name in self.names]
        total = sum(share * size for share, size in zip(gone.values(), sizes, strict=True)) / sum(sizes)
        return {"sparsity": total, **gone}

    def openness(self) -> Tensor:
        """The mean of the sigmoid of the scores: what an L1 term keeps small (soft movement pruning, eq. 7)."""
        flat = torch.cat([score.flatten() for score in self.scores.values()])
        return flat.sigmoid().mean()


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's own name may hold no dot
