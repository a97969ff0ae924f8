"""Accumulated gradients on CUDA, emulated too, against the float64 reference and the CPU kernel."""

from __future__ import annotations

import math

import pytest
import torch
from support.cuda_tensors import LONG, SHAPES, TILED, assert_close, place, tensors
from support.strategies import BF16, DTYPE_PAIRS, F32, F64, bits, same_bits

from advfeat import ops, reference


def check(device, total, grad, decay=0.9):
    """Runs it on the device; compares with the reference and with the CPU kernel, whose sums have another order."""
    want = reference.accumulate_gradient(total.double(), grad.double(), decay)
    here = device.put(total.clone())[0]
    assert device.run("accumulate_gradient_", here, grad, decay) is here
    assert_close(here, want, "CUDA and the reference")
    assert_close(here, ops.accumulate_gradient_(total.clone(), grad, decay), "CUDA and the CPU", roundings=2)
    return here


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
def test_accumulated_gradients(device, shape, dtypes):
    device.skip_long_rows(math.prod(shape[1:]), dtypes)
    total, grad, _ = tensors(shape, dtypes)
    for decay in (0.75, 1.0):
        check(device, total / max(1, total[0].numel()), grad, decay)


@pytest.mark.parametrize("shape", [(3, 5), (3, 3, 32, 32), (2, 3, 224, 224)], ids=str)
@pytest.mark.parametrize(
    "dtypes, scale",
    [((F32, F32), 1e-44), ((F32, F32), 1e37), ((F64, F64), 1e-320), ((F64, F64), 4e307), ((F32, BF16), 1e-38)],
    ids=str,
)
def test_gradients_of_any_scale(device, dtypes, scale, shape):
    device.skip_long_rows(math.prod(shape[1:]), dtypes, but=[F64])
    _, grad, _ = tensors(shape, (F64, F64))
    grad = (grad.clamp(-4, 4) * scale).to(dtypes[1])
    # from zeros, and so many times as large that nothing is lost in the tolerance for values of size 1
    here = check(device, torch.zeros(shape, dtype=dtypes[0]), grad)
    share = here.cpu().double() * math.prod(shape[1:])
    want = reference.accumulate_gradient(torch.zeros(shape, dtype=F64), grad.double(), 1.0) * math.prod(shape[1:])
    torch.testing.assert_close(share, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", ["dense", "odd_start", "apart", "odd_rows", "dense_last", "odd_rows_last"])
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
def test_any_place_and_layout(device, layout, dtypes):
    values, grad, _ = tensors((3, 3, 9, 11), dtypes)
    total, buffer, outside = place(device, values, layout)
    before = buffer.clone()
    memory_format = torch.channels_last if layout.endswith("_last") else torch.contiguous_format
    device.run("accumulate_gradient_", total, grad.to(memory_format=memory_format), 0.9)
    want = reference.accumulate_gradient(values.double(), grad.double(), 0.9)
    assert_close(total, want)
    assert torch.equal(bits(buffer)[outside], bits(before)[outside]), "nothing outside was written"


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("shape", [(6, 37), (6, 3, 32, 32), (6, 3, 224, 224)], ids=str)
def test_bad_gradients_add_nothing_and_are_counted(device, shape, dtype):
    total, grad, _ = tensors(shape, (dtype, dtype))
    good = device.put(total.clone())[0]
    device.run("accumulate_gradient_", good, grad, 0.5)
    last = math.prod(shape[1:]) - 1
    grad[1] = 0
    grad[2].view(-1)[last] = math.nan
    grad[3].view(-1)[last // 2] = math.inf
    total[4].view(-1)[last] = math.nan
    status = torch.zeros((6, 2), dtype=torch.int32).to(device.torch)
    here = device.put(total.clone())[0]
    device.run("accumulate_gradient_", here, grad, 0.5, grad_status=status)
    assert status.cpu().tolist() == [[0, 0], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]]
    assert same_bits(here[[0, 5]], good[[0, 5]]), "other samples are as without"
    assert same_bits(here[1:4].cpu() + 0, 0.5 * total[1:4] + 0)
    assert here[4].isnan().sum() == 1


def test_a_sample_does_not_know_its_batch(device):
    total, grad, _ = tensors((5, 3, 33, 31))
    whole = device.put(total.clone())[0]
    device.run("accumulate_gradient_", whole, grad, 0.9)
    for i in range(5):
        one = device.put(total[i : i + 1].clone())[0]
        assert same_bits(device.run("accumulate_gradient_", one, grad[i : i + 1], 0.9), whole[i : i + 1])


@pytest.mark.cuda
@pytest.mark.skipif(ops._C is None or not ops._C.build_config()["cuda"], reason="the extension was built without CUDA")
@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (2, 3, 224, 224), (2, TILED)], ids=str)
def test_it_is_captured_and_nothing_synchronises(shape):
    total, grad, _ = (t.cuda() for t in tensors(shape))
    want, status = total.clone(), torch.zeros(shape[0], 2, dtype=torch.int32, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            ops.accumulate_gradient_(want, grad, 0.9, grad_status=status)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.accumulate_gradient_(total, grad, 0.9, grad_status=status)
    for _ in range(3):
        graph.replay()
    assert same_bits(total, want) and not status.any()
