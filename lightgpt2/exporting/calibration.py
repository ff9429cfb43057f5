"""Which layers' inputs are too uneven to be rounded to 8 bits with one scale for all of them.

A few inputs of a few tokens are thousands of times as large as the others (massive activations: Sun et al. 2024,
arXiv:2402.17762): with one scale for all, nothing is left of those. Which layers they reach is measured.
"""

from collections.abc import Callable
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


@torch.no_grad()
def input_errors(model: PreTrainedModel, batches: list[Tensor]) -> dict[str, float]:
    """How much rounding a layer's inputs with one scale changes its outputs.

    Args:
        model: The model in FP32, in eval mode.
        batches: Token ids `[1, T]`.

    Returns:
        For each linear layer of the blocks, and the vocabulary head, by name: the relative error (L2) of a token's outputs, the
        median over all tokens.
    """
    found: dict[str, list[Tensor]] = {}
    layers = block_linears(model)
    head: Any = model.get_output_embeddings()
    layers |= {name: module for name, module in model.named_modules() if module is head}
    handles = [module.register_forward_hook(_noting(found.setdefault(name, []))) for name, module in layers.items()]
    try:
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(torch.cat(errors).median()) for name, errors in found.items()}


def _noting(errors: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        x = args[0].flatten(0, -2)
        weight: Any = module.weight
        columns = weight if isinstance(module, Conv1D) else weight.T
        exact = x @ columns
        off = (rounded_at_once(x) - x) @ columns
        errors.append(off.norm(dim=1) / exact.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny))

    return hook
