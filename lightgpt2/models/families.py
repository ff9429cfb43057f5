"""Where each decoder family keeps its parts: the one place that knows.

A family is supported when its module names are here; everything else in the project asks this file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightgpt2.errors import UserError

LINEAR = (nn.Linear, Conv1D)  # GPT-2's own kind is no nn.Linear: half of the public tools pass it over

# model_type -> name of the list of blocks inside the base model
_BLOCKS = {"gpt2": "h", "llama": "layers"}


def check_family(config: PretrainedConfig, key: str) -> None:
    """Raises a `UserError` naming `key` when the model's family is not supported."""
    if config.model_type not in _BLOCKS:
        raise UserError(
            f"{key}: models of type {config.model_type!r} are not supported; use a decoder of type "
            f"{' or '.join(_BLOCKS)}"
        )


def backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its vocabulary head; called with `input_ids`, gives `last_hidden_state`."""
    return cast(nn.Module, model.base_model)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks in order."""
    return cast(nn.ModuleList, getattr(model.base_model, _BLOCKS[model.config.model_type]))


def head_weight(model: PreTrainedModel) -> Tensor:
    """Weight of the vocabulary head `[V, D]`, as the head computes with it; the embedding itself where the two are tied."""
    head = model.get_output_embeddings()
    substitute = getattr(head, "substitute", None)  # see `compute_with`
    return cast(Tensor, head.weight if substitute is None else substitute("weight", head.weight))


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and vocabulary head are one tensor."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def block_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the blocks by their names in the model, in its order."""
    inside = {id(module) for module in blocks(model).modules() if isinstance(module, LINEAR)}
    return {name: module for name, module in model.named_modules() if id(module) in inside}


def compute_with(module: nn.Module, substitute: Callable[[str, Tensor], Tensor]) -> None:
    """Makes a module compute with something in the place of its own parameters, which stay what is trained and saved.

    Its own kind's forward pass does the computing: with equal values the result is equal to the last bit.

    Args:
        module: A linear layer or an embedding; changed in place.
        substitute: What to take for a parameter, given its name in the module and its value; run at every forward pass.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        own = {name: substitute(name, value) for name, value in module.named_parameters(recurse=False)}
        return type(module).forward(cast(nn.Module, _Substitute(module, own)), *args, **kwargs)

    module.forward = forward
    module.substitute = substitute  # type: ignore[assignment]


class _Substitute:
    """A module's attributes, some of them others."""

    def __init__(self, module: nn.Module, own: dict[str, Tensor]) -> None:
        self._module = module
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def recorded_states(model: PreTrainedModel, layers: list[int]) -> Iterator[dict[int, Tensor]]:
    """Collects hidden states `[B, T, D]` while the model runs inside the context.

    Index 0 is the embedding output, index i the output of block i, all before the final norm. (The last element of
    transformers' own `hidden_states` is after it; a pair of layers must compare like with like.)

    Args:
        model: A decoder of a supported family.
        layers: Which states to keep, from 0 to the number of blocks.

    Yields:
        A dictionary that the forward pass fills, keyed by index.
    """
    states: dict[int, Tensor] = {}

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[0] = args[0] if args else kwargs["hidden_states"]

    def keep_output(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states[index] = output[0] if isinstance(output, tuple) else output

        return hook

    modules = blocks(model)
    handles = [modules[i - 1].register_forward_hook(keep_output(i)) for i in layers if i > 0]
    if 0 in layers:
        handles.append(modules[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_head(model: PreTrainedModel, key: str) -> None:
    """Checks on one token that the logits are the final hidden state times the head weight and nothing else.

    The chunked loss forms logits itself; a family that scales, caps or biases them would be trained wrongly.

    Raises:
        UserError: They differ.
    """
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    except RuntimeError as error:  # a shape that transformers builds but cannot run
        raise UserError(
            f"{key}: this model cannot run ({str(error).splitlines()[0]}); check its configuration"
        ) from error
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    model.train(training)
    expected = hidden @ head_weight(model).T
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max() + 1)):
        raise UserError(f"{key}: this model's logits are not a plain product with its head; it is not supported")
