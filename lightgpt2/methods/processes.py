"""What processes that train together exchange."""

from typing import Any, TypeVar

import torch.distributed as dist

Row = TypeVar("Row")


def of_all_processes(rows: list[Row]) -> list[Row]:
    """The rows of all processes together; leaves the given list empty."""
    mine = rows.copy()
    rows.clear()
    return [row for part in gathered(mine) for row in part]


def gathered(value: Any) -> list[Any]:
    """The value of each process; all of them must call this."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
