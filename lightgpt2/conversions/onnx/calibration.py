"""What the inputs of layers are like: how large each one is, and whether they are too uneven for one scale.

A few inputs of a few tokens are thousands of times as large as the others (massive activations: Sun et al. 2024,
arXiv:2402.17762): rounded to 8 bits with one scale for all, nothing is left of those. Which layers they reach is measured.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightgpt2.conversions.onnx.weights import Form
from lightgpt2.models.families import block_linears
from lightgpt2.models.standalone import stored_weights

BOUND = 0.05  # relative error of a token's outputs, in the median, up to which one scale will do


def rounded_at_once(x: Tensor) -> Tensor:
    """Numbers as `DynamicQuantizeLinear` rounds them: 256 steps from the least (or zero) to the greatest (or zero)."""
    low, high = x.min().clamp_max(0), x.max().clamp_min(0)
    step = ((high - low) / 255).clamp_min(torch.finfo(x.dtype).tiny)
    zero = (-low / step).round()
    return ((x / step + zero).round().clamp(0, 255) - zero) * step


def rounded_by_tokens(x: Tensor) -> Tensor:
    """Numbers as `int8-tokens` rounds them."""
    return stored_weights.round_inputs(None, (x,))[0]


class Inputs(NamedTuple):
    """The inputs of a layer."""

    error: float  # by how much rounding them changes a token's outputs (relative, L2), the median
    power: Tensor  # the mean square of each input [I]


@torch.no_grad()
def measure_inputs(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], form: Form = "int8"
) -> dict[str, Inputs]:
    """The inputs of the linear layers of the blocks and the vocabulary head that are used, by name; of single texts.

    The model is in FP32, in eval mode. `form` says how the inputs would be rounded.
    """
    rounded = rounded_by_tokens if form == "int8-tokens" else rounded_at_once
    head: Any = model.get_output_embeddings()
    layers = block_linears(model) | {name: module for name, module in model.named_modules() if module is head}
    errors, squares = defaultdict[str, list[Tensor]](list), defaultdict[str, list[Tensor]](list)
    tokens = Counter[str]()

    def note(name: str, module: Any, args: Any, output: Any) -> None:
        x, weight = args[0].flatten(0, -2), module.weight
        columns = weight if isinstance(module, Conv1D) else weight.T
        exact, off = x @ columns, (rounded(x) - x) @ columns
        errors[name].append(off.norm(dim=1) / exact.norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny))
        squares[name].append(x.square().sum(dim=0))
        tokens[name] += len(x)

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        for batch in batches:
            model(**batch, use_cache=False)
    return {
        name: Inputs(float(torch.cat(errors[name]).median()), torch.stack(squares[name]).sum(dim=0) / tokens[name])
        for name in layers
        if name in errors
    }
