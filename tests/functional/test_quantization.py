"""Integers with scales, against what their definition says in double precision."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightgpt2.functional.quantization import affine_integers, fake_quantize, grouped, integers, scales
from lightgpt2.models.standalone import stored_weights
from lightgpt2.models.standalone.stored_weights import pack, round_inputs, unpacked

FORMATS = [(8, None), (4, 32), (4, 5), (4, 7), (8, 16)]
SHAPES = [(1, 1), (3, 7), (16, 64), (5, 33), (64, 48)]


def naive(rows: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """Integers and the numbers that they stand for, one group at a time, in double precision."""
    largest = 2 ** (bits - 1) - 1
    whole, values = torch.zeros_like(rows, dtype=torch.float64), torch.zeros_like(rows, dtype=torch.float64)
    for o, row in enumerate(rows.double()):
        for start in range(0, rows.shape[1], group or rows.shape[1]):
            part = row[start : start + (group or rows.shape[1])]
            step = part.abs().max() / largest
            q = torch.round(part / step) if step > 0 else torch.zeros_like(part)
            whole[o, start : start + len(part)], values[o, start : start + len(part)] = q, q * step
    return whole, values


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rounds_as_the_definition_says(shape: tuple[int, int], bits: int, group: int | None) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    whole, values = naive(rows, bits, group)
    torch.testing.assert_close(fake_quantize(rows, bits, group).double(), values, rtol=1e-6, atol=1e-7)
    found, _ = integers(rows, bits, group)
    assert torch.equal(found.flatten(1)[:, : shape[1]].double(), whole)
    assert found.flatten(1)[:, shape[1] :].count_nonzero() == 0
    step = scales(grouped(rows, group), bits)
    assert ((grouped(rows, group) - grouped(fake_quantize(rows, bits, group), group)).abs() <= step * 0.50001).all()


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_stored_integers_times_scales_are_what_was_trained_with_to_the_last_bit(bits: int, group: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    for seed in range(200):
        shape = torch.randint(1, 70, (2,), generator=draw).tolist()
        rows = torch.randn(shape, generator=draw) * 10.0 ** torch.randint(-30, 30, (1,), generator=draw)
        rows[torch.rand(shape, generator=draw) < 0.3] = 0
        whole, scale = integers(rows, bits, group)
        about: dict[str, Any] = {"bits": bits, "group": whole.shape[-1], "shape": shape, "transposed": False}
        stored = stored_weights.halved(whole) if bits == 4 else whole
        trained = fake_quantize(rows, bits, group)
        assert torch.equal(stored_weights.dequantized(stored, scale, **about), trained), seed
        assert (trained[rows == 0] == 0).all()
        assert torch.equal(fake_quantize(trained, bits, group), trained), "rounding twice is rounding once"


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_the_gradient_is_handed_through(bits: int, group: int | None) -> None:
    rows = torch.randn(6, 33, requires_grad=True)
    given = torch.randn(6, 33)
    (fake_quantize(rows, bits, group) * given).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, given)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3e38])
def test_rows_of_zeros_and_of_extremes_stay_finite(value: float) -> None:
    rows = torch.full((2, 8), value)
    rounded = fake_quantize(rows, 8)
    assert rounded.isfinite().all()
    torch.testing.assert_close(rounded, rows, rtol=1e-6, atol=1e-37)


def affine_product(rows: Tensor, group: int, power: Tensor | None = None) -> Tensor:
    whole, scale, zero = affine_integers(rows, group, power)
    assert whole.min() >= -8
    assert whole.max() <= 7
    assert scale.min() > 0
    return ((whole.double() - zero.double()) * scale.double()).flatten(1)[:, : rows.shape[1]]


@pytest.mark.parametrize(("inputs", "group"), [(64, 32), (70, 32), (48, 16)])
def test_affine_integers_span_the_range(inputs: int, group: int) -> None:
    rows = torch.randn(9, inputs, generator=torch.Generator().manual_seed(0)) + 0.3
    found, (_, scale, _) = affine_product(rows, group), affine_integers(rows, group)
    padded = grouped(rows, group)
    span = padded.amax(-1).clamp_min(0) - padded.amin(-1).clamp_max(0)
    torch.testing.assert_close(scale.squeeze(-1), span / 15)
    off = grouped((found - rows).float(), group).abs().amax(-1)
    assert (off <= span / 15 * 1.001).all(), (
        "half a step, and half of one more at the ends: the zero point is an integer"
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sign", [False, True])
def test_affine_integers_are_those_that_change_the_outputs_least(seed: int, sign: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(20, 96, generator=random) ** 3  # with outliers
    rows = rows.abs() + 0.1 if sign else rows
    power = torch.rand(96, generator=random) ** 6
    found, plain = affine_product(rows, 32, power), affine_product(rows, 32)
    weights = power / power.mean() + 0.01

    def error(product: Tensor) -> Tensor:
        return grouped((weights * (product - rows) ** 2).float(), 32).sum(-1)

    assert (error(found) <= error(plain) * 1.00001).all()
    assert error(found).sum() < 0.9 * error(plain).sum()
    # The outputs for inputs of that power, uncorrelated, in float64.
    x = torch.randn(4000, 96, generator=random).double() * power.double().sqrt()
    squares = [((x @ (product - rows).T) ** 2).mean(dim=0).sum() for product in (found, plain)]
    assert squares[0] < 0.9 * squares[1]
    # With these integers no scale is better.
    for share in (0.99, 1.01):
        assert (error(found * share) >= error(found)).all()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_affine_integers_do_not_depend_on_units(size: float) -> None:
    random = torch.Generator().manual_seed(0)
    rows, power = torch.randn(20, 64, generator=random), torch.rand(64, generator=random)
    wanted = affine_product(rows, 32, power)
    torch.testing.assert_close(affine_product(rows, 32, power * size), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(affine_product(rows * size, 32, power) / size, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-44, 3e38, float("inf"), float("nan")])
def test_affine_integers_whatever_the_power(value: float) -> None:
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    rows[1], rows[2, :32] = 0, 0
    plain = affine_product(rows, 32)
    for power in (torch.full((64,), value), torch.cat([torch.ones(63), torch.tensor([value])])):
        found = affine_product(rows, 32, power)
        assert not found[1].any()
        assert (found - rows).norm() < 2 * (plain - rows).norm()


def test_affine_integers_come_row_by_row() -> None:
    """Each of many rows is rounded by itself."""
    rows = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))
    power, some = torch.rand(16, generator=torch.Generator().manual_seed(1)), [0, 4095, 4096, 4999]
    apart = [affine_product(rows[place : place + 1], 16, power) for place in some]
    assert torch.equal(affine_product(rows, 16, power)[some], torch.cat(apart))


def test_inputs_are_rounded_as_a_weight_with_a_row_for_each_token_would_be() -> None:
    inputs = torch.randn(2, 5, 33) * torch.logspace(-3, 3, 5)[:, None]
    (rounded,) = round_inputs(None, (inputs,))
    assert torch.equal(rounded.flatten(0, 1), fake_quantize(inputs.flatten(0, 1), 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.int64])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (13, 17), (64, 1, 48)])
def test_what_is_packed_comes_out_byte_for_byte(dtype: torch.dtype, sparsity: float, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 40 * (torch.rand(shape) >= sparsity)).to(dtype)
    data, about = pack(tensor)
    assert data.dtype == torch.uint8
    assert data.ndim == 1
    again = unpacked(data, **about)
    assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(again.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


def test_negative_zeros_and_nan_are_packed_too() -> None:
    tensor = torch.tensor([-0.0, 0.0, float("nan"), float("-inf")] * 100)
    data, about = pack(tensor)
    assert torch.equal(unpacked(data, **about).view(torch.int32), tensor.view(torch.int32))


def test_zeros_take_no_space() -> None:
    weight = torch.randn(512, 512) * 0.02
    weight[weight.abs() <= weight.abs().flatten().kthvalue(int(0.8 * weight.numel())).values] = 0
    data, about = pack(integers(weight, 8)[0])
    assert about["kept"] == int(integers(weight, 8)[0].count_nonzero())
    assert data.numel() / weight.numel() < 0.28  # of a byte: 0.2 of 7 bits, and less than one for the mask
