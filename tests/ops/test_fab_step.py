"""Steps of FAB: against the float64 reference, and what holds for any arguments."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import (
    BF16,
    DTYPE_PAIRS,
    F32,
    F64,
    INNER,
    LAYOUTS,
    ROWS,
    Placed,
    place,
    same_bits,
    unit_roundoff,
)

from advfeat import ops, reference

ORDERS = [math.inf, 2, 1]
LONG = [(3, 33, 31), (5000,)]


@dataclasses.dataclass
class Case:
    """The arguments of one call, the tensors of values in buffers of NaN."""

    x: Placed
    grad: Placed
    x0: Placed
    gap: torch.Tensor
    order: float
    lo: float | torch.Tensor
    hi: float | torch.Tensor

    def call(self, rows=slice(None), **kwargs) -> torch.Tensor:
        x = self.x.view[rows].clone(memory_format=torch.preserve_format)
        more = {"lo": self.lo, "hi": self.hi} | kwargs
        return ops.fab_step_(x, self.grad.view[rows], self.x0.view[rows], self.gap[rows], self.order, **more)


@st.composite
def cases(draw, *, inner=None, rows=None, pairs=None, layouts=None) -> Case:
    shape = (draw(st.sampled_from(rows or ROWS)), *draw(st.sampled_from(inner or INNER + LONG)))
    dtype, grad_dtype = draw(st.sampled_from(pairs or DTYPE_PAIRS))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x0 = torch.rand(shape, generator=g, dtype=F64)
    x = (x0 + draw(st.sampled_from([0.0, 0.01, 0.3])) * torch.randn(shape, generator=g, dtype=F64)).clamp(0, 1)
    grad = torch.randn(shape, generator=g, dtype=F64)
    if draw(st.booleans()):
        grad = grad * (torch.rand(shape, generator=g) < 0.5)
    if draw(st.booleans()):  # many of equal weight
        grad = grad.round()
    reach = max(1.0, math.prod(shape[1:])) ** draw(st.sampled_from([0.0, 0.5, 1.0]))
    gap = torch.randn(shape[0], generator=g, dtype=F64) * reach * draw(st.sampled_from([0.0, 0.1, 1.0]))
    lo, hi = draw(st.sampled_from([(0.0, 1.0), (-math.inf, math.inf), (-0.5, math.inf)]))
    if len(shape) > 1 and draw(st.booleans()):
        lo = torch.linspace(-0.5, 0, shape[1], dtype=F64)
    places = st.sampled_from(layouts or LAYOUTS)
    x, grad, x0 = (place(t, draw(places)) for t in (x.to(dtype), grad.to(grad_dtype), x0.to(dtype)))
    return Case(x, grad, x0, gap, draw(st.sampled_from(ORDERS)), lo, hi)


@given(case=cases())
def test_agrees_with_the_reference(case):
    double = (case.x.view.double(), case.grad.view.double(), case.x0.view.double())
    expected = reference.fab_step(*double, case.gap, case.order, lo=case.lo, hi=case.hi)
    result = case.call()
    scale = expected.abs().max().item() if expected.numel() else 1.0
    atol = unit_roundoff(result.dtype) * max(1.0, scale) + 1e-10 * max(1.0, scale)
    torch.testing.assert_close(result.double(), expected, rtol=2 * unit_roundoff(result.dtype), atol=atol)
    for placed in (case.x, case.grad, case.x0):
        placed.check(view_too=True)


@given(case=cases(pairs=[(F64, F64)]))
def test_the_result_is_in_the_box_and_lies_between_two_points_beyond_the_hyperplane(case):
    """Without a weight on the way from x0, eta = 1 ends on the hyperplane or at the end of the box."""
    if isinstance(case.lo, torch.Tensor):
        return
    x, grad = case.x.view, case.grad.view
    moved = case.call(alpha_max=0.0, eta=1.0)
    assert ((moved >= case.lo) & (moved <= case.hi)).all()
    d = (moved - x).reshape(len(x), math.prod(x.shape[1:]))
    w = grad.reshape(d.shape)
    direction = -(w.sign() * case.gap.sign()[:, None])
    room = torch.where(direction > 0, case.hi - x.reshape(d.shape), x.reshape(d.shape) - case.lo)
    can = torch.where(w != 0, w.abs() * room, 0.0).sum(1)
    closed = -(w * d).sum(1)
    want = torch.minimum(can, case.gap.abs()) * case.gap.sign()
    torch.testing.assert_close(
        closed, want, rtol=1e-9, atol=1e-9 * max(1.0, want.abs().max().item() if len(want) else 1)
    )
    assert (d * direction >= -1e-12).all() and (d[w == 0] == 0).all()


@given(case=cases(rows=[5]), order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_samples_do_not_know_each_other(case, order, cut):
    """Any split and order of the batch gives the same bits for each sample."""
    whole = case.call()
    assert same_bits(torch.cat([case.call(slice(0, cut)), case.call(slice(cut, 5))]), whole)
    assert same_bits(case.call(torch.tensor(order)), whole[torch.tensor(order)])


@given(case=cases(pairs=[(F32, F32), (F64, F64)], layouts=["contiguous"]), exponent=st.integers(-60, 60))
def test_a_power_of_two_in_gradient_and_gap_changes_no_bit(case, exponent):
    scaled = dataclasses.replace(
        case, grad=place(case.grad.view * 2.0**exponent, "contiguous"), gap=case.gap * 2.0**exponent
    )
    assert same_bits(scaled.call(), case.call())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (F32, BF16), (F64, F64)], ids=str)
@pytest.mark.parametrize("exponent", [-300, -38, -30, 30, 36, 300])
def test_gradients_of_any_scale(order, dtypes, exponent):
    if abs(exponent) > 40 and dtypes[1] != F64:
        pytest.skip("beyond the dtype")
    g = torch.Generator().manual_seed(1)
    x, x0 = (torch.rand(3, 40, generator=g, dtype=F64) for _ in range(2))
    scale = 10.0**exponent
    grad = (torch.randn(3, 40, generator=g, dtype=F64) * scale).to(dtypes[1])
    gap = torch.tensor([0.5, -3.0, 1e6], dtype=F64) * scale
    x, x0 = x.to(dtypes[0]), x0.to(dtypes[0])
    # Of the gradient as it was rounded, brought to size 1.
    want = reference.fab_step(x.double(), grad.double() / scale, x0.double(), gap / scale, order)
    got = ops.fab_step_(x, grad, x0, gap, order)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=max(2 * unit_roundoff(dtypes[0]), 1e-12))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_a_gradient_that_leads_nowhere_is_counted(order, bad):
    g = torch.Generator().manual_seed(2)
    x0, grad = torch.rand(3, 33, generator=g), torch.randn(3, 33, generator=g)
    x, gap = (x0 + 0.1).clamp(max=1), torch.tensor([0.3, 0.3, math.nan])
    if bad == 0:
        grad[1] = 0
    else:
        grad[1, 7] = bad
    status = torch.zeros(3, 2, dtype=torch.int32)
    got = ops.fab_step_(x.clone(), grad, x0, gap, order, grad_status=status)
    assert status.tolist() == [[0, 0], [int(bad == 0), int(bad != 0)], [0, 0]]
    # The ways have no length, so that only the weight of x0 moves the point: by as much as it may.
    torch.testing.assert_close(got[1:], 0.9 * x[1:] + 0.1 * x0[1:])
    assert not torch.equal(got[0], 0.9 * x[0] + 0.1 * x0[0])


@pytest.mark.parametrize("order", ORDERS)
def test_many_rooms_of_very_different_sizes(order):
    """Newton's steps fix few values each where the rooms fall like powers."""
    room = 2.0 ** -torch.arange(200, dtype=F64)
    x, grad = (1 - room)[None].clamp(0, 1), -torch.linspace(1, 2, 200, dtype=F64)[None]
    for share in (0.1, 0.5, 0.9, 0.999999, 1.0, 2.0):
        gap = -(grad.abs() * room).sum(1) * share * -1
        want = reference.fab_step(x, grad, x, gap, order)
        torch.testing.assert_close(ops.fab_step_(x.clone(), grad, x, gap, order), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"order": 3.0}, "order should be 1, 2 or inf, got 3"),
        ({"eta": 0.5}, "eta should be at least 1 and finite, got 0.5"),
        ({"alpha_max": 1.5}, "alpha_max should be at least 0 and at most 1, got 1.5"),
        ({"gap": torch.ones(3)}, "gap should be a .*tensor"),
        ({"gap": torch.ones(2, dtype=torch.int64)}, "gap should be"),
        ({"x0": torch.ones(2, 4)}, "x0 should have the shape of x"),
        ({"grad": torch.ones(2, 3, dtype=F64)}, "grad should have the dtype of x"),
        ({"lo": 2.0}, "lo should be at most hi"),
        ({"grad_status": torch.zeros(2, 2)}, "grad_status should be a contiguous int32 tensor"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_mistakes_are_named(wrong, message, plain, monkeypatch):
    given = {
        "x": torch.rand(2, 3),
        "grad": torch.rand(2, 3),
        "x0": torch.rand(2, 3),
        "gap": torch.ones(2),
        "order": 2.0,
    }
    if plain:
        monkeypatch.setattr(ops, "_has_kernel", lambda *_: False)
    with pytest.raises(RuntimeError, match=message):
        ops.fab_step_(**given | wrong)


def test_plain_torch_is_used_under_a_transform():
    x, grad, x0, gap = torch.rand(4, 2, 9), torch.randn(4, 2, 9), torch.rand(4, 2, 9), torch.randn(4, 2)
    one = torch.stack([ops.fab_step_(a.clone(), g, c, p, 2) for a, g, c, p in zip(x, grad, x0, gap, strict=True)])
    batched = torch.func.vmap(lambda a, g, c, p: ops.fab_step_(a.clone(), g, c, p, 2))(x, grad, x0, gap)
    torch.testing.assert_close(batched, one)
