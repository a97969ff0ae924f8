"""The operators at the ends of the number range, in every half number, and with tensors that lie strangely."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import BF16, F16, F32, F64, PROJECTIONS, STEPS, bits, cases, place, same_bits, unit_roundoff

from advfeat import ops, reference

ALL = STEPS + PROJECTIONS
INF = math.inf


def every(dtype):
    """All 65536 numbers of a half type, as one sample."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[None]


# --- half numbers


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("op", PROJECTIONS)
def test_every_half_number_survives(op, dtype):
    x = every(dtype)
    x = x[x == x][None]  # the payload of a NaN is nobody's business; its being one is tested below
    if op == "project_l2":
        x = x[x.isfinite()].reshape(-1, 1)  # a row each: an infinite value would make its row's norm infinite
    assert same_bits(getattr(ops, op)(x, torch.zeros_like(x), INF, -INF, INF), x)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_nan_stays_nan_in_half(dtype):
    x = every(dtype)
    result = ops.project_linf(x, x, 1.0, 0.0, 1.0)
    assert torch.equal(result.isnan(), x.isnan())


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("size", [0.0, 1 / 3, 1e-3, 1e-6, 6e-8, 1e-30, 2.5e4])
def test_rounding_to_half_is_torchs(dtype, size):
    """x + a for every x: sums between two half numbers, ties, subnormal results and overflow, rounded as torch
    rounds."""
    x = every(dtype)
    x = x[x.isfinite()][None]
    for sign in (1.0, -1.0):
        got = ops.linf_step(x, torch.ones_like(x) * sign, x, size, INF, -INF, INF)
        want = (x.float() + sign * torch.tensor(size)).to(dtype)
        assert torch.equal(got, want)
        assert torch.equal(got.signbit()[want != 0], want.signbit()[want != 0])


@pytest.mark.parametrize("grad_dtype", [F16, BF16])
def test_every_half_gradient_has_its_sign(grad_dtype):
    grad = every(grad_dtype)
    x = torch.full(grad.shape, 0.5)
    status = torch.zeros(1, 2, dtype=torch.int32)
    got = ops.linf_step(x, grad, x, 0.25, INF, grad_status=status)
    assert torch.equal(got, 0.5 + 0.25 * torch.sign(grad.float()).nan_to_num(0.0))
    assert status.tolist() == [[0, 1]]


@pytest.mark.parametrize("grad_dtype", [F16, BF16])
def test_half_gradients_of_any_size_have_a_direction(grad_dtype):
    """The smallest subnormal and the largest number: alone in a row they move it by the whole step."""
    finfo = torch.finfo(grad_dtype)
    values = [finfo.smallest_normal, finfo.max, finfo.smallest_normal * finfo.eps, 1.0]
    grad = torch.zeros(4, 9, dtype=grad_dtype)
    for i, v in enumerate(values):
        grad[i, i] = -v
    x0 = torch.zeros(4, 9)
    got = ops.l2_step(x0, grad, x0, 0.25, INF, -INF, INF)
    assert torch.equal(got, -0.25 * torch.eye(4, 9))


# --- ends of the range


@pytest.mark.parametrize("dtype", [F32, F64])
@given(
    exponents=st.lists(st.floats(-37, 37), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
    ratio=st.sampled_from([1e-3, 0.5, 2.0, 1e3]),
)
def test_l2_step_at_any_magnitude(dtype, exponents, seed, ratio):
    """x, eps and step at one magnitude, the gradient at another: norm and direction as at magnitude 1."""
    g = torch.Generator().manual_seed(seed)
    factor = 8.0 if dtype == F64 else 1.0  # 1e-296 ... 1e296
    scale, grad_scale = 10.0 ** (exponents[0] * factor), 10.0 ** (exponents[1] * factor)
    x0 = torch.zeros(2, 37, dtype=dtype)
    d = torch.randn(2, 37, generator=g, dtype=F64)
    grad = torch.randn(2, 37, generator=g, dtype=F64)
    size, eps = scale, ratio * scale
    got = ops.l2_step((d * scale).to(dtype), (grad * grad_scale).to(dtype), x0, size, eps, -INF, INF).double() / scale
    y = d + grad / grad.norm(dim=1, keepdim=True)
    norm = y.norm(dim=1, keepdim=True)
    want = torch.where(norm <= ratio, y, y * ratio / norm)
    finfo = torch.finfo(dtype)
    subnormal = 4 * finfo.smallest_normal * finfo.eps / scale  # a few of the smallest steps that numbers have there
    rounding = 1e-6 if dtype == F32 else 1e-12
    torch.testing.assert_close(got, want, rtol=10 * rounding, atol=rounding * ratio + subnormal)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [1, 5, 4097])
