"""The architectures that are supported, one in each file, and what is the same for all of them.

A new one is a file here with a subclass of `Family`; everything else asks `family_of`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightgpt2.errors import UserError
from lightgpt2.models.architectures import CAUSAL_LM, CLASSIFICATION, SEQ2SEQ, predicts
from lightgpt2.models.families.base import (
    FAMILIES,
    Family,
    Head,
    Shape,
    check_family,
    class_for,
    family_of,
)
from lightgpt2.models.families.encoder import Encoder
from lightgpt2.models.families.encoder_decoder import EncoderDecoder
from lightgpt2.models.families.substitution import compute_with

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

_GENERATING = {name: family for name, family in FAMILIES.items() if CAUSAL_LM in family.auto_classes}
DECODERS = {name: family for name, family in _GENERATING.items() if not family.recurrent}  # transformers
RECURRENT = {name: family for name, family in _GENERATING.items() if family.recurrent}
ENCODERS = {name: family for name, family in FAMILIES.items() if isinstance(family, Encoder)}
ENCODER_DECODERS = {
    name: family for name, family in FAMILIES.items() if isinstance(family, EncoderDecoder)
}  # by model type
LINEAR = (nn.Linear, Conv1D)  # Conv1D is not an nn.Linear: half of the public tools pass it over

__all__ = [
    "CAUSAL_LM", "CLASSIFICATION", "DECODERS", "ENCODERS", "ENCODER_DECODERS", "FAMILIES", "LINEAR", "RECURRENT", "SEQ2SEQ",
    "Encoder", "EncoderDecoder", "Family", "Head", "Shape", "block_linears", "blocks", "check_family", "check_head",
    "class_for", "compute_with", "family_of", "head", "is_tied", "predicts", "recorded_states", "stack_paths",
    "unquantized_head",
]  # fmt: skip


def blocks(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The transformer blocks in order, by stack and index: `decoder.3`."""
    stacks = family_of(model).stacks(model).items()
    return {f"{stack}.{index}": block for stack, found in stacks for index, block in enumerate(found)}


def stack_paths(model: PreTrainedModel) -> dict[str, str]:
    """The stacks by the path of their list of blocks in the model."""
    stacks = family_of(model).stacks(model).items()
    return {path: stack for stack, found in stacks for path, module in model.named_modules() if module is found}


def head(model: PreTrainedModel) -> Head:
    """Weight, bias and scale of the head, as it computes with them."""
    return family_of(model).head(model)


def is_tied(model: PreTrainedModel) -> bool:
    """True if embedding and vocabulary head are one tensor."""
    found = model.get_output_embeddings()
    return found is not None and found.weight is model.get_input_embeddings().weight


def unquantized_head(model: PreTrainedModel) -> dict[str, str]:
    """The names of the head's linear layers, and why they stay in full precision where the blocks' layers do not."""
    if (found := model.get_output_embeddings()) is not None:
        name = next(name for name, module in model.named_modules() if module is found)
        return {name: "tied to the embedding" if is_tied(model) else "the vocabulary head"}
    parts = family_of(model).head_parts
    inside = (name for name, module in model.named_modules() if name.startswith(parts) and isinstance(module, LINEAR))
    return dict.fromkeys(inside, "the classification head")


def block_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the blocks by their names in the model, in its order; those of adapters are not among them."""
    every = (module for block in blocks(model).values() for module in block.modules())
    inside = {id(module) for module in every if isinstance(module, LINEAR)}
    return {name: m for name, m in model.named_modules() if id(m) in inside and ".lora_" not in name}


@contextmanager
def recorded_states(model: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the hidden states `[B, T, D]` of these names while the model runs inside the context.

    `decoder.0` is what the first block of that stack reads, `decoder.i` the output of its i-th block, all before the final
    norm. (The last element of transformers' own `hidden_states` is after it; a pair of layers must compare like with like.)
    """
    states: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if name.endswith(".0"):
            output = args or kwargs["hidden_states"]
        states[name] = output[0] if isinstance(output, tuple) else output

    stacks = family_of(model).stacks(model)
    with ExitStack() as hooks:
        for name in names:
            stack, _, index = name.rpartition(".")
            block = stacks[stack][max(int(index) - 1, 0)]
            hooks.enter_context(block.register_forward_hook(partial(keep, name), with_kwargs=True))
        yield states


@torch.no_grad()
def check_finite(model: PreTrainedModel, key: str) -> None:
    """Raise a `UserError` if weights are NaN or infinite: no figure of such a model means anything."""
    weights = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        what = f"{len(broken)} of {len(weights)} weights hold values that are not finite, first {broken[0]}"
        raise UserError(f"{key}: {what}; the model is damaged, fetch it or make it again")


@torch.no_grad()
def check_head(model: PreTrainedModel, key: str) -> None:
    """Raise a `UserError` if the logits of the first tokens are not what `head` says.

    The chunked loss forms logits itself; a family that caps them, for example, would be trained wrongly.
    """
    # Several: the embedding of one that pads may be zero.
    ids = torch.arange(min(3, model.config.vocab_size), device=model.device)[None]
    training = model.training
    model.eval()
    try:
        inputs = dict.fromkeys(family_of(model).text_inputs, ids)
        logits = model(**inputs, use_cache=False).logits
    except RuntimeError as error:  # a shape that transformers builds but cannot run
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}: this model cannot run ({reason}); check its configuration") from error
    hidden = family_of(model).final_states(model, **inputs)
    model.train(training)
    if not logits.isfinite().all():
        raise UserError(f"{key}: the model's logits are not finite; it is damaged, fetch it or make it again")
    weight, bias, scale = head(model)
    expected = scale * (hidden @ weight.T) + (0 if bias is None else bias)
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max() + 1)):
        said = "the logits of this model are not scale * hidden @ weight.T + bias; it is not supported"
        raise UserError(f"{key}: {said}")
