"""Steps with momentum: against the float64 reference, torch's own heavy ball, and what holds for any arguments."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import (
    F16,
    F32,
    F64,
    INNER,
    LAYOUTS,
    STEPS,
    Case,
    Placed,
    arithmetic,
    as_rows,
    cases,
    place,
    same_bits,
    unit_roundoff,
)

from advfeat import ops, reference


@dataclasses.dataclass
class Moving:
    """A step with momentum: its arguments, the velocity in a buffer of NaN, and the momentum."""

    case: Case
    velocity: Placed
    momentum: float

    def call(self, op: str) -> torch.Tensor:
        return self.case.call(op, velocity=self.velocity.view, momentum=self.momentum)

    def clone(self) -> "Moving":
        copied = place(self.velocity.view.clone(memory_format=torch.contiguous_format), self.velocity.layout)
        return Moving(self.case.clone(), copied, self.momentum)


@st.composite
def moving(draw, **kwargs) -> Moving:
    case = draw(cases(**kwargs))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.0, 1e-3, 0.1, 2.0]))
    velocity = (spread * torch.randn(case.shape, generator=g, dtype=F64)).to(case.dtype)
    layout = draw(st.sampled_from(kwargs.get("layouts") or LAYOUTS))
    return Moving(case, place(velocity, layout), draw(st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.999])))


@pytest.mark.parametrize("op", STEPS)
@given(step=moving())
def test_agrees_with_the_reference(op, step):
    case, x = step.case, step.case.x.view.double()
    velocity, before = step.velocity.view.double().clone(), step.velocity.view.clone()
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in case.arguments(op)]
    expected = getattr(reference, op)(*wide, velocity=velocity, momentum=step.momentum)
    result = step.call(op)
    largest = x.abs() + 2 * case.x0.view.double().abs() + as_rows(case.step_size, x).abs() + before.double().abs() * 2
    largest = largest + torch.nan_to_num(as_rows(case.eps, x), posinf=0.0).clamp(max=1e30) + 1
    room = 14 * unit_roundoff(arithmetic(case.dtype)) * largest + 2 * unit_roundoff(case.dtype) * (
        expected.abs() + 1e-8
    )
    assert ((result.double() - expected).abs() <= room).all()
    case.check_inputs()
    step.velocity.check()
    moved = (result.to(arithmetic(case.dtype)) - case.x.view.to(arithmetic(case.dtype))).to(case.dtype)
    assert same_bits(step.velocity.view, moved), "the velocity is the way from x to the result"


@pytest.mark.parametrize("op", STEPS)
@given(step=moving())
def test_in_place_is_out_of_place_to_the_bit(op, step):
    other = step.clone()
    expected = other.call(op)
    result = step.call(op + "_")
    assert result is step.case.x.view
    # channels_last rows may be summed in another order: compare where the order is the same
    if "linf" in op or not step.case.x.layout.startswith("channels_last"):
        assert same_bits(result, expected) and same_bits(step.velocity.view, other.velocity.view)
    step.case.x.check()
    step.velocity.check()
    step.case.grad.check(view_too=True)
    step.case.x0.check(view_too=True)


@pytest.mark.parametrize("op", STEPS)
@given(step=moving())
def test_no_momentum_and_no_velocity_are_the_plain_step(op, step):
    plain = step.case.call(op)
    assert same_bits(step.case.call(op, velocity=step.velocity.view.clone(), momentum=0.0) + 0, plain + 0)
    still = torch.zeros_like(step.velocity.view)
    assert same_bits(step.case.call(op, velocity=still, momentum=step.momentum) + 0, plain + 0)


@pytest.mark.parametrize("op", STEPS)
@given(step=moving(rows=[5]), order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_samples_do_not_know_each_other(op, step, order, cut):
    """Any split and order of the batch gives the same bits for each sample, velocity included."""

    def run(index):
        velocity = step.velocity.view[index].clone(memory_format=torch.preserve_format)
        arguments = step.case.rows(index)(op)
        return getattr(ops, op)(*arguments, velocity=velocity, momentum=step.momentum), velocity

    whole = run(slice(0, 5))
    parts = [run(slice(a, b)) for a, b in ((0, cut), (cut, 5))]
    shuffled = run(torch.tensor(order))
    for part in range(2):
        assert same_bits(torch.cat([p[part] for p in parts]), whole[part])
        assert same_bits(shuffled[part], whole[part][torch.tensor(order)])


@pytest.mark.parametrize("op", STEPS)
@given(
    step=moving(dtype_pairs=[(F32, F32), (F64, F64)]), exponent=st.integers(-60, 60), grad_exponent=st.integers(-99, 99)
)
def test_powers_of_two_scale_exactly(op, step, exponent, grad_exponent):
    step, scale = step.clone(), 2.0**exponent
    case, velocity = step.case, step.velocity.view.clone()
    plain = step.call(op)

    def scaled(value):
        return (value.double() if isinstance(value, torch.Tensor) else value) * scale

    other = Case(
        place(case.x.view * scale),
        place(case.grad.view * 2.0**grad_exponent),
        place(case.x0.view * scale),
        *map(scaled, (case.step_size, case.eps, case.lo, case.hi)),
    )
    moved = velocity * scale
    assert same_bits(other.call(op, velocity=moved, momentum=step.momentum), plain.contiguous() * scale)
    assert same_bits(moved.contiguous(), step.velocity.view.contiguous() * scale)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@given(inner=st.sampled_from(INNER), seed=st.integers(0, 2**31))
def test_without_ball_and_box_it_is_torchs_heavy_ball(momentum, inner, seed):
    """SGD with momentum and no dampening on the directions of the gradients, which its learning rate scales."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn((3, *inner), generator=g, dtype=F64)
    theirs = x.clone().requires_grad_()
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, maximize=True)
    velocity, x0 = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(12):
        grad = torch.randn(x.shape, generator=g, dtype=F64)
        theirs.grad = (
            grad / grad.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1)) if x.dim() > 1 else grad.sign()
        )
        optimizer.step()
        ops.l2_step_(x, grad, x0, 0.1, math.inf, -math.inf, math.inf, velocity=velocity, momentum=momentum)
    torch.testing.assert_close(x, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", STEPS)
def test_the_velocity_stops_at_the_ball_and_the_box(op):
    """Momentum does not wind up: at a bound the velocity is what the projection left of the step."""
    x0 = torch.tensor([[0.5, 0.9, 0.2]])
    x, velocity = x0.clone(), torch.zeros_like(x0)
    for _ in range(50):
        getattr(ops, op + "_")(x, torch.ones_like(x), x0, 0.1, 0.25, velocity=velocity, momentum=0.9)
    assert velocity.abs().max() < 1e-6
    # so that it turns round at once
    getattr(ops, op + "_")(x, -torch.ones_like(x), x0, 0.1, 0.25, velocity=velocity, momentum=0.9)
    assert (velocity < -0.03).all()  # L1: a third of the step each


@pytest.mark.parametrize("op", STEPS)
def test_a_zero_gradient_coasts_and_a_bad_one_stays_in_its_sample(op):
    x0 = torch.full((3, 6), 0.5)
    velocity = torch.full((3, 6), 0.01)
    grad = torch.ones(3, 6)
    grad[1], grad[2, 3] = 0.0, math.nan
    status = torch.zeros(3, 2, dtype=torch.int32)
    result = getattr(ops, op)(x0, grad, x0, 0.1, 1.0, velocity=velocity, momentum=0.5, grad_status=status)
    assert status.tolist() == [[0, 0], [1, 0], [0, 1]]
    torch.testing.assert_close(result[1], torch.full((6,), 0.505))
    assert result.isfinite().all() and velocity.isfinite().all()


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
def test_mistakes_are_named(op, kernel, monkeypatch):
    if not kernel:
        monkeypatch.setattr(ops, "_has_kernel", lambda *_: False)
    x = torch.rand(2, 3)
    step = getattr(ops, op + "_")

    def message(**kwargs):
        with pytest.raises(RuntimeError) as error:
            step(x, x.clone(), x.clone(), 0.1, 0.5, **kwargs)
        return str(error.value).splitlines()[0]

    assert message(momentum=0.5) == "velocity should be a tensor like x where there is momentum, 0.5, got None"
    assert "velocity should have the shape of x" in message(velocity=torch.zeros(2, 4), momentum=0.5)
    assert "velocity should have the dtype of x" in message(velocity=torch.zeros(2, 3, dtype=F16), momentum=0.5)
    for momentum in (-0.1, 1.0, math.nan):
        text = message(velocity=torch.zeros(2, 3), momentum=momentum)
        assert text == f"momentum should be at least 0 and below 1, got {momentum:g}"
    if kernel:
        assert message(velocity=x, momentum=0.5).startswith("velocity should not be x itself")
        wide = torch.zeros(2, 1).expand(2, 3)
        assert message(velocity=wide, momentum=0.5).startswith("velocity is written to")
        half = torch.zeros(9)
        shared = {"velocity": half[3:].view(2, 3), "momentum": 0.5}
        with pytest.raises(RuntimeError, match="should not share a part of its memory"):
            step(half[:6].view(2, 3), x.clone(), x.clone(), 0.1, 0.5, **shared)


def test_a_velocity_that_requires_grad_is_refused():
    x = torch.rand(2, 3)
    with pytest.raises(RuntimeError, match="l2_step has no gradient"):
        ops.l2_step(x, x, x, 0.1, 0.5, velocity=torch.zeros(2, 3, requires_grad=True), momentum=0.5)


def test_autograd_sees_that_the_velocity_was_written():
    x, velocity = torch.rand(2, 3), torch.zeros(2, 3)
    weight = torch.ones(2, 3, requires_grad=True)
    product = weight * velocity
    ops.l2_step_(x, torch.ones(2, 3), x.clone(), 0.1, 0.5, velocity=velocity, momentum=0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
