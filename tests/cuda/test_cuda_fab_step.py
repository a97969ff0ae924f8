"""Steps of FAB on CUDA, emulated too, against the float64 reference and the CPU kernel."""

from __future__ import annotations

import math

import pytest
import torch
from support.cuda_tensors import assert_close, place, tensors
from support.strategies import BF16, DTYPE_PAIRS, F32, F64, bits, same_bits

from advfeat import ops, reference

ORDERS = [math.inf, 2, 1]
SHAPES = [(1, 1), (5, 3), (1, 33), (3, 1001), (5, 3, 32, 32)]


def check(device, x, grad, x0, gap, order, **more):
    """Runs it on the device; compares with the reference and with the CPU kernel, whose sums have another order."""
    want = reference.fab_step(x.double(), grad.double(), x0.double(), gap, order, **more)
    here = device.put(x.clone())[0]
    assert device.run("fab_step_", here, grad, x0, gap, order, **more) is here
    # The arithmetic is float64 for any x: only there do its sums show, in the value that gets what is left of the gap.
    of_sums = 256 if x.dtype == F64 else 8
    assert_close(here, want, "CUDA and the reference", of_sums=of_sums)
    on_cpu = ops.fab_step_(x.clone(), grad, x0, gap, order, **more)
    assert_close(here, on_cpu, "CUDA and the CPU", roundings=2, of_sums=of_sums)
    return here


def arguments(shape, dtypes=(F32, F32), seed=0):
    """x, grad, x0 in the box, and gaps that the box can close, partly close and not close."""
    x, grad, x0 = tensors(shape, dtypes, seed=seed)
    g = torch.Generator().manual_seed(seed)
    gap = torch.randn(shape[0], generator=g, dtype=F64) * math.prod(shape[1:]) ** 0.5
    gap[::3] *= 10
    return x.clamp(0, 1), grad, x0, gap


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps(device, shape, dtypes, order):
    x, grad, x0, gap = arguments(shape, dtypes)
    if order == 1:
        grad[: len(grad) // 2] = grad[: len(grad) // 2].round()  # many of equal weight
    check(device, x, grad, x0, gap, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), ("channels", 1.0)], ids=str)
def test_boxes(device, bounds, order):
    x, grad, x0, gap = arguments((4, 3, 7, 9))
    lo = torch.tensor([0.0, -0.5, -1.0]) if bounds[0] == "channels" else bounds[0]
    check(device, x, grad, x0, gap, order, lo=lo, hi=bounds[1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtypes, scale", [((F32, F32), 1e-38), ((F32, BF16), 1e36), ((F64, F64), 1e-300)], ids=str)
def test_gradients_of_any_scale(device, dtypes, scale, order):
    x, grad, x0, gap = arguments((3, 1001), (dtypes[0], F64))
    check(device, x, (grad * scale).to(dtypes[1]), x0, gap * scale, order)


@pytest.mark.parametrize("layout", ["odd_start", "apart", "odd_rows", "dense_last"])
def test_any_place_and_layout(device, layout):
    values, grad, x0, gap = arguments((3, 3, 9, 11))
    x, buffer, outside = place(device, values, layout)
    before = buffer.clone()
    memory_format = torch.channels_last if layout.endswith("_last") else torch.contiguous_format
    device.run("fab_step_", x, grad.to(memory_format=memory_format), x0, gap, 2)
    assert_close(x, reference.fab_step(values.double(), grad.double(), x0.double(), gap, 2))
    assert torch.equal(bits(buffer)[outside], bits(before)[outside]), "nothing outside was written"


@pytest.mark.parametrize("order", ORDERS)
def test_bad_gradients_are_counted(device, order):
    x, grad, x0, gap = arguments((5, 3, 16, 16))
    good = device.run("fab_step_", device.put(x.clone())[0], grad, x0, gap, order)
    grad[1] = 0
    grad[2].view(-1)[-1] = math.nan
    grad[3].view(-1)[5] = math.inf
    status = torch.zeros((5, 2), dtype=torch.int32).to(device.torch)
    here = device.put(x.clone())[0]
    device.run("fab_step_", here, grad, x0, gap, order, grad_status=status)
    assert status.cpu().tolist() == [[0, 0], [1, 0], [0, 1], [0, 1], [0, 0]]
    assert same_bits(here[[0, 4]], good[[0, 4]]), "other samples are as without"
    torch.testing.assert_close(here[1:4].cpu(), 0.9 * x[1:4] + 0.1 * x0[1:4])


@pytest.mark.parametrize("order", ORDERS)
def test_a_sample_does_not_know_its_batch(device, order):
    x, grad, x0, gap = arguments((5, 3, 13, 11))
    whole = device.run("fab_step_", device.put(x.clone())[0], grad, x0, gap, order)
    for i in range(5):
        rows = slice(i, i + 1)
        one = device.put(x[rows].clone())[0]
        assert same_bits(device.run("fab_step_", one, grad[rows], x0[rows], gap[rows], order), whole[rows])
