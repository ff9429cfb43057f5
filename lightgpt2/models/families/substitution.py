"""Modules that compute with substitutes for their own parameters, which stay what is trained and saved."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Substitute = Callable[[str, Tensor], Tensor]  # from a parameter's name in its module, and its value


def compute_with(module: nn.Module, substitute: Substitute) -> None:
    """Let a linear layer or an embedding compute with a substitute for its own parameters; it runs at every forward pass.

    Called again, the later substitute gets what the earlier one gives: gates first and then rounding, for example. The module's
    own class computes: with equal values the result is equal to the last bit.
    """
    if substitutes := _substitutes(module):
        substitutes.append(substitute)
        return

    plain: Any = type(module).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        own = module._parameters
        values: Any = {name: computed(module, name) for name, value in own.items() if value is not None}
        module._parameters = own | values
        try:
            return plain(module, *args, **kwargs)
        finally:
            module._parameters = own

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