def test_largest_and_smallest_gradients(dtype, dim):
    """A norm beyond the largest number, and a gradient of smallest subnormals."""
    finfo = torch.finfo(dtype)
    x0 = torch.zeros(2, dim, dtype=dtype)
    ends = torch.tensor([[finfo.max], [finfo.smallest_normal * finfo.eps]], dtype=dtype)
    grad = ends.repeat(1, dim)
    assert (grad != 0).all() and grad.isfinite().all()
    got = ops.l2_step(x0, grad, x0, 0.5, INF, -INF, INF)
    torch.testing.assert_close(got, torch.full_like(x0, 0.5 / math.sqrt(dim)), rtol=1e-6, atol=0)


def test_one_large_value_among_many_small():
    """Twelve orders of magnitude in one row: float32 sums would lose the small ones, the direction may not."""
    grad = torch.full((1, 4096), 1e-3)
    grad[0, 7] = 1e9
    x0 = torch.zeros(1, 4096)
    got = ops.l2_step(x0, grad, x0, 1.0, INF, -INF, INF)
    torch.testing.assert_close(got, (grad.double() / grad.double().norm()).float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("size", [1e10, 1e30, 3e38])
@pytest.mark.parametrize("eps", [1e-10, 0.5])
def test_huge_steps_end_on_the_sphere(size, eps):
    g = torch.Generator().manual_seed(0)
    x0, grad = torch.zeros(3, 21), torch.randn(3, 21, generator=g)
    grad[:, 5] = 0  # 0 times a huge factor should be 0, not NaN
    got = ops.l2_step(x0, grad, x0, size, eps, -1.0, 1.0).double()
    want = eps * grad.double() / grad.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    linf = ops.linf_step(x0, grad, x0, size, eps, -1.0, 1.0)
    assert torch.equal(linf, torch.tensor(eps) * grad.sign())


@pytest.mark.parametrize("eps", [1e-30, 1e-20, 1e-3])
def test_far_points_come_back_to_the_sphere(eps):
    g = torch.Generator().manual_seed(0)
    d = torch.randn(2, 33, generator=g)
    got = ops.project_l2(d * 1e30, torch.zeros(2, 33), eps, -INF, INF).double()
    want = eps * d.double() / d.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert (got.norm(dim=1) <= eps * (1 + 4 * unit_roundoff(F32))).all()


@pytest.mark.parametrize("left", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_steps_that_cancel_keep_their_digits(dtype, left):
    """A step back almost to x0: what is left is a small difference, whose norm decides about the ball.

    The error in what is left is that of the two that cancel, a rounding of each, so relatively u / left.
    """
    direction = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1), dtype=F64)
    x = (direction / direction.norm()).to(dtype)
    x0 = torch.zeros_like(x)
    length = float(x.double().norm())
    moved = ops.l2_step(x, -x, x0, length - left, 0.5 * left, -INF, INF).double()
    assert abs(float(moved.norm()) / (0.5 * left) - 1) < 8 * unit_roundoff(dtype) / left
    torch.testing.assert_close(moved / moved.norm(), x.double(), rtol=0, atol=8 * unit_roundoff(dtype) / left)
    inside = ops.l2_step(x, -x, x0, length - left, 2 * left, -INF, INF).double()  # a ball that holds it: not shrunk
    assert abs(float(inside.norm()) / left - 1) < 8 * unit_roundoff(dtype) / left


