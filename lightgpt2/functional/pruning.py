"""Global unstructured pruning: which weights stay, over many tensors at once.

Magnitude pruning with one threshold over all tensors (Han et al. 2015, arXiv:1506.02626), and random pruning as its control.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


def magnitudes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The importance of each weight under the L1 criterion: its absolute value, in FP32."""
    return {name: tensor.detach().float().abs() for name, tensor in tensors.items()}


def random_scores(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Importances from a random generator: equal ones for equal seeds and shapes, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    # Lightning sets up a model with its device as the default.
    return {name: torch.rand(tensor.shape, generator=generator, device="cpu") for name, tensor in tensors.items()}


def keep_masks(
    scores: Mapping[str, Tensor], amount: float, gone: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Masks under which exactly `round(amount * n)` of all `n` weights go, those with the lowest scores.

    (More only if more went before.) Of equal scores the first goes first, so the result depends on the arguments alone.

    Args:
        scores: Importance of each weight by tensor name.
        amount: Share that goes, in [0, 1).
        gone: Masks of weights that went before; those go again before any other.

    Returns:
        A boolean tensor for each name, true where the weight stays, on the device of its scores.

    Raises:
        ValueError: `amount` is outside [0, 1).
    """
    if not 0 <= amount < 1:
        raise ValueError(f"an amount of {amount} is outside [0, 1)")
    ranked = {
        name: s if not gone or name not in gone else s.masked_fill(~gone[name].to(s.device), -torch.inf)
        for name, s in scores.items()
    }
    flat = torch.cat([s.flatten() for s in ranked.values()])
    count = max(round(amount * flat.numel()), int(flat.isneginf().sum()))
    keep = torch.ones_like(flat, dtype=torch.bool)
    if count:
        threshold = flat.kthvalue(count).values
        below = flat < threshold
        ties = (flat == threshold).nonzero().squeeze(1)[: count - int(below.sum())]
        keep[below] = False
        keep[ties] = False
    parts = keep.split([s.numel() for s in ranked.values()])
    return {name: part.view_as(s).clone() for (name, s), part in zip(ranked.items(), parts, strict=True)}


class Masks(nn.Module):
    """Boolean masks of a model's parameters, in its checkpoints as buffers; true where a weight stays."""

    def __len__(self) -> int:
        return len(self._buffers)

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Each masked parameter's name with its mask."""
        return ((key.replace("/", "."), cast(Tensor, mask)) for key, mask in self._buffers.items())

    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Replaces the masks of the named parameters."""
        for name, mask in masks.items():
            self._buffers[name.replace(".", "/")] = mask  # a buffer's own name may hold no dot

    def allocate(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Makes room for the masks that a state dict is about to bring, under this prefix."""
        for key, value in state_dict.items():
            if key.startswith(prefix):
                self._buffers[key.removeprefix(prefix)] = torch.ones_like(value)

    @torch.no_grad()
    def weights_(self, model: nn.Module) -> None:
        """Sets the model's masked weights to zero."""
        for name, mask in self.items():
            model.get_parameter(name).masked_fill_(~mask, 0)

    @torch.no_grad()
    def gradients_(self, model: nn.Module) -> None:
        """Sets the gradients of the model's masked weights to zero."""
        for name, mask in self.items():
            if (gradient := model.get_parameter(name).grad) is not None:
                gradient.masked_fill_(~mask, 0)

    def counts(self, names: Iterable[str] | None = None) -> tuple[int, int]:
        """The number of weights under masks, of all or the named parameters, and of those that are zero for it."""
        chosen = None if names is None else set(names)
        sizes = [(m.numel(), int(m.count_nonzero())) for name, m in self.items() if chosen is None or name in chosen]
        return sum(n for n, _ in sizes), sum(n - kept for n, kept in sizes)
