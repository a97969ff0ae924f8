"""The steps and projections of the CUDA kernels, emulated too, against the float64 reference and the CPU kernels."""

from __future__ import annotations

import math

import pytest
import torch
from support.cuda_tensors import (
    LONG,
    SHAPES,
    TILED,
    assert_close,
    assert_same,
    check_step,
    radius,
    tensors,
)
from support.strategies import BF16, DTYPE_PAIRS, F16, F32, F64, PROJECTIONS, STEPS, same_bits

from advfeat import ops, reference

# csrc/core/tuning.h on an H100 or H200: blocks of a cluster, bytes of a row that each holds
HOLDINGS = [(1, 113_664), (2, 113_664), (4, 113_664), (8, 113_664), (16, 113_664), (8, 230_400), (16, 230_400)]


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_steps(device, op, shape, dtypes):
    device.skip_long_rows(math.prod(shape[1:]), dtypes)
    x, grad, x0 = tensors(shape, dtypes)
    for step_size, eps in [(0.07, radius(op, shape)), (-0.2, math.inf), (1.0, 0.0)]:
        got = check_step(device, op, [x, grad, x0, step_size, eps, 0.0, 1.0])
    assert_same(got, x0.clamp(0, 1), "eps = 0")


def lengths_at_the_edges(value: torch.dtype, grad: torch.dtype | None) -> list[int]:
    """One value less than each way of holding a row takes, all of it, one more; the blocks' shares are of odd size."""
    width = 16 // value.itemsize
    group = width * (2 * value.itemsize + (grad.itemsize if grad else 0))
    full = [blocks * (shared // group) * width for blocks, shared in HOLDINGS]
    return [length + more for length in full for more in (-1, 0, 1)]


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
def test_rows_at_the_edges_of_what_is_held_on_chip(device, dtypes):
    device.skip_long_rows(max(lengths_at_the_edges(*dtypes)), dtypes, but=[F64])
    for dim in lengths_at_the_edges(*dtypes):
        x, grad, x0 = tensors((2, dim), dtypes)
        check_step(device, "l2_step", [x, grad, x0, 0.07, radius("l2", x.shape), 0.0, 1.0])
    for dim in lengths_at_the_edges(dtypes[0], None):
        x, _, x0 = tensors((2, dim), dtypes)
        check_step(device, "project_l2", [x, x0, 0.8 * radius("l2", x.shape), 0.1, 0.9])


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
@pytest.mark.parametrize("op", PROJECTIONS)
def test_projections(device, op, shape, dtype):
    device.skip_long_rows(math.prod(shape[1:]), [dtype])
    x, _, x0 = tensors(shape, (dtype, dtype))
    check_step(device, op, [x, x0, 0.8 * radius(op, shape), 0.1, 0.9])
    check_step(device, op, [x, x0, 0.8 * radius(op, shape), -math.inf, math.inf])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 0), (4,)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_empty_and_scalar_samples(device, op, shape):
    x, grad, x0 = tensors(shape)
    got = device.run(op, x, grad, x0, 0.1, 0.2)
    assert_same(got, getattr(ops, op)(x, grad, x0, 0.1, 0.2))


@pytest.mark.parametrize("number", [F32, F64], ids=str)
@pytest.mark.parametrize("shape", [(6, 3, 9, 11), (3, 3, 224, 224), (1000, 3)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_numbers_by_sample_and_channel(device, op, shape, number):
    x, grad, x0 = tensors(shape)
    g = torch.Generator().manual_seed(1)
    step_size = torch.rand(shape[0], generator=g, dtype=number)
    eps = torch.rand(shape[0], generator=g, dtype=number) * 2 * radius(op, shape)
    eps[0] = math.inf
    lo = torch.rand(shape[1], generator=g, dtype=number) * 0.4
    hi = lo + 0.4
    for bounds in [(lo, hi), (lo, 0.9), (-math.inf, hi)]:
        check_step(device, op, [x, grad, x0, step_size, eps, *bounds])
        if len(shape) == 4:
            last = [t.to(memory_format=torch.channels_last) for t in (x, grad, x0)]
            check_step(device, op, [*last, step_size, eps, *bounds])


@pytest.mark.parametrize("shape", [(3, 5), (3, 3, 32, 32), (2, 3, 224, 224), (2, TILED)], ids=str)
@pytest.mark.parametrize(
    "dtypes, scale",
    [((F32, F32), s) for s in (1e-44, 1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e37)]
    + [((F64, F64), s) for s in (1e-320, 1e-300, 1e-160, 1e160, 1e300)]
    + [((F32, F16), 1e-6), ((F16, F16), 1e4), ((F32, BF16), 1e-38), ((BF16, BF16), 1e37)],
    ids=str,
)
def test_gradients_of_any_scale(device, dtypes, scale, shape):
    device.skip_long_rows(math.prod(shape[1:]), dtypes, but=[F64])
    x, grad, x0 = tensors(shape, dtypes, grad_scale=scale)
    assert grad.count_nonzero() > 0
    for eps in (radius("l2", shape), math.inf):
        check_step(device, "l2_step", [x, grad, x0, 0.5, eps, -math.inf, math.inf])


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-160, 1e155, 1e200, 1e300])
@pytest.mark.parametrize("dim", [7, 3072, 50001, TILED])
def test_float64_differences_of_any_scale(device, dim, scale):
    # Squares vanish or overflow: the second look of the kernels. Results have the size of scale: compare them scaled.
    x, grad, x0 = tensors((3, dim), (F64, F64), spread=1.0)
    eps = 0.5 * math.sqrt(dim) * scale
    arguments = [x * scale, grad, torch.zeros_like(x0), 0.3 * scale, eps, -math.inf, math.inf]
    got, on_cpu = device.run("l2_step", *arguments), ops.l2_step(*arguments)
    want = reference.l2_step(x, grad, torch.zeros_like(x0), 0.3, 0.5 * math.sqrt(dim), -math.inf, math.inf)
    # subnormal numbers have few digits
    atol = 1e-14 + (8 * 5e-324 / scale if scale < 1e-300 else 0.0)
    torch.testing.assert_close(got.cpu() / scale, want, rtol=1e-13, atol=atol)
    torch.testing.assert_close(got.cpu() / scale, on_cpu / scale, rtol=1e-13, atol=atol)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 32, 32), (4, 3, 224, 224), (4, TILED)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