# --- zero, NaN and inf


@pytest.mark.parametrize("op", STEPS)
@given(case=cases(rows=[2, 3]))
def test_a_zero_gradient_only_projects(op, case):
    case.grad.view.zero_()
    result = case.call(op)
    assert same_bits(result, case.call("project_" + op.removesuffix("_step")))


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("where", ["x", "x0"])
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize("dim", [3, 4097])
def test_what_is_not_finite_stays_in_its_row(op, where, bad, dim):
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(3, dim, generator=g)
    tensors = {"x": x0 + 0.2, "x0": x0.clone(), "grad": torch.randn(3, dim, generator=g)}

    def call():
        first = (
            [tensors["x"], tensors["x0"]] if op in PROJECTIONS else [tensors["x"], tensors["grad"], tensors["x0"], 0.1]
        )
        return getattr(ops, op)(*first, 0.3)

    clean = call()
    tensors[where] = tensors[where].clone()
    tensors[where][1, 2] = bad
    result = call()
    assert same_bits(result[[0, 2]], clean[[0, 2]])
    if "linf" in op:  # value by value
        keep = torch.arange(dim) != 2
        assert same_bits(result[1, keep], clean[1, keep])
        if where == "x" and not math.isnan(bad):  # the nearest point of ball and box to an infinite value
            end = x0[1, 2] + math.copysign(0.3, bad)
            assert result[1, 2] == end.clamp(0, 1)


@pytest.mark.parametrize("op", STEPS)
def test_status_tells_zero_from_not_finite_and_neither(op):
    grad = torch.zeros(6, 4097)
    grad[1, 4096] = 1e-45  # the last value, past the last block: not zero
    grad[2, 0] = -0.0
    grad[3, 4095] = math.nan
    grad[4, 3] = -INF
    grad[5] = 1e38
    status = torch.zeros(6, 2, dtype=torch.int32)
    getattr(ops, op)(torch.rand(6, 4097), grad, torch.rand(6, 4097), 0.1, 0.5, grad_status=status)
    assert status.tolist() == [[1, 0], [0, 0], [1, 0], [0, 1], [0, 1], [0, 0]]
    expected = torch.zeros(6, 2, dtype=torch.int32)
    getattr(reference, op)(torch.rand(6, 4097), grad, torch.rand(6, 4097), 0.1, 0.5, grad_status=expected)
    assert torch.equal(status, expected)


