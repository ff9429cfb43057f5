"""Symmetric integers with scales, and training with them in mind.

Rounding in the forward pass and a gradient that passes it by (Jacob et al. 2018, arXiv:1712.05877; the straight-through
estimator of Bengio et al. 2013, arXiv:1308.3432): weights learn to be where rounding does them no harm. Scales follow
the weights at every forward pass, so that nothing is observed or calibrated.
"""

import torch
from torch import Tensor


def grouped(rows: Tensor, group: int | None) -> Tensor:
    """The numbers that share a scale, side by side, `[O, G, g]`.

    Args:
        rows: `[O, I]`, one row an output channel.
        group: How many consecutive inputs share a scale; the last group of a row is filled up with zeros. None: the whole row.
    """
    size = group or rows.shape[1]
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % size)).reshape(rows.shape[0], -1, size)


def scales(groups: Tensor, bits: int) -> Tensor:
    """What one step of the integers is worth, `[O, G, 1]`: the largest magnitude over the largest integer (127 or 7).

    Args:
        groups: `[O, G, g]`.
        bits: 8 or 4.

    Returns:
        Scales above zero, also where all numbers are zero.
    """
    largest = groups.detach().abs().amax(dim=-1, keepdim=True)
    return (largest / limit(bits)).clamp_min(torch.finfo(groups.dtype).tiny)


def limit(bits: int) -> int:
    """The largest integer of a symmetric format, whose smallest is its negative."""
    return 2 ** (bits - 1) - 1


def fake_quantize(rows: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The numbers that integers with scales can hold, nearest to the given ones; the gradient is handed through.

    Args:
        rows: `[O, I]` in FP32, one row an output channel of a weight.
        bits: 8 or 4.
        group: As for `grouped`.

    Returns:
        `[O, I]`; zeros stay zero.
    """
    groups = grouped(rows, group)
    scale = scales(groups, bits).flatten()
    zero, bound = torch.zeros_like(scale, dtype=torch.int32), limit(bits)
    rounded = torch.fake_quantize_per_channel_affine(groups.flatten(0, 1), scale, zero, 0, -bound, bound)
    return rounded.view(rows.shape[0], -1)[:, : rows.shape[1]].contiguous()


def integers(rows: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """The integers behind `fake_quantize`, and their scales: their product is its result, bit for bit.

    They are read off that result: the quotient of a rounded product by its own factor is off by far less than a half.

    Args:
        rows: As for `fake_quantize`.
        bits: 8 or 4.
        group: As for `grouped`.

    Returns:
        Integers `[O, G, g]` in int8, and scales `[O, G, 1]`.
    """
    scale = scales(grouped(rows, group), bits)
    return (grouped(fake_quantize(rows, bits, group), group) / scale).round().to(torch.int8), scale


def affine_integers(rows: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit integers with a scale and a zero point for each group: all 16 values between its least and its greatest number.

    For rounding after training: nearer than `integers`, whose 15 values lie evenly about zero (Jacob et al. 2018,
    arXiv:1712.05877, eq. 1, with the zero point an integer so that zeros stay zero).

    Args:
        rows: `[O, I]` in FP32, one row an output channel.
        group: As for `grouped`.

    Returns:
        Integers `[O, G, g]` in int8 from -8 to 7, scales `[O, G, 1]`, and zero points `[O, G, 1]`, likewise in int8: a number
        is about `(integer - zero) * scale`.
    """
    groups = grouped(rows, group)
    low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / 15).clamp_min(torch.finfo(groups.dtype).tiny)
    zero = (-low / scale).round() - 8
    whole = (groups / scale + zero).round().clamp(-8, 7)
    return whole.to(torch.int8), scale, zero.to(torch.int8)
