"""The operators against the float64 reference, and what holds for any arguments."""

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
    PROJECTIONS,
    STEPS,
    Case,
    arithmetic,
    as_channels,
    as_rows,
    cases,
    place,
    same_bits,
    unit_roundoff,
)

from advfeat import ops

ALL = STEPS + PROJECTIONS


def tolerance(case: Case, op: str, expected):
    """A few roundings of the values met on the way, and one of the result to its dtype.

    With d the distance of x from x0 and s the step, no intermediate value is larger than |x0| + |d| + |s|; each of the
    at most eight operations on a value, and the conversion of eps, step_size and the bounds, rounds once.
    """
    x, x0 = case.x.view.double(), case.x0.view.double()
    size = torch.zeros(()) if op in PROJECTIONS else as_rows(case.step_size, x).abs()
    largest = x.abs() + 2 * x0.abs() + size + torch.nan_to_num(as_rows(case.eps, x), posinf=0.0).clamp(max=1e30)
    bounds = [torch.as_tensor(b, dtype=F64).abs().nan_to_num(posinf=0.0).max() for b in (case.lo, case.hi)]
    return 12 * unit_roundoff(arithmetic(case.dtype)) * (largest + max(bounds)) + unit_roundoff(case.dtype) * 2 * (
        expected.abs() + 1e-8
    )


@pytest.mark.parametrize("op", ALL)
@given(case=cases())
def test_agrees_with_the_reference(op, case):
    result = case.call(op)
    assert result.dtype == case.dtype and result.shape == case.shape
    expected = case.reference(op)
    error = (result.double() - expected).abs()
    worst = error - tolerance(case, op, expected)
    assert not (worst > 0).any(), f"off by {error.max()}"
    case.check_inputs()


@pytest.mark.parametrize("op", ALL)
@given(case=cases())
def test_in_place_is_out_of_place_to_the_bit(op, case):
    expected = case.call(op)
    result = case.call(op + "_")
    assert result is case.x.view
    assert same_bits(result, expected)
    case.x.check()  # nothing beside x was written
    case.grad.check(view_too=True)
    case.x0.check(view_too=True)


@pytest.mark.parametrize("op", ALL)
@given(case=cases())
def test_layout_changes_nothing(op, case):
    """The same bits however the tensors lie; but norms of channels_last rows are summed in another order."""
    result, plain = case.call(op), case.clone().call(op)
    if "linf" in op or not case.x.layout.startswith("channels_last"):
        assert same_bits(result, plain)
    else:  # float64 sums of D terms, then a last bit of the result
        slack = 1000 * 2.0**-53 + 2 * unit_roundoff(case.dtype)
        assert ((result.double() - plain.double()).abs() <= slack * (plain.double().abs() + 1)).all()


