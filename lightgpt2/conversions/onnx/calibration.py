"""What the inputs of layers are like: how large each one is, and whether they are too uneven for one scale.

A few inputs of a few tokens are thousands of times as large as the others (massive activations: Sun et al. 2024,
arXiv:2402.17762): rounded to 8 bits with one scale for all, nothing is left of those. Which layers they reach is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightgpt2.models.families import block_linears

BOUND = 0.05  # relative error of a token's outputs, in the median, up to which one scale will do


def rounded_at_once(x: Tensor) -> Tensor:
    """Numbers as `DynamicQuantizeLinear` rounds them: 256 steps from the least (or zero) to the greatest (or zero)."""
    low, high = x.min().clamp_max(0), x.max().clamp_min(0)
    step = ((high - low) / 255).clamp_min(torch.finfo(x.dtype).tiny)
    zero = (-low / step).round()
    return ((x / step + zero).round().clamp(0, 255) - zero) * step


@dataclass(frozen=True)
class Inputs:
    """The inputs of a layer."""

    error: (
        float  # by how much rounding them to 8 bits with one scale changes a token's outputs (relative, L2), the median
    )
    power: Tensor  # the mean square of each input [I]


@torch.no_grad()
def measure_inputs(model: PreTrainedModel, batches: list[Tensor]) -> dict[str, Inputs]:
    """The inputs of each linear layer of the blocks, and of the vocabulary head, by the layers' names.

    Args:
        model: The model in FP32, in eval mode.
        batches: Token ids `[1, T]`.
    """
    head: Any = model.get_output_embeddings()
    layers = block_linears(model) | {name: module for name, module in model.named_modules() if module is head}
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in layers}
    handles = [module.register_forward_hook(_noting(*found[name])) for name, module in layers.items()]
    try:
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(ids.numel() for ids in batches)
    return {
        name: Inputs(float(torch.cat(errors).median()), torch.stack(squares).sum(dim=0) / tokens)
        for name, (errors, squares) in found.items()
    }


def _noting(errors: list[Tensor], squares: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        x, weight = args[0].flatten(0, -2), module.weight
        columns: Any = weight if isinstance(module, Conv1D) else weight.T
        exact, off = x @ columns, (rounded_at_once(x) - x) @ columns
        errors.append(off.norm(dim=1) / exact.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny))
        squares.append(x.square().sum(dim=0))

    return hook
