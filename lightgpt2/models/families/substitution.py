"""Modules that compute with something else than their own parameters, which stay what is trained and saved."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Substitute = Callable[[str, Tensor], Tensor]


def compute_with(module: nn.Module, substitute: Substitute) -> None:
    """Let a module compute with a substitute for its own parameters, which stay what is trained and saved.

    Called again, the later substitute gets what the earlier one gives: gates first, rounding after them, for example. The
    module's own class computes: with equal values the result is equal to the last bit.

    Args:
        module: A linear layer or an embedding; changed in place.
        substitute: The value to use for a parameter, given its name in the module and its value; runs at every forward pass.
    """
    if substitutes := _substitutes(module):
        substitutes.append(substitute)
        return

    def forward(*args: Any, **kwargs: Any) -> Any:
        own = {name: computed(module, name) for name, _ in module.named_parameters(recurse=False)}
        substituted: Any = _Substituted(module, own)
        return type(module).forward(substituted, *args, **kwargs)

    module.forward = forward
    module.substitutes = [substitute]  # type: ignore[assignment]


def computed(module: nn.Module, name: str) -> Tensor:
    """A parameter as the module computes with it."""
    value: Tensor = getattr(module, name)
    for substitute in _substitutes(module):
        value = substitute(name, value)
    return value


def _substitutes(module: nn.Module) -> list[Substitute]:
    return getattr(module, "substitutes", [])


class _Substituted:
    """A module's attributes, some of them others."""

    def __init__(self, module: nn.Module, own: dict[str, Tensor]) -> None:
        self._module = module
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
