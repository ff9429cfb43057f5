"""Find the tensors of a model that can be pruned, and count zeros in a saved one."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.models.families import block_linears, blocks
from lightgpt2.models.standalone import stored_weights

_LORA = re.compile(r"\.lora_[AB]\.")


def prunable(model: PreTrainedModel, targets: str, key: str, whole: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The trainable matrices that `targets` names, in the model's order; never embeddings, norms, biases or the head.

    `targets` is `lora` (the adapters' matrices), `linear` (the weights of all linear layers in the blocks), or a regular
    expression that is searched for in the full names of the blocks' matrices; also in the names that PEFT had for the modules
    `whole`, which it trained whole. A `UserError` names `key` if there is none.
    """
    every = (parameter for block in blocks(model).values() for parameter in block.parameters())
    inside = {id(p) for p in every if p.requires_grad and p.ndim == 2}
    matrices = {name: p for name, p in model.named_parameters() if id(p) in inside}
    if targets == "lora":
        found = {name: p for name, p in matrices.items() if _LORA.search(name)}
    elif targets == "linear":
        linear = {f"{name}.weight" for name in block_linears(model)}
        found = {name: p for name, p in matrices.items() if name in linear}
    else:
        try:
            names = {name: (name, _name_beside_adapters(name, whole)) for name in matrices}
            found = {name: p for name, p in matrices.items() if any(re.search(targets, each) for each in names[name])}
        except re.error as error:
            raise UserError(f"{key}: {targets!r} is not a regular expression ({error}); correct it") from error
    if not found:
        fix = f"give lora, linear, or a regular expression on names such as {next(iter(matrices), 'none')}"
        raise UserError(f"{key}: {targets!r} matches no trainable matrix of this model; {fix}")
    return found


def _name_beside_adapters(name: str, whole: Sequence[str]) -> str:
    """The name that a weight had in PEFT's model, if its module was trained whole there."""
    module, _, own = name.rpartition(".")
    return f"{module}.modules_to_save.default.{own}" if module.endswith(tuple(whole)) else name


def saved_zeros(file: Path, names: Iterable[str]) -> int:
    """The number of zeros among the named weights of a safetensors file; integers times their scales."""
    weights = stored_weights.read(file)
    return sum(weights[name].numel() - int(weights[name].count_nonzero()) for name in names)
