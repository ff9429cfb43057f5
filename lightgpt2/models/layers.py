"""Choices of layers, one for each stack of a model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from lightgpt2.functional.layers import check_layers, even_layers

Layers = Mapping[str, Sequence[int]]  # the indices of layers by the name of their stack
Size: TypeAlias = PositiveInt | OpenUnitInterval  # how much stays: a number, or a share of what there is
StackChoice: TypeAlias = Size | list[int]  # their number or share, or a list
LayerChoice: TypeAlias = StackChoice | dict[str, StackChoice]  # for every stack; or for each by its name


def size_of(chosen: float, whole: int) -> int:
    """The number that a `Size` means: a share is of the whole, rounded, and at least 1."""
    return chosen if isinstance(chosen, int) else max(1, round(chosen * whole))


def in_stacks(choice: Any, depths: Mapping[str, int]) -> dict[str, Any]:
    """A choice for each stack; None for those that it does not name. A `ValueError` if it names another one."""
    if not isinstance(choice, dict):
        return dict.fromkeys(depths, choice)
    if unknown := [name for name in choice if name not in depths]:
        raise ValueError(f"the model has no {', '.join(unknown)}; it has {' and '.join(depths)}")
    return {stack: choice.get(stack) for stack in depths}


def chosen_layers(
    choice: Any,
    depths: Mapping[str, int],
    default: Callable[[int], int | list[int]],
    spread: Callable[[int, int], list[int]] = even_layers,
) -> dict[str, list[int]]:
    """The layers that a choice means in stacks of these depths.

    Args:
        choice: A `LayerChoice`, or None.
        depths: The number of layers of each stack.
        default: What is chosen of a stack of some depth that the choice does not name.
        spread: Gives the indices of a number of layers out of a depth.

    Raises:
        ValueError: A stack has no such layers, or there is no such stack.
    """
    found = {}
    for stack, chosen in in_stacks(choice, depths).items():
        chosen = default(depths[stack]) if chosen is None else chosen
        with said_of(stack, depths):
            if isinstance(chosen, int | float):
                chosen = spread(depths[stack], size_of(chosen, depths[stack]))
            found[stack] = [*chosen]
            check_layers(found[stack], depths[stack])
    return found


@contextmanager
def said_of(stack: str, depths: Mapping[str, int]) -> Iterator[None]:
    """Let a `ValueError` name the stack, where there are several."""
    try:
        yield
    except ValueError as error:
        raise (ValueError(f"{stack}: {error}") if len(depths) > 1 else error) from error


def check_stacks(layers: Layers, depths: Mapping[str, int]) -> None:
    """Raise a `ValueError` if layers are not of all stacks, or one lacks some of them."""
    if {*layers} != {*depths}:
        raise ValueError(f"layers of {' and '.join(layers)} do not fit a model that has {' and '.join(depths)}")
    chosen_layers({stack: [*chosen] for stack, chosen in layers.items()}, depths, lambda deep: deep)


def recorded(layers: Layers) -> Any:
    """Layers as an operation records them: a list for a model with one stack."""
    return [*next(iter(layers.values()))] if len(layers) == 1 else {stack: [*found] for stack, found in layers.items()}
