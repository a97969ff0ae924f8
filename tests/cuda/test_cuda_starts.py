"""Random starts and rows copied by a mask on CUDA, emulated too, against the CPU kernels and the reference."""

from __future__ import annotations

import math

import pytest
import torch
from support.cuda_tensors import assert_same, place, tensors
from support.strategies import BF16, F16, F32, F64, same_bits, unit_roundoff

from advfeat import ops, reference


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(3, 1), (5, 3, 7, 5), (4, 3, 32, 32), (2, 3, 224, 224)], ids=str)
@pytest.mark.parametrize("op", ["random_start_linf", "random_start_l2"])
def test_random_starts(device, op, shape, dtype):
    x0 = tensors(shape, (dtype, dtype))[2]
    ids = torch.arange(shape[0]) * 1_000_003 + (1 << 40)
    eps = torch.linspace(0.1, 0.5, shape[0], dtype=F64) * (1 if "linf" in op else math.sqrt(math.prod(shape[1:])))
    lo, hi = 0.05, torch.linspace(0.9, 0.95, shape[1])
    got = device.run(op, x0, eps, 77, ids, lo, hi)
    on_cpu = getattr(ops, op)(x0, eps, 77, ids, lo, hi)
    # The logarithm, sine and cosine of the two devices differ by a unit or two in the last place of float64.
    tolerance = {"rtol": 2e-15, "atol": 2e-14} if dtype == F64 else {"rtol": 2 * unit_roundoff(dtype), "atol": 1e-7}
    if op == "random_start_linf":
        assert_same(got, on_cpu, "uniform numbers are exact")
    else:
        torch.testing.assert_close(got.cpu(), on_cpu, **tolerance)
    unbounded = device.run(op, x0, eps, 77, ids, -math.inf, math.inf)
    offset = (unbounded.cpu().double() - x0.double()).flatten(1)
    size = offset.abs().amax(1) if "linf" in op else offset.norm(dim=1)
    slack = 4 * unit_roundoff(dtype) * math.sqrt(offset.shape[1]) * (1 + eps.max())
    assert (size <= eps + slack).all() and (size > 0).all()
    # independent of the batch, its order and the layout
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    shuffled = device.run(op, x0[order], eps[order], 77, ids[order], lo, hi)
    assert same_bits(shuffled.cpu(), got.cpu()[order])
    if len(shape) == 4:
        last = x0.to(memory_format=torch.channels_last)
        assert same_bits(device.run(op, last, eps, 77, ids, lo, hi), got)


@pytest.mark.parametrize("dtype", [F32, F64, F16, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 33), (9, 3, 32, 32), (9, 3, 224, 224), (9, 0)], ids=str)
def test_copy_rows(device, shape, dtype):
    src, dst = ((t > 0 if dtype == torch.bool else t.to(dtype)) for t in tensors(shape, (F64, F64), spread=40.0)[:2])
    mask = torch.tensor([True, False, False, True, True, False, True, False, True])
    want = reference.copy_rows(dst, src, mask)
    moves = [lambda t: t.to(device.torch, copy=True)]
    if dst.numel() and dtype.is_floating_point:
        moves.append(lambda t: place(device, t, "odd_rows")[0])
    for move in moves:
        got = move(dst)
        assert device.run("copy_rows_", got, move(src), mask) is got
        assert_same(got, want)
    if len(shape) == 4:
        got = dst.to(device.torch, copy=True, memory_format=torch.channels_last)
        device.run("copy_rows_", got, src, mask)
        assert_same(got, want)
