"""Find the tensors of a model that can be pruned, and count zeros in a saved one."""

import re
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from lightgpt2.errors import UserError
from lightgpt2.models.families import LINEAR, blocks
from lightgpt2.models.standalone import stored_weights

_LORA = re.compile(r"\.lora_[AB]\.")


def prunable(model: PreTrainedModel, targets: str, key: str) -> dict[str, nn.Parameter]:
    """The trainable matrices that `targets` names, in the model's order; never embeddings, norms, biases or the head.

    `targets` is `lora` (the adapters' matrices), `linear` (the weights of all linear layers in the blocks), or a regular
    expression that is searched for in the full names of the blocks' matrices. A `UserError` names `key` if there is none.
    """
    inside = {id(p) for p in blocks(model).parameters() if p.requires_grad and p.ndim == 2}
    matrices = {name: p for name, p in model.named_parameters() if id(p) in inside}
    if targets == "lora":
        found = {name: p for name, p in matrices.items() if _LORA.search(name)}
    elif targets == "linear":
        linear = {id(m.weight) for m in blocks(model).modules() if isinstance(m, LINEAR)}
        found = {name: p for name, p in matrices.items() if id(p) in linear and not _LORA.search(name)}
    else:
        try:
            found = {name: p for name, p in matrices.items() if re.search(targets, name)}
        except re.error as error:
            raise UserError(f"{key}: {targets!r} is not a regular expression ({error}); correct it") from error
    if not found:
        example = next(iter(matrices), "none")
        what, fix = (
            f"{targets!r} matches no trainable matrix of this model",
            "give lora, linear, or a regular expression",
        )
        raise UserError(f"{key}: {what}; {fix} on names such as {example}")
    return found


def saved_zeros(file: Path, names: Iterable[str]) -> int:
    """The number of zeros among the named weights of a safetensors file; integers times their scales."""
    weights = stored_weights.read(file)
    return sum(weights[name].numel() - int(weights[name].count_nonzero()) for name in names)
