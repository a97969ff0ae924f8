"""Accumulated gradients of L1 norm 1: against the float64 reference, and what holds for any arguments."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import (
    BF16,
    DTYPE_PAIRS,
    F16,
    F32,
    F64,
    INNER,
    LAYOUTS,
    LONG,
    ROWS,
    Placed,
    arithmetic,
    place,
    same_bits,
    unit_roundoff,
)

from advfeat import ops, reference

DECAYS = [0.0, 0.5, 0.9, 1.0]
BAD = [0.0, math.nan, math.inf, -math.inf]


@dataclasses.dataclass
class Case:
    """The arguments of one call, each tensor in a buffer of NaN."""

    total: Placed
    grad: Placed
    decay: float

    def call(self, **kwargs) -> torch.Tensor:
        return ops.accumulate_gradient_(self.total.view, self.grad.view, self.decay, **kwargs)


@st.composite
def cases(draw, *, inner=None, rows=None, pairs=None, layouts=None) -> Case:
    shape = (draw(st.sampled_from(rows or ROWS)), *draw(st.sampled_from(inner or INNER + LONG)))
    dtype, grad_dtype = draw(st.sampled_from(pairs or DTYPE_PAIRS))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    total = torch.randn(shape, generator=g, dtype=F64) * draw(st.sampled_from([0.0, 1e-3, 1.0]))
    grad = torch.randn(shape, generator=g, dtype=F64) * 10.0 ** draw(st.integers(-3, 3))
    if draw(st.booleans()):
        grad = grad * (torch.rand(shape, generator=g) < 0.5)
    places = st.sampled_from(layouts or LAYOUTS)
    grad_layout = draw(st.sampled_from([*(layouts or LAYOUTS), *([] if layouts else ["expanded"])]))
    placed = place(total.to(dtype), draw(places)), place(grad.to(grad_dtype), grad_layout)
    return Case(*placed, draw(st.sampled_from(DECAYS)))


@given(case=cases())
def test_agrees_with_the_reference(case):
    before, grad = case.total.view.double().clone(), case.grad.view.double()
    expected = reference.accumulate_gradient(before, grad, case.decay)
    result = case.call()
    assert result is case.total.view
    room = 4 * unit_roundoff(arithmetic(result.dtype)) * (before.abs() + 1)
    room = room + 1.01 * unit_roundoff(result.dtype) * expected.abs() + torch.finfo(result.dtype).smallest_normal
    assert ((result.double() - expected).abs() <= room).all()
    case.total.check()
    case.grad.check(view_too=True)


@given(
    grad=st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=4),
    decay=st.sampled_from(DECAYS),
)
def test_it_is_what_its_definition_says(grad, decay):
    total = ops.accumulate_gradient_(torch.ones(len(grad), 4, dtype=F64), torch.tensor(grad, dtype=F64), decay)
    want = [[decay + (v / sum(map(abs, row)) if any(row) else 0.0) for v in row] for row in grad]
    torch.testing.assert_close(total, torch.tensor(want, dtype=F64), rtol=0, atol=1e-15)


@given(case=cases(rows=[5]), order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_samples_do_not_know_each_other(case, order, cut):
    """Any split and order of the batch gives the same bits for each sample."""

    def run(index):
        total = case.total.view[index].clone(memory_format=torch.preserve_format)
        return ops.accumulate_gradient_(total, case.grad.view[index], case.decay)

    whole = run(slice(0, 5))
    assert same_bits(torch.cat([run(slice(0, cut)), run(slice(cut, 5))]), whole)
    assert same_bits(run(torch.tensor(order)), whole[torch.tensor(order)])


@given(case=cases(rows=[1, 3], layouts=["contiguous", "rows_apart"]), layout=st.sampled_from(LAYOUTS))
def test_the_layout_of_the_gradient_changes_nothing(case, layout):
    total, other = case.total.view.clone(), place(case.grad.view, layout).view
    assert same_bits(ops.accumulate_gradient_(total, other, case.decay), case.call())


@given(case=cases(pairs=[(F32, F32), (F64, F64)], layouts=["contiguous"]), exponent=st.integers(-99, 99))
def test_a_power_of_two_in_the_gradient_changes_no_bit(case, exponent):
    total = case.total.view.clone()
    assert same_bits(ops.accumulate_gradient_(total, case.grad.view * 2.0**exponent, case.decay), case.call())


@pytest.mark.parametrize("dtypes", [(F32, F32), (F32, BF16), (BF16, BF16)], ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (2, 33), (2, 3, 17, 16), (2, 9000)], ids=str)
@given(exponent=st.integers(-38, 36), decay=st.sampled_from(DECAYS))
def test_any_gradient_adds_its_direction(dtypes, shape, exponent, decay):
    g = torch.Generator().manual_seed(exponent + 50)
    grad = (torch.randn(shape, generator=g, dtype=F64).clamp(-3, 3) * 10.0**exponent).to(dtypes[1])
    total = torch.randn(shape, generator=g).to(dtypes[0])
    want = reference.accumulate_gradient(total.double(), grad.double(), decay)
    status = torch.zeros(2, 2, dtype=torch.int32)
    got = ops.accumulate_gradient_(total, grad, decay, grad_status=status)
    torch.testing.assert_close(got.double(), want, rtol=4 * unit_roundoff(dtypes[0]), atol=2e-7)
    assert not status.any()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(F32, 1e-45), (F32, 1e-38), (F32, 3.4e38), (F64, 5e-324), (F64, 1e-320), (F64, 1e300), (F64, 1.7e308), (F16, 6e4)],
)
@pytest.mark.parametrize("dim", [1, 7, 5000])
def test_largest_and_smallest_gradients(dtype, value, dim):
    """Their norm vanishes in float32 or overflows even in float64."""
    signs = torch.where(torch.arange(dim) % 3 == 0, -1.0, 1.0).expand(2, dim)
    grad, status = (signs.double() * value).to(dtype), torch.zeros(2, 2, dtype=torch.int32)
    got = ops.accumulate_gradient_(torch.zeros(2, dim, dtype=dtype), grad, 1.0, grad_status=status)
    want = (signs.double() / dim).to(dtype)
    room = 4 * unit_roundoff(dtype) + dim * 2.0**-53  # of the sum
    torch.testing.assert_close(got, want, rtol=room if dtype != F16 else 1e-3, atol=0)
    assert not status.any()


@given(case=cases(rows=[5]), bad=st.sampled_from(BAD), where=st.integers(0, 2**31))
def test_a_bad_gradient_adds_nothing_and_is_counted(case, bad, where):
    grad = case.grad.view.clone(memory_format=torch.contiguous_format)
    total = case.total.view.clone(memory_format=torch.contiguous_format)
    good, values = ops.accumulate_gradient_(total.clone(), grad, case.decay), grad.view(5, -1)
    if bad == 0:
        values[1] = 0
    else:
        values[1, where % values.shape[1]] = bad
    zero, broken = (values == 0).all(dim=1), (~values.isfinite()).any(dim=1)
    status = torch.zeros(5, 2, dtype=torch.int32)
    got = ops.accumulate_gradient_(total.clone(), grad, case.decay, grad_status=status)
    assert torch.equal(status, torch.stack([zero, broken], dim=1).int()) and zero[1] | broken[1]
    decayed = (case.decay * total.to(arithmetic(total.dtype))).to(total.dtype)
    unmoved = zero | broken
    assert same_bits(got[unmoved] + 0, decayed[unmoved] + 0) and same_bits(got[~unmoved], good[~unmoved])


def test_status_adds_up_and_a_bad_total_stays_in_its_sample():
    total, grad = torch.zeros(3, 4), torch.ones(3, 4)
    total[1, 2], grad[2] = math.nan, 0
    status = torch.zeros(3, 2, dtype=torch.int32)
    for _ in range(4):
        ops.accumulate_gradient_(total, grad, 1.0, grad_status=status)
    assert status.tolist() == [[0, 0], [0, 0], [4, 0]]
    assert torch.equal(total[0], torch.ones(4)) and torch.equal(total[2], torch.zeros(4))
    assert total[1].isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("shape", [(1, 3, 64, 65), (2, 9001), (300, 12), (3, 100_000)])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_threads_change_nothing(shape, dtype, threads):
    g = torch.Generator().manual_seed(0)
    total, grad = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(2))
    if dtype == F64:
        grad[0] *= 1e307  # a sum that is taken again
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(ops.accumulate_gradient_(total.clone(), grad, 0.9))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


_LEVELS = """
import sys, torch
from advfeat import build_config, ops
g = torch.Generator().manual_seed(0)
print(build_config()["simd_level"], file=sys.stderr)
out = []
for dtype, grad_dtype in [(d, d) for d in ("float32", "float64", "bfloat16", "float16")] + [("float32", "float16")]:
    for shape in ((3, 5), (2, 4099), (4, 3, 17, 17)):
        total = torch.randn(shape, generator=g).to(getattr(torch, dtype))
        grad = (1e-6 * torch.randn(shape, generator=g)).to(getattr(torch, grad_dtype))
        out.append(ops.accumulate_gradient_(total, grad, 0.9))
