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
    calls_super = "__class__" in plain.__code__.co_freevars
    substituted: Any = _OfItsClass if calls_super else _Substituted

    def forward(*args: Any, **kwargs: Any) -> Any:
        own = {name: computed(module, name) for name, _ in module.named_parameters(recurse=False)}
        return plain(substituted(module, own), *args, **kwargs)

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
        self.__dict__ |= {"_module": module, **own}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _OfItsClass(_Substituted):
    """An instance of the module's class to `super()` in its methods. torch.compile cannot trace it."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._module)