# --- sizes and places


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0), (0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_do(op, shape):
    x = torch.rand(shape)
    first = (x, x) if op in PROJECTIONS else (x, x, x, 0.1)
    for name in (op, op + "_"):
        result = getattr(ops, name)(*first, 0.5)
        assert result.shape == shape and result.dtype == F32
    if op in STEPS:
        status = torch.zeros(shape[0], 2, dtype=torch.int32)
        getattr(ops, op)(*first, torch.full(shape[:1], 0.5), grad_status=status)
        assert (status == 0).all()  # a gradient without values is not counted


@pytest.mark.parametrize("op", ALL)
def test_batches_of_numbers(op):
    """[B]: every sample is one number, and the L2 and L-inf balls are the same interval."""
    x0 = torch.rand(9, dtype=F64)
    x, grad = x0 + torch.randn(9, dtype=F64), torch.randn(9, dtype=F64)
    first = (x, x0) if op in PROJECTIONS else (x, grad, x0, 0.3)
    result = getattr(ops, op)(*first, 0.2, torch.tensor(0.1), 0.9)
    y = x if op in PROJECTIONS else x + 0.3 * grad.sign()
    assert torch.allclose(result, torch.minimum(torch.maximum(y, x0 - 0.2), x0 + 0.2).clamp(0.1, 0.9), atol=1e-7)


@pytest.mark.parametrize("op", ALL)
def test_many_rows(op):
    """More rows than a thread takes at once, more than 2^16 blocks; each row like any other."""
    row = torch.rand(1, 3)
    x0 = row.repeat(70_001, 1)
    first = (x0 + 0.3, x0) if op in PROJECTIONS else (x0 + 0.1, x0 - 0.5, x0, 0.2)
    result = getattr(ops, op)(*first, 0.25)
    assert same_bits(result, result[:1].repeat(70_001, 1)) and not torch.equal(result, x0)


@pytest.mark.parametrize("op", STEPS)
def test_gradients_as_autograd_gives_them(op):
    """Expanded (of a sum), lazily negated (of a conjugate), lazily zero: read as the numbers that they stand for."""
    x0 = torch.rand(2, 6)
    run = getattr(ops, op)
    negated = torch.randn(2, 6, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    for grad in (torch.ones(()).expand(2, 6), torch.randn(2, 1).expand(2, 6), torch.randn(6).expand(2, 6), negated):
        assert same_bits(run(x0, grad, x0, 0.1, 0.5), run(x0, grad.clone().resolve_neg(), x0, 0.1, 0.5))
    assert torch.equal(run(x0, torch._efficientzerotensor((2, 6)), x0, 0.1, 0.5), x0)


@pytest.mark.parametrize("op", ALL)
def test_parts_of_a_batch_can_be_written_alone(op):
    """In place on a slice: the slice's rows change, the others and the next tensors in memory do not."""
    batch, x0 = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    before = batch.clone()
    rest = () if op in PROJECTIONS else (0.1,)
    grad = () if op in PROJECTIONS else (torch.randn(2, 3, 4, 4),)
    want = getattr(ops, op)(batch[1:3].clone(), *grad, x0[1:3], *rest, 0.2)
    getattr(ops, op + "_")(batch[1:3], *grad, x0[1:3], *rest, 0.2)
    assert same_bits(batch[1:3], want)
    assert same_bits(batch[[0, 3, 4]], before[[0, 3, 4]])
    columns = batch[:, :, :, 1:3]  # rows of this view interleave with what is not of it
    outside = bits(batch).clone()[:, :, :, [0, 3]]
    grad = () if op in PROJECTIONS else (torch.randn(5, 3, 4, 2),)
    getattr(ops, op + "_")(columns, *grad, x0[:, :, :, 1:3], *rest, 0.2)
    assert torch.equal(bits(batch)[:, :, :, [0, 3]], outside)


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "batch_last", "every_second"])
def test_memory_format_of_the_result(op, layout):
    """The result lies as torch.empty_like(x) does: a channels_last batch stays channels_last."""
    x = place(torch.rand(2, 3, 4, 5), layout).view
    first = (x, x) if op in PROJECTIONS else (x, x, x, 0.1)
    assert getattr(ops, op)(*first, 0.2).stride() == torch.empty_like(x).stride()


HALF_ULP = {torch.float16: 2.0**-12, torch.bfloat16: 2.0**-9}


@given(
    dtype=st.sampled_from(sorted(HALF_ULP, key=str)),
    eps=st.sampled_from([1 / 255, 8 / 255, 0.1, 0.5, 3.0]),
    dim=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_half_types_leave_the_ball_by_their_own_rounding_at_most(dtype, eps, dim, seed):
    """The bound that the documentation gives, for values in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(6, dim, generator=g).to(dtype)
    x = (x0.float() + 2 * eps * torch.randn(6, dim, generator=g)).clamp(0, 1).to(dtype)
    grad, ids, ulp = torch.randn(6, dim, generator=g).to(dtype), torch.arange(6), HALF_ULP[dtype]
    for y in (
        ops.linf_step(x, grad, x0, eps, eps),
        ops.project_linf(x, x0, eps),
        ops.random_start_linf(x0, eps, seed, ids),
    ):
        assert y.min() >= 0 and y.max() <= 1
        assert (y.double() - x0.double()).abs().max() <= eps + ulp + 1e-7
    for y in (ops.l2_step(x, grad, x0, eps, eps), ops.project_l2(x, x0, eps), ops.random_start_l2(x0, eps, seed, ids)):
        assert y.min() >= 0 and y.max() <= 1
        assert (y.double() - x0.double()).norm(dim=1).max() <= eps + ulp * dim**0.5 + 1e-6
