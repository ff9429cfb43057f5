"""Symmetric integers with scales, and training for them.

Rounding in the forward pass and a gradient that passes it by (Jacob et al. 2018, arXiv:1712.05877; the straight-through
estimator of Bengio et al. 2013, arXiv:1308.3432): weights learn values that rounding does not harm. Scales follow the weights
at every forward pass: nothing is observed or calibrated.
"""

import torch
from torch import Tensor

_RANGES = [1 - step / 20 for step in range(9)]  # shares of a group's range that its integers may span
_DAMPING = 0.01  # of the inputs' mean power, added to each one's: no input is without any (as in arXiv:2210.17323)
_AT_ONCE = 4096  # rows, so that what is held of a vocabulary's does not grow with it


def grouped(rows: Tensor, group: int | None) -> Tensor:
    """The numbers that share a scale, side by side, `[O, G, g]`.

    Args:
        rows: `[O, I]`, one row for each output channel.
        group: The number of consecutive inputs that share a scale; the last group is filled up with zeros. None: the whole row.
    """
    size = group or rows.shape[1]
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % size)).reshape(rows.shape[0], -1, size)


def scales(groups: Tensor, bits: int) -> Tensor:
    """The step of the integers `[O, G, 1]`: the largest magnitude of a group over the largest integer, 127 or 7; above 0."""
    largest = groups.detach().abs().amax(dim=-1, keepdim=True)
    return (largest / limit(bits)).clamp_min(torch.finfo(groups.dtype).tiny)


def limit(bits: int) -> int:
    """The largest integer of a symmetric format, whose smallest is its negative."""
    return 2 ** (bits - 1) - 1


def fake_quantize(rows: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The numbers nearest to the given ones that integers with scales can hold; the gradient passes through. Zeros stay zero.

    Args:
        rows: `[O, I]` in FP32, one row for each output channel of a weight.
        bits: 8 or 4.
        group: As for `grouped`.
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


def affine_integers(rows: Tensor, group: int, power: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """4-bit integers with a scale and a zero point for each group, for rounding after training.

    Their 16 values lie between a group's least and its greatest number, nearer than those of `integers`, whose 15 lie evenly
    about zero (Jacob et al. 2018, arXiv:1712.05877, eq. 1, with the zero point an integer so that zeros stay zero). With
    `power`, of these and narrower ranges, each with the scale that fits its integers best (least squares), the one is taken
    that changes the outputs least: an input's error counts by its power (the diagonal of the inputs' second moments, as in
    Frantar et al. 2022, arXiv:2210.17323, eq. 1).

    Args:
        rows: `[O, I]` in FP32, one row an output channel.
        group: As for `grouped`.
        power: Mean square of each input `[I]`; None: the whole range.

    Returns:
        Integers `[O, G, g]` in int8 from -8 to 7, scales `[O, G, 1]`, and zero points `[O, G, 1]`, likewise in int8: a number
        is about `(integer - zero) * scale`.
    """
    weights = None
    if power is not None:
        mean = power.mean().clamp_min(torch.finfo(power.dtype).tiny)
        weights = grouped((power / mean + _DAMPING)[None], group)
    parts = [_affine(part, weights) for part in grouped(rows, group).split(_AT_ONCE)]
    whole, scale, zero = (torch.cat(each) for each in zip(*parts, strict=True))
    return whole.to(torch.int8), scale, zero.to(torch.int8)


def _affine(groups: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    tiny = torch.finfo(groups.dtype).tiny
    low, high = groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
    widest = ((high - low) / 15).clamp_min(tiny)
    zero = (-low / widest).round() - 8
    exact = groups / widest
    best = (exact + zero).round().clamp(-8, 7)
    if weights is None:
        return best, widest, zero
    least, scale = torch.full_like(low, torch.inf), torch.ones_like(low)  # a scale in units of the widest range's
    for share in _RANGES:
        whole = (exact / share + zero).round().clamp(-8, 7)
        steps = whole - zero
        weighted = weights * steps
        fitted = (weighted * exact).sum(-1, keepdim=True) / (weighted * steps).sum(-1, keepdim=True)
        fitted = torch.where(fitted > 0, fitted, share)  # nothing to fit to where all are zero
        error = (weights * (exact - steps * fitted).square()).sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best, scale = torch.where(better, whole, best), torch.where(better, fitted, scale)
    return best, scale * widest, zero