@pytest.mark.parametrize("op", ALL)
@given(case=cases(rows=[5]), order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_samples_do_not_know_each_other(op, case, order, cut):
    """Any split and order of the batch gives the same bits for each sample."""
    whole = case.call(op)
    parts = [getattr(ops, op)(*case.rows(slice(a, b))(op)) for a, b in ((0, cut), (cut, 5))]
    assert same_bits(torch.cat(parts), whole)
    order = torch.tensor(order)
    assert same_bits(getattr(ops, op)(*case.rows(order)(op)), whole[order])


def by_row(norm, order=2):
    return torch.linalg.vector_norm(norm.reshape(len(norm), -1), order, dim=1)


@pytest.mark.parametrize("op", ALL)
@given(case=cases(x0_in_box=True))
def test_result_is_feasible(op, case):
    """L-inf and box: exactly, between the bounds as numbers of the arithmetic type, rounded to the dtype as the result
    is (rounding is monotone). L2, L1: the norm exceeds eps by no more than the rounding of the values can make it."""
    result, x0, a = case.call(op).double(), case.x0.view.double(), arithmetic(case.dtype)

    def stored(bound):
        return bound.to(a).to(case.dtype).double()

    assert (result >= stored(as_channels(case.lo, result))).all()
    assert (result <= stored(as_channels(case.hi, result))).all()
    eps = as_rows(case.eps, result)
    if "linf" in op:
        assert (result >= stored(x0.to(a) - eps.to(a))).all()
        assert (result <= stored(x0.to(a) + eps.to(a))).all()
    elif "l1" in op and case.shape.numel():
        u = unit_roundoff(case.dtype)
        subnormal = torch.finfo(case.dtype).smallest_normal * u * result[0].numel()
        # the sum with x0 in the arithmetic type, then one rounding of each value
        room = 4 * unit_roundoff(a) * (eps.flatten() + by_row(x0, 1)) + (u + unit_roundoff(a)) * by_row(result, 1)
        assert (by_row(result - x0, 1) <= eps.flatten() + room + subnormal).all()
    elif case.shape.numel():
        u = unit_roundoff(case.dtype)
        subnormal = torch.finfo(case.dtype).smallest_normal * u * math.sqrt(result[0].numel())
        # shrink, its two products and the sum with x0 in the arithmetic type; then one rounding of each value
        room = 4 * unit_roundoff(a) * (eps.flatten() + moved_from(case, op)) + (u + unit_roundoff(a)) * by_row(result)
        assert (by_row(result - x0) <= eps.flatten() + room + subnormal).all()


def moved_from(case, op):
    """||d|| + step, times the factor by which the ball shrinks them: what the roundings of both amount to."""
    x, x0 = case.x.view.double(), case.x0.view.double()
    size = 0.0 if op in PROJECTIONS else as_rows(case.step_size, x).abs().flatten()
    reach, eps = by_row(x - x0) + size, as_rows(case.eps, x).flatten()
    free = Case(case.x, case.grad, case.x0, case.step_size, math.inf, -math.inf, math.inf)
    moved = by_row(free.reference(op) - x0)
    return reach * torch.where(moved > eps, eps / moved.clamp(min=1e-300), 1.0)


@pytest.mark.parametrize("op", PROJECTIONS)
@given(case=cases(x0_in_box=True))
def test_projection_is_idempotent(op, case):
    """L-inf: to the bit. L2: rounding may leave the result outside; the second time each value gives up its share.
    L1: all values together give up what is outside."""
    once = case.call(op)
    twice = getattr(ops, op)(once, case.x0.view, case.eps, case.lo, case.hi)
    if op == "project_linf":
        assert same_bits(once, twice)
    elif op == "project_l1" and case.shape.numel():
        u, x0 = unit_roundoff(case.dtype), case.x0.view.double()
        once, twice = once.double(), twice.double()
        excess = (u + unit_roundoff(arithmetic(case.dtype))) * 2 * (by_row(once, 1) + by_row(x0, 1))
        assert (by_row(once - twice, 1) <= 2 * excess + torch.finfo(case.dtype).smallest_normal * u).all()
    elif case.shape.numel():
        u, x0, eps = unit_roundoff(case.dtype), case.x0.view.double(), as_rows(case.eps, once)
        once, twice = once.double(), twice.double()
        room = u * by_row(once) + 8 * unit_roundoff(arithmetic(case.dtype)) * (eps.flatten().nan_to_num(posinf=0) + 1)
        share = (once - x0).abs() / eps.clamp(min=1e-30) * room.reshape(eps.shape)
        rounding = 3 * u * (once.abs() + x0.abs()) + torch.finfo(case.dtype).smallest_normal * u
        assert ((once - twice).abs() <= share + rounding).all()


@pytest.mark.parametrize("op", ALL)
@given(case=cases(inner=INNER, dtype_pairs=[(F32, F32), (F64, F64)], eps=st.floats(1e3, 1e6)))
def test_interior_points_are_not_rounded(op, case):
    """Far from any boundary a projection is the identity to the bit, and a step of length 0 as well."""
    case.lo, case.hi = -math.inf, math.inf
    case.step_size = 0.0
    assert same_bits(case.call(op), case.x.view + 0)


@pytest.mark.parametrize("op", ALL)
@given(case=cases(x0_in_box=True, dtype_pairs=[(F32, F32), (F64, F64), (BF16, BF16)]))
def test_eps_zero_is_the_identity(op, case):
    case.eps = 0.0
    assert torch.equal(case.call(op), case.x0.view)


@pytest.mark.parametrize("op", ALL)
@given(
    case=cases(dtype_pairs=[(F32, F32), (F64, F64)]),
    exponent=st.integers(-60, 60),
    grad_exponent=st.integers(-100, 100),
)
def test_powers_of_two_scale_exactly(op, case, exponent, grad_exponent):
    """Everything times 2^k gives the result times 2^k to the bit; the gradient's own scale does not matter at all."""
    scale, grad_scale = 2.0**exponent, 2.0**grad_exponent
    case = case.clone()  # sums in the same order
    plain = case.call(op)
    scaled = Case(
        place(case.x.view * scale),
        place(case.grad.view * grad_scale),
        place(case.x0.view * scale),
        *((v.double() if isinstance(v, torch.Tensor) else v) * scale for v in (case.step_size, case.eps)),
        *((v.double() if isinstance(v, torch.Tensor) else v) * scale for v in (case.lo, case.hi)),
    )
    assert same_bits(scaled.call(op), plain.contiguous() * scale)


@pytest.mark.parametrize("grad_dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(3, 1), (3, 7), (2, 3, 16, 16), (2, 9000)])
@given(exponent=st.floats(-44, 37.5))
def test_any_gradient_gives_its_direction(grad_dtype, shape, exponent):
    """From subnormal numbers to the largest: the step has its length and the gradient's direction. No floor."""
    if grad_dtype == F64:
        exponent *= 7.8  # 1e-343 (zero) ... 1e292
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    grad = (g / g.abs().max() * 10.0**exponent).to(grad_dtype)
    x0 = torch.zeros(shape, dtype=grad_dtype)
    moved = ops.l2_step(x0, grad, x0, 0.25, math.inf, -math.inf, math.inf).double()
    alive = (grad != 0).flatten(1).any(1)
    norm = moved.flatten(1).norm(dim=1)
    assert torch.allclose(norm[alive], torch.full_like(norm[alive], 0.25), rtol=1e-6)
    assert (norm[~alive] == 0).all()
    exact = (grad.double() / grad.double().abs().max()).flatten(1)
    exact = 0.25 * exact / exact.norm(dim=1, keepdim=True)
    assert torch.allclose(moved.flatten(1)[alive], exact[alive], rtol=1e-5, atol=1e-7)
    sign = ops.linf_step(x0, grad, x0, 0.25, math.inf, -math.inf, math.inf)
    assert torch.equal(sign, 0.25 * torch.sign(grad))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_float64_squares_that_leave_the_range(dtype):
    """1e200 squared overflows and 1e-200 squared vanishes: such rows are summed again with powers of two taken out."""
    for exponent in (
        (-200, 200, 307) if dtype == F64 else (-36, 37)
    ):  # normal numbers: some libraries switch subnormal ones off
        grad = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=dtype) * 10.0**exponent / 5
        x0 = torch.zeros(2, 2, dtype=dtype)
        moved = ops.l2_step(x0, grad, x0, 1.0, math.inf, -math.inf, math.inf)
        expected = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=dtype)
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=0)
        x = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=dtype) * 10.0**exponent / 5  # norms 1 and 0.2
        projected = ops.project_l2(x, x0, 0.5 * 10.0**exponent, -math.inf, math.inf)
        expected = torch.stack([0.5 * x[0], x[1]])
        torch.testing.assert_close(projected, expected, rtol=1e-5 if dtype == F32 else 1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("op", STEPS)
@given(case=cases(rows=[3], inner=[(5,), (3, 4, 5), (4097,)], dtype_pairs=[p for p in DTYPE_PAIRS if p[0] != F16]))
def test_a_bad_gradient_stays_in_its_sample(op, bad, case):
    case = case.clone()
    good = case.call(op)
    case.grad.view[1].reshape(-1)[2] = bad
    status = torch.zeros(3, 2, dtype=torch.int32)
    zero = (case.grad.view.flatten(1) == 0).all(1)
    result = case.call(op, grad_status=status)
    assert same_bits(result[[0, 2]], good[[0, 2]])
    assert result.isfinite().all()
    assert status[:, 1].tolist() == [0, 1, 0]
    assert status[:, 0].tolist() == zero.int().tolist()
    if op == "l2_step":  # it does not move, but is projected
        still = ops.project_l2(case.x.view, *(case.arguments("project_l2")[1:]))
        assert same_bits(result[1], still[1])


@pytest.mark.parametrize("op", ALL)
def test_a_bad_sample_stays_alone(op):
    x0 = torch.rand(3, 2, 3)
    x = x0.clone()
    x[1, 0, 1] = math.nan
    grad = torch.randn(3, 2, 3)
    rest = [] if op in PROJECTIONS else [0.1]
    first = (x, x0) if op in PROJECTIONS else (x, grad, x0)
    result = getattr(ops, op)(*first, *rest, 0.2)
    assert result[[0, 2]].isfinite().all() and result[1, 0, 1].isnan()


@pytest.mark.parametrize("op", STEPS)
@given(case=cases(rows=[4], inner=INNER))
def test_status_counts_without_changing_the_result(op, case):
    case = case.clone()
    case.grad.view[2] = 0
    status = torch.full((4, 2), 7, dtype=torch.int32)
    plain = case.call(op)
    assert same_bits(case.call(op, grad_status=status), plain)
    zero = (case.grad.view.reshape(4, -1) == 0).all(1)
    assert status[:, 0].tolist() == (7 + zero.int()).tolist() and (status[:, 1] == 7).all()
    case.call(op + "_", grad_status=status)
    assert status[:, 0].tolist() == (7 + 2 * zero.int()).tolist()


@given(case=cases(rows=[4]))
@pytest.mark.parametrize("op", ALL)
def test_numbers_by_sample_are_the_numbers_one_by_one(op, case):
    eps, size = torch.tensor([0.1, 0.0, 2.0, math.inf], dtype=F64), torch.tensor([0.5, 0.01, -0.2, 0.0], dtype=F64)
    case.eps, case.step_size = eps, size
    together = case.call(op)
    for i in range(4):
        case.eps, case.step_size = float(eps[i]), float(size[i])
        assert same_bits(case.call(op)[i], together[i])


@given(case=cases(inner=[(3, 4, 5), (3, 53, 60), (3, 1, 1)], layouts=["contiguous", "channels_last"]))
@pytest.mark.parametrize("op", [op for op in ALL if "l1" not in op])  # whose projection onto the box moves all values
def test_bounds_by_channel_are_the_bounds_of_each_channel(op, case):
    lo, hi = torch.tensor([0.1, 0.2, -math.inf], dtype=F64), torch.tensor([0.6, math.inf, 0.5], dtype=F64)
    case.lo, case.hi = lo, hi
    together = case.call(op)
    for c in range(3):
        case.lo, case.hi = float(lo[c]), float(hi[c])
        assert same_bits(case.call(op)[:, c], together[:, c])
    case.lo, case.hi = lo.reshape(1, 3, 1, 1), hi.reshape(3, 1, 1)  # broadcastable forms
    assert same_bits(case.call(op), together)


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("shape", [(1, 3, 64, 65), (2, 9001), (300, 12), (3, 100_000)])
def test_threads_change_nothing(op, shape, threads):
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(shape, generator=g)
    x, grad = x0 + 0.1 * torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    first = (x, x0) if op in PROJECTIONS else (x, grad, x0, 0.1)
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(getattr(ops, op)(*first, 0.3))
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


_LEVELS = """
import sys, torch
from advfeat import build_config, ops
g = torch.Generator().manual_seed(0)
print(build_config()["simd_level"], file=sys.stderr)
out = []
for dtype, grad_dtype in [(d, d) for d in ("float32", "float64", "bfloat16", "float16")] + [("float32", "float16")]:
    for shape in ((3, 5), (2, 4099), (4, 3, 17, 17)):
        x0 = torch.rand(shape, generator=g).to(getattr(torch, dtype))
        x = x0 + (0.1 * torch.randn(shape, generator=g)).to(x0.dtype)
        grad = (1e-6 * torch.randn(shape, generator=g)).to(getattr(torch, grad_dtype))
        out += [ops.l2_step(x, grad, x0, 0.1, 0.3), ops.linf_step(x, grad, x0, 0.1, 0.3), ops.project_l2(x, x0, 0.2)]
        out += [ops.l1_step(x, grad, x0, 0.1, 0.3), ops.project_l1(x, x0, 2.0, 0.2)]
        gap = torch.full((shape[0],), 1e-6)
        out += [ops.fab_step_(x.clone(), grad, x0, gap, order) for order in (float("inf"), 2, 1)]
for dtype in (torch.float16, torch.bfloat16):  # every value of the type, and sums of two that round
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).reshape(16, 4096)
    inf = float("inf")
    out += [ops.project_linf(x, x, inf, -inf, inf), ops.linf_step(x, x, x, 0.0371, inf, -inf, inf)]
    out += [ops.linf_step(x.float(), x, x.float(), 1e-3, inf, -inf, inf), ops.l2_step(x, x, x, 0.3, 0.5)]
words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
torch.save([t.view(words[t.element_size()]) for t in out], sys.argv[1])
"""


@pytest.mark.slow
def test_simd_levels_give_the_same_bits(tmp_path):
    saved = {}
    for level in ("default", "avx2", "avx512"):
        path = tmp_path / f"{level}.pt"
        environment = {**os.environ, "ADVFEAT_SIMD": level}
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.rand(3, 2)}, r"grad should have the shape of x \(2, 3\), got \(3, 2\)"),
        ({"x0": torch.rand(2, 4)}, r"x0 should have the shape of x \(2, 3\), got \(2, 4\)"),
        ({"x0": torch.rand(2, 3).double()}, "x0 should have the dtype of x, Float, got Double"),
        ({"grad": torch.rand(2, 3).double()}, "grad should have the dtype of x"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "x should be float32, float64, float16 or bfloat16, got Long"),
        ({"x": torch.tensor(1.0)}, "x should be a batch"),
        ({"eps": -1.0}, "eps should be at least 0, got -1"),
        ({"eps": math.nan}, "eps should be at least 0, got nan"),
        ({"eps": torch.rand(3, 1)}, r"eps should be a float or a tensor \[B\] = \(2,\), got shape \(3, 1\)"),
        ({"eps": torch.tensor([0.1, -0.5])}, "eps should be at least 0, got -0.5 at index 1"),
        ({"step_size": math.inf}, "step_size should be finite"),
        ({"step_size": 1e39}, "step_size should be finite in the arithmetic type"),
        ({"lo": 1.0, "hi": 0.0}, "lo should be at most hi, got lo=1 and hi=0"),
        ({"lo": torch.rand(2)}, r"lo should be a float or a tensor \[C\] = \(3,\), got shape \(2,\)"),
        ({"lo": torch.tensor([0.0, 2.0, 0.0])}, "got lo=2 and hi=1 for channel 1"),
        ({"grad_status": torch.zeros(2, 2)}, r"grad_status should be a contiguous int32 tensor \[B, 2\]"),
    ],
)
@pytest.mark.parametrize("op", ["linf_step_", "l2_step_"])
def test_errors_name_the_argument(op, change, message):
    x = torch.rand(2, 3)
    arguments = {"x": x, "grad": torch.rand(2, 3), "x0": torch.rand(2, 3), "step_size": 0.1, "eps": 0.5} | change
    if "x" in change:
        arguments |= {"grad": change["x"], "x0": change["x"]}
    before = arguments["x"].clone()
    with pytest.raises(RuntimeError, match=message):
        getattr(ops, op)(**arguments)
    assert torch.equal(arguments["x"], before)


