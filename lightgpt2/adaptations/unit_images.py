"""Pictures of which units stay, for TensorBoard: white where one does."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

_PIXELS = 256  # of a matrix's longer side at most
_CELL = 8  # pixels of a unit's side, where there is room


def pictures(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pictures `[1, height, width]` in [0, 1] of masks: one of all layers `[units]`, or one of each matrix `[rows, columns]`.

    It is grey where a layer has fewer units than another.
    """
    numbers = {name: mask.float().cpu() for name, mask in masks.items()}
    if any(mask.ndim == 2 for mask in numbers.values()):
        return {name: _shrunk(mask)[None] for name, mask in numbers.items()}
    widest = max(mask.numel() for mask in numbers.values())
    rows = torch.stack([pad(mask, (0, widest - mask.numel()), value=0.5) for mask in numbers.values()])
    wide = _CELL if widest * _CELL <= 4 * _PIXELS else 1
    return {"layers": rows.repeat_interleave(_CELL, dim=0).repeat_interleave(wide, dim=1)[None]}


def _shrunk(mask: Tensor) -> Tensor:
    rows, columns = (min(size, _PIXELS) for size in mask.shape)
    return adaptive_avg_pool2d(mask[None, None], (rows, columns))[0, 0]