def test_a_step_that_cancels_the_distance(device, shape, dtype):
    device.skip_long_rows(math.prod(shape[1:]), [dtype], but=[F64])
    # d + step is nearly zero: its norm has to be measured, or the shrinkage would be that of rounding errors.
    x, _, x0 = tensors(shape, (dtype, dtype), spread=1.0)
    grad = x0 - x
    norm = (x.double() - x0.double()).flatten(1).norm(dim=1)
    step_size = norm * torch.tensor([1.0, 0.999, 1.0001, 1.5], dtype=F64)
    eps = norm * 1e-6
    check_step(device, "l2_step", [x, grad, x0, step_size, eps, -math.inf, math.inf])


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize(
    "shape", [(6, 1), (6, 37), (6, 3, 32, 32), (6, 3, 128, 128), (6, 3, 224, 224), (6, TILED)], ids=str
)
@pytest.mark.parametrize("op", STEPS)
def test_bad_gradients_stay_in_their_sample_and_are_counted(device, op, shape, dtypes):
    device.skip_long_rows(math.prod(shape[1:]), dtypes)
    x, grad, x0 = tensors(shape, dtypes)
    rest = (0.07, radius(op, shape), 0.0, 1.0)
    good = device.run(op, x, grad, x0, *rest)
    last = math.prod(shape[1:]) - 1
    grad[1] = 0
    grad[2].view(-1)[last] = math.nan
    grad[3].view(-1)[last // 2] = math.inf
    grad[4] = 0
    grad[4].view(-1)[last] = -math.inf
    status_cpu = torch.full((6, 2), 3, dtype=torch.int32)
    status = status_cpu.to(device.torch, copy=True)
    for _ in range(2):
        got = device.run(op, x, grad, x0, *rest, grad_status=status)
        on_cpu = getattr(ops, op)(x, grad, x0, *rest, grad_status=status_cpu)
    assert (status.cpu() - 3).tolist() == [[0, 0], [2, 0], [0, 2], [0, 2], [0, 2], [0, 0]]
    assert torch.equal(status.cpu(), status_cpu)
    assert same_bits(got[[0, 5]], good[[0, 5]]), "samples with good gradients"
    assert got.isfinite().all()
    if op == "l2_step":
        want = device.run("project_l2", x, x0, *rest[1:])
        assert_same(got[1:5], want[1:5], "samples whose gradient is no direction")
    assert_close(got, on_cpu, roundings=2)
    assert same_bits(device.run(op, x, grad, x0, *rest), got), "counting should not change the step"


@pytest.mark.parametrize("op", STEPS + PROJECTIONS)
@pytest.mark.parametrize("shape", [(3, 37), (3, 3, 32, 32), (3, 3, 224, 224), (3, TILED)], ids=str)
def test_nan_values_stay_in_their_sample(device, op, shape):
    x, grad, x0 = tensors(shape)
    arguments = [x, x0] if op in PROJECTIONS else [x, grad, x0, 0.07]
    good = device.run(op, *arguments, radius(op, shape))
    x[1].view(-1)[2] = math.nan
    got = device.run(op, *arguments, radius(op, shape))
    assert same_bits(got[[0, 2]], good[[0, 2]])
    assert_same(got.isnan(), getattr(ops, op)(*arguments, radius(op, shape)).isnan())