def test_expanded_outputs_are_refused():
    x = torch.rand(1, 3).expand(4, 3)
    with pytest.raises(RuntimeError, match="share memory"):
        ops.linf_step_(x, torch.rand(4, 3), torch.rand(4, 3), 0.1, 0.2)


def test_steps_refuse_autograd_and_projections_have_a_gradient():
    x0 = torch.rand(2, 6, dtype=F64)
    x = (x0 + torch.randn(2, 6, dtype=F64)).requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        ops.l2_step(x, x0, x0, 0.1, 0.5)
    ops.l2_step(x.detach(), x0, x0, 0.1, 0.5)
    for project in (ops.project_l2, ops.project_linf):
        assert torch.autograd.gradcheck(lambda v, project=project: project(v, x0, 0.7, -9.0, 9.0), x)
    at_centre = x0.clone().requires_grad_()
    ops.project_l2(at_centre, x0, 0.5).sum().backward()
    assert torch.equal(at_centre.grad, torch.ones_like(x0))


def test_autograd_sees_changes_in_place():
    w = torch.rand(2, 3, requires_grad=True)
    x = torch.rand(2, 3)
    y = (w * x).sum()  # saves x
    ops.linf_step_(x, torch.ones(2, 3), x.clone(), 0.1, 0.2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