words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
torch.save([t.view(words[t.element_size()]) for t in out], sys.argv[1])
"""


@pytest.mark.slow
def test_simd_levels_give_the_same_bits(tmp_path):
    saved = {}
    for level in ("default", "avx2", "avx512"):
        path, environment = tmp_path / f"{level}.pt", {**os.environ, "ADVFEAT_SIMD": level}
        done = subprocess.run(
            [sys.executable, "-c", _LEVELS, str(path)], env=environment, capture_output=True, text=True
        )
        if done.returncode and "supported by this processor" in done.stderr:
            continue
        assert done.returncode == 0 and done.stderr.strip() == level, done.stderr
        saved[level] = torch.load(path, weights_only=True)
    assert "default" in saved
    for level, tensors in saved.items():
        for i, (a, b) in enumerate(zip(saved["default"], tensors, strict=True)):
            assert torch.equal(a, b), (level, i)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dense_tensors_are_used_where_they_are(memory_format):
    """No copy: no tensor is made that is as large as they are."""
    total, grad = (torch.randn(4, 3, 64, 64).to(memory_format=memory_format) for _ in range(2))
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.accumulate_gradient_(total, grad, 0.9)
    allocated = [event.self_cpu_memory_usage for event in profile.key_averages()]
    assert max(allocated, default=0) < total.nbytes


def test_the_total_may_be_the_gradient_itself():
    grad = torch.randn(3, 50)
    want = ops.accumulate_gradient_(grad.clone(), grad.clone(), 0.5)
    assert same_bits(ops.accumulate_gradient_(grad, grad, 0.5), want)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1,)])
def test_nothing_to_do(shape):
    status = torch.zeros(shape[0], 2, dtype=torch.int32)
    total = ops.accumulate_gradient_(torch.zeros(shape), torch.ones(shape), 0.5, grad_status=status)
    assert total.shape == shape and not status.any()


MISTAKES = [
    ({"total": torch.tensor(1.0)}, "total should be a batch"),
    ({"total": torch.zeros(2, 3, dtype=torch.int64)}, "total should be float32, float64, float16 or .*, got Long"),
    ({"grad": torch.zeros(2, 4)}, r"grad should have the shape of total \(2, 3\), got \(2, 4\)"),
    (
        {"grad": torch.zeros(2, 3, dtype=F64)},
        "grad should have the dtype of total, or be float16 or bfloat16 when total is float32; total is Float and grad "
        "Double",
    ),
    ({"grad": torch.zeros(2, 3, device="meta")}, "grad should be on the device of total"),
    ({"decay": -0.1}, "decay should be at least 0 and at most 1, got -0.1"),
    ({"decay": 1.5}, "decay should be at least 0 and at most 1, got 1.5"),
    ({"decay": math.nan}, "decay should be at least 0 and at most 1, got nan"),
    ({"decay": "0.5"}, "decay"),
    ({"grad_status": torch.zeros(2, 2)}, r"grad_status should be a contiguous int32 tensor \[B, 2\] = \(2, 2\), got"),
    ({"grad_status": torch.zeros(3, 2, dtype=torch.int32)}, "grad_status should be a contiguous int32 tensor"),
    ({"total": [0.0]}, "total should be a torch tensor, got list"),
    ({"grad": None}, "grad"),
]


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize(("wrong", "message"), MISTAKES)
def test_mistakes_are_named(wrong, message, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(ops, "_has_kernel", lambda *_: False)
    with pytest.raises(RuntimeError, match=message):
        ops.accumulate_gradient_(**{"total": torch.zeros(2, 3), "grad": torch.ones(2, 3), "decay": 0.5} | wrong)


def test_memory_that_is_read_after_it_is_written_is_refused():
    buffer = torch.zeros(9)
    with pytest.raises(RuntimeError, match="grad should not share a part of its memory with total"):
        ops.accumulate_gradient_(buffer[:6].view(2, 3), buffer[3:].view(2, 3), 0.5)
    with pytest.raises(RuntimeError, match="total is written to, so its values should not share memory"):
        ops.accumulate_gradient_(torch.zeros(2, 1).expand(2, 3), torch.ones(2, 3), 0.5)


def test_autograd_is_refused_and_sees_what_was_written():
    total, grad = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="accumulate_gradient_ has no gradient"):
        ops.accumulate_gradient_(total, grad.clone().requires_grad_(), 0.5)
    product = torch.ones(2, 3, requires_grad=True) * total
    ops.accumulate_gradient_(total, grad, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
