"""The hash of each sample on CUDA, emulated too: the bits of the CPU kernel and of the reference."""

from __future__ import annotations

import math

import pytest
import torch
from support.cuda_tensors import LONG, SHAPES, TILED, place, tensors
from support.strategies import BF16, F16, F32, F64

from advfeat import ops, reference


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0), *SHAPES, *LONG], ids=str)
def test_hash_rows(device, shape, dtype):
    device.skip_long_rows(math.prod(shape[1:]), (dtype,))
    x = tensors(shape, (dtype, dtype))[0]
    want = reference.hash_rows(x)
    got = device.run("hash_rows", x)
    assert got.device.type == device.torch.type and torch.equal(got.cpu(), want)
    assert torch.equal(ops.hash_rows(x), want)
    if x.numel():
        for layout in ("odd_start", "apart", "odd_rows"):
            assert torch.equal(device.run("hash_rows", place(device, x, layout)[0]).cpu(), want), layout
    if x.numel() and len(shape) == 4:
        for layout in ("dense_last", "odd_rows_last"):
            assert torch.equal(device.run("hash_rows", place(device, x, layout)[0]).cpu(), want), layout
        batch_last = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        assert torch.equal(device.run("hash_rows", batch_last).cpu(), want)


@pytest.mark.parametrize("shape", [(9, 37), (9, 3, 32, 32), (9, TILED)], ids=str)
def test_hashes_repeat_and_do_not_depend_on_the_batch(device, shape):
    x = tensors(shape)[0]
    want = reference.hash_rows(x)
    for part in (slice(0, 9), slice(0, 1), slice(3, 8), slice(0, 9)):
        assert torch.equal(device.run("hash_rows", x[part]).cpu(), want[part])


def test_more_rows_than_threads_of_a_wave(device):
    x = tensors((20_001 if device.emulated else 300_001, 3))[0]
    assert torch.equal(device.run("hash_rows", x).cpu(), reference.hash_rows(x))


@pytest.mark.cuda
def test_a_captured_hash_is_replayed():
    x, y = torch.rand(5, 3, 32, 32, device="cuda"), torch.rand(5, 3, 32, 32, device="cuda")
    ops.hash_rows(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.hash_rows(x)
    for values in (y, x.clone()):
        x.copy_(values)
        graph.replay()
        assert torch.equal(got, ops.hash_rows(values))
