"""Choose the layers of a deep model that make, or are compared with, a shallow one."""

from collections.abc import Sequence


def even_layers(deep: int, shallow: int) -> list[int]:
    """Indices of `shallow` evenly spaced layers out of `deep`, both ends included.

    Layer i of the shallow model is layer `round(i * (deep - 1) / (shallow - 1))` of the deep one, halves rounded
    up, so 12 -> 6 is [0, 2, 4, 7, 9, 11]. One layer alone is the first, as in DistilBERT's initialisation.

    Args:
        deep: Number of layers to choose from, at least 1.
        shallow: Number of layers to choose, between 1 and `deep`.

    Returns:
        Strictly increasing layer indices.

    Raises:
        ValueError: `shallow` is not between 1 and `deep`.
    """
    if not 1 <= shallow <= deep:
        raise ValueError(f"cannot choose {shallow} of {deep} layers; give at most {deep}")
    if shallow == 1:
        return [0]
    # (2ab + c) // 2c rounds ab/c half up in integers: Python's round() would send 4.5 to 4 and 5.5 to 6.
    return [(2 * i * (deep - 1) + shallow - 1) // (2 * (shallow - 1)) for i in range(shallow)]


def central_layers(deep: int, shallow: int) -> list[int]:
    """Indices of the `shallow` layers in the middle of `deep` ones; an odd one out is left off at the end.

    Raises:
        ValueError: `shallow` is not between 1 and `deep`.
    """
    if not 1 <= shallow <= deep:
        raise ValueError(f"cannot choose {shallow} of {deep} layers; give at most {deep}")
    first = (deep - shallow) // 2
    return list(range(first, first + shallow))


def check_layers(layers: Sequence[int], deep: int) -> None:
    """Raise a `ValueError` if `layers` is empty or names a layer outside [0, deep)."""
    outside = [layer for layer in layers if not 0 <= layer < deep]
    if not layers or outside:
        raise ValueError(f"layers {outside or 'list is empty'}: a model of {deep} layers has layers 0 to {deep - 1}")
