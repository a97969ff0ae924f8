"""The steps with momentum of the CUDA kernels, emulated too, against the float64 reference and the CPU kernels."""

from __future__ import annotations

import math

import pytest
import torch
from support.cuda_tensors import LONG, SHAPES, TILED, assert_close, assert_same, radius, tensors, wide
from support.strategies import BF16, DTYPE_PAIRS, F16, F32, F64, STEPS, same_bits

from advfeat import ops, reference

# csrc/core/tuning.h on an H100 or H200: blocks of a cluster, bytes of a row that each holds
HOLDINGS = [(1, 113_664), (2, 113_664), (8, 113_664), (16, 113_664), (16, 230_400)]


def velocity_like(x: torch.Tensor) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    return (0.05 * torch.randn(x.shape, generator=g, dtype=F64)).to(x.dtype)


def check(device, op, arguments, momentum=0.75, status=None):
    """Runs a step on the device; compares it and its velocity with the reference and with the CPU kernel."""
    x, velocity = arguments[0], velocity_like(arguments[0])
    on_device, on_cpu, wide_velocity = device.put(velocity.clone())[0], velocity.clone(), velocity.double()
    got = device.run(op, *arguments, velocity=on_device, momentum=momentum)
    want = getattr(reference, op)(*wide(*arguments), velocity=wide_velocity, momentum=momentum)
    assert_close(got, want, f"{op} and its reference")
    cpu = getattr(ops, op)(*arguments, velocity=on_cpu, momentum=momentum)
    if "linf" in op:
        assert_same(got, cpu, f"{op} on CUDA and on the CPU")
        assert_same(on_device, on_cpu, "the velocity on CUDA and on the CPU")
    else:  # the order of the sums differs
        assert_close(got, cpu, f"{op} on CUDA and on the CPU", roundings=2)
    a = F64 if x.dtype == F64 else F32
    assert_same(on_device, (got.cpu().to(a) - x.to(a)).to(x.dtype), "the velocity is the way from x to the result")
    return got


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_steps(device, op, shape, dtypes):
    device.skip_long_rows(math.prod(shape[1:]), dtypes)
    x, grad, x0 = tensors(shape, dtypes)
    for step_size, eps in [(0.07, radius(op, shape)), (-0.2, math.inf)]:
        check(device, op, [x, grad, x0, step_size, eps, 0.0, 1.0])


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
def test_rows_at_the_edges_of_what_is_held_on_chip(device, dtypes):
    width = 16 // dtypes[0].itemsize
    group = width * (3 * dtypes[0].itemsize + dtypes[1].itemsize)
    full = [blocks * (shared // group) * width for blocks, shared in HOLDINGS]
    device.skip_long_rows(max(full), dtypes, but=[F64])
    for dim in [length + more for length in full for more in (0, 1)]:
        x, grad, x0 = tensors((2, dim), dtypes)
        check(device, "l2_step", [x, grad, x0, 0.07, radius("l2", x.shape), 0.0, 1.0])


@pytest.mark.parametrize("shape", [(6, 3, 9, 11), (3, 3, 224, 224), (1000, 3)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_numbers_by_sample_and_channel_in_both_layouts(device, op, shape):
    x, grad, x0 = tensors(shape)
    g = torch.Generator().manual_seed(1)
    step_size = torch.rand(shape[0], generator=g, dtype=F64)
    eps = torch.rand(shape[0], generator=g, dtype=F64) * 2 * radius(op, shape)
    lo = torch.rand(shape[1], generator=g, dtype=F64) * 0.4
    check(device, op, [x, grad, x0, step_size, eps, lo, lo + 0.4])
    if len(shape) == 4:
        last = [t.to(memory_format=torch.channels_last) for t in (x, grad, x0)]
        check(device, op, [*last, step_size, eps, lo, lo + 0.4])


@pytest.mark.parametrize("shape", [(3, 5), (3, 3, 32, 32), (2, 3, 224, 224), (2, TILED)], ids=str)
@pytest.mark.parametrize(
    "dtypes, scale",
    [((F32, F32), 1e-44), ((F32, F32), 1e37), ((F64, F64), 1e-320), ((F64, F64), 1e300), ((F32, BF16), 1e-38)],
    ids=str,
)
def test_gradients_of_any_scale(device, dtypes, scale, shape):
    device.skip_long_rows(math.prod(shape[1:]), dtypes, but=[F64])
    x, grad, x0 = tensors(shape, dtypes, grad_scale=scale)
    check(device, "l2_step", [x, grad, x0, 0.5, radius("l2", shape), -math.inf, math.inf])


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 32, 32), (4, 3, 224, 224), (4, TILED)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
def test_a_step_that_cancels_the_distance(device, shape, dtype):
    device.skip_long_rows(math.prod(shape[1:]), [dtype], but=[F64])
    # x + momentum velocity + step is nearly x0: its distance has to be measured
    x, _, x0 = tensors(shape, (dtype, dtype), spread=1.0)
    start = x.double() + 0.75 * velocity_like(x).double()
    grad = (x0.double() - start).to(dtype)
    norm = (start - x0.double()).flatten(1).norm(dim=1)
    step_size = norm * torch.tensor([1.0, 0.999, 1.0001, 1.5], dtype=F64)
    check(device, "l2_step", [x, grad, x0, step_size, norm * 1e-6, -math.inf, math.inf])


@pytest.mark.parametrize("shape", [(6, 37), (6, 3, 32, 32), (6, 3, 224, 224), (6, TILED)], ids=str)
@pytest.mark.parametrize("op", STEPS)
def test_bad_rows_stay_in_their_sample_and_are_counted(device, op, shape):
    x, grad, x0 = tensors(shape)
    rest, velocity = (0.07, radius(op, shape), 0.0, 1.0), velocity_like(x)

    def run(device_run, **options):
        moved = velocity.clone() if device_run is not device.run else device.put(velocity.clone())[0]
        return device_run(op, x, grad, x0, *rest, velocity=moved, momentum=0.9, **options), moved

    good, good_velocity = run(device.run)
    last = math.prod(shape[1:]) - 1
    grad[1] = 0
    grad[2].view(-1)[last] = math.nan
    grad[3].view(-1)[last // 2] = math.inf
    velocity[4].view(-1)[last] = math.nan
    status = torch.zeros((6, 2), dtype=torch.int32).to(device.torch)
    got, moved = run(device.run, grad_status=status)
    assert status.cpu().tolist() == [[0, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]]
    assert same_bits(got[[0, 5]], good[[0, 5]]) and same_bits(moved[[0, 5]], good_velocity[[0, 5]])
    assert got[:4].isfinite().all() and moved[:4].isfinite().all()
    on_cpu, _ = run(lambda op, *arguments, **options: getattr(ops, op)(*arguments, **options))
    assert_close(got, on_cpu, roundings=2)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)  # the roundings of half types add up
@pytest.mark.parametrize("op", STEPS)
def test_several_steps_in_place_follow_the_reference(device, op, dtype):
    x, _, x0 = tensors((5, 3, 16, 17), (dtype, dtype))
    eps = radius(op, x.shape)
    here, velocity = device.put(x.clone(), torch.zeros_like(x))
    exact, exact_velocity = x.double(), torch.zeros(x.shape, dtype=F64)
    for k in range(5):
        grad = tensors(x.shape, (dtype, dtype), seed=k)[1]
        device.run(op + "_", here, grad, x0, 0.1, eps, 0.0, 1.0, velocity=velocity, momentum=0.75)
        exact = getattr(reference, op)(
            exact, grad.double(), x0.double(), 0.1, eps, velocity=exact_velocity, momentum=0.75
        )
    assert_close(here, exact, roundings=12)
