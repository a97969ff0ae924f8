"""Layout, batch and run do not change a bit of what the CUDA kernels give; emulated too."""

from __future__ import annotations

import math

import pytest
import torch
from support.cuda_tensors import TILED, assert_close, assert_same, check_step, place, radius, tensors, wide
from support.strategies import DTYPE_PAIRS, STEPS, bits, same_bits

from advfeat import reference


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("layout", ["dense", "odd_start", "apart", "odd_rows", "odd_start_last", "odd_rows_last"])
@pytest.mark.parametrize(
    "shape",
    [(4, 3, 6, 7), (3, 3, 32, 32), (2, 3, 128, 128), (2, 3, 224, 224), (2, 4, 256, 256), (2, 7, 11, 9091)],
    ids=str,
)
@pytest.mark.parametrize("op", STEPS)
def test_layouts_and_stray_accesses(device, op, shape, layout, dtypes):
    device.skip_long_rows(math.prod(shape[1:]), dtypes)
    device.skip_layout(math.prod(shape[1:]), layout)
    x, grad, x0 = tensors(shape, dtypes)
    rest = (0.07, radius(op, shape), 0.0, 1.0)
    memory_format = torch.channels_last if layout.endswith("_last") else torch.contiguous_format
    plain = [t.contiguous(memory_format=memory_format) for t in device.put(x, grad, x0)]
    want = device.run(op, *plain, *rest)
    placed = [place(device, t, layout) for t in (x, grad, x0)]
    got = device.run(op, *[view for view, _, _ in placed], *rest)
    assert same_bits(got, want), "alignment and gaps should not change a bit"
    view, buffer, outside = placed[0]
    before = bits(buffer)[outside]
    assert device.run(op + "_", view, placed[1][0], placed[2][0], *rest) is view
    assert same_bits(view, want), "in place"
    assert torch.equal(bits(buffer)[outside], before), "written outside of x"
    # one tensor misaligned, the others not
    for i in range(3):
        mixed = [place(device, t, layout)[0] if i == j else plain[j] for j, t in enumerate((x, grad, x0))]
        assert same_bits(device.run(op, *mixed, *rest), want)


@pytest.mark.parametrize("op", STEPS)
def test_other_layouts(device, op):
    x, grad, x0 = tensors((6, 5, 4, 3))
    rest = (0.07, radius(op, x.shape), 0.0, 1.0)
    want = device.run(op, x, grad, x0, *rest)
    batch_last, cut = lambda t: t.transpose(0, 3).contiguous().transpose(0, 3), lambda t: torch.cat([t, t], 3)[..., :3]
    for rearranged in (batch_last, cut):
        views = [rearranged(t) for t in device.put(x, grad, x0)]
        assert_same(device.run(op, *views, *rest), want)
        device.run(op + "_", *views, *rest)
        assert_same(views[0], want)
    (one,) = device.put(x0[:1])
    one = one.expand(6, 5, 4, 3)
    assert_same(device.run(op, x, grad, one, *rest), device.run(op, x, grad, one.clone(), *rest))


# Beside the large ones, more rows than an H200 has places for clusters: each of them does several rows.
@pytest.mark.parametrize(
    "shape", [(9, 37), (9, 3, 32, 32), (150, 3, 128, 128), (50, 3, 224, 224), (30, 262_144), (9, TILED)], ids=str
)
@pytest.mark.parametrize("op", STEPS)
def test_results_repeat_and_do_not_depend_on_the_batch(device, op, shape):
    if device.emulated:
        shape = (9, *shape[1:])  # its device has fewer places
    x, grad, x0 = device.put(*tensors(shape))
    rest = (0.07, radius(op, shape))
    want = device.run(op, x, grad, x0, *rest)
    assert_close(want[-1:], getattr(reference, op)(*wide(x[-1:].cpu(), grad[-1:].cpu(), x0[-1:].cpu()), *rest))
    for _ in range(3):
        assert same_bits(device.run(op, x, grad, x0, *rest), want)
    for part in (slice(0, 1), slice(3, 8)):
        assert same_bits(device.run(op, x[part], grad[part], x0[part], *rest), want[part])


def test_more_rows_than_threads_of_a_wave(device):
    x, grad, x0 = tensors((20_001 if device.emulated else 300_001, 3))
    for op in STEPS:
        check_step(device, op, [x, grad, x0, 0.1, 0.2, 0.0, 1.0])
