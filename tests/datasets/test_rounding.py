"""Rounding to what a file can hold: inside the ball, and no further than it has to."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advfeat import L2, Linf
from advfeat.datasets.rounding import quantise


def _case(seed: int, eps: float, norm: str, on_lattice: bool, shape=(4, 3, 6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    """x0, and x anywhere in the ball, most rows on its surface, as an attack leaves them."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(shape, generator=g)
    x0[0, 0] = torch.rand(x0[0, 0].shape, generator=g).round()  # corners of the box
    if on_lattice:
        x0 = (x0 * 255).round() / 255
    d = torch.randn(shape, generator=g)
    if norm == "linf":
        d = d.clamp(-1, 1) * eps
    else:
        length = eps * torch.rand(shape[0], generator=g).mul(4).clamp(max=1)
        d = d * (length / d.flatten(1).norm(dim=1).clamp_min(1e-9)).view(-1, 1, 1, 1)
    threat = (Linf if norm == "linf" else L2)(eps)
    return x0, threat.project_((x0 + d).clamp(0, 1), x0)


def _distance(q: torch.Tensor, x0: torch.Tensor, norm: str) -> torch.Tensor:
    d = (q.double() - x0.double()).flatten(1)
    return d.abs().amax(1) if norm == "linf" else d.norm(dim=1)


EPS = st.sampled_from([0.0, 1 / 255, 0.004, 2 / 255, 8 / 255, 0.1, 0.5, 1.5])


@given(seed=st.integers(0, 10_000), eps=EPS, norm=st.sampled_from(["linf", "l2"]))
def test_uint8_stays_in_the_ball_within_a_level(seed, eps, norm):
    x0, x = _case(seed, eps, norm, on_lattice=True)
    stored = quantise(x, x0, (Linf if norm == "linf" else L2)(eps), "uint8")
    assert stored.dtype == torch.uint8
    q = stored.double() / 255
    assert float((_distance(q, x0, norm) - eps).max()) <= 1e-6
    moved = (q - x.double()).abs() * 255
    assert float(moved.max()) < 1 + 1e-4
    # Rounding to nearest wherever that was allowed.
    nearest = (x.double() * 255).round() / 255
    inside = _distance(nearest, x0, norm) <= eps
    assert torch.equal(q[inside], nearest[inside])
    if norm == "linf":
        allowed = (nearest - x0.double()).abs() <= eps - 1e-6
        assert torch.equal(q[allowed], nearest[allowed])


@given(seed=st.integers(0, 10_000), eps=st.sampled_from([8 / 255, 0.1, 0.5, 1.5]), norm=st.sampled_from(["linf", "l2"]))
def test_uint8_stays_in_the_ball_around_any_centre(seed, eps, norm):
    """Digits are k / 16, planted images anything: then the centre itself may not be stored, but a neighbour may."""
    x0, x = _case(seed, eps, norm, on_lattice=False)
    q = quantise(x, x0, (Linf if norm == "linf" else L2)(eps)).double() / 255
    assert float((_distance(q, x0, norm) - eps).max()) <= 1e-6
    if norm == "linf":
        assert float((q - x.double()).abs().max()) * 255 < 1 + 1e-4


@given(seed=st.integers(0, 10_000), eps=EPS, norm=st.sampled_from(["linf", "l2"]))
def test_float16_stays_in_the_ball(seed, eps, norm):
    x0, x = _case(seed, eps, norm, on_lattice=True)
    x0 = x0.half().float()
    x = (Linf if norm == "linf" else L2)(eps).project_(x, x0)
    stored = quantise(x, x0, (Linf if norm == "linf" else L2)(eps), "float16")
    assert stored.dtype == torch.float16 and bool(((stored >= 0) & (stored <= 1)).all())
    assert float((_distance(stored, x0, norm) - eps).max()) <= 1e-6
    assert float((stored.double() - x.double()).abs().max()) < 2**-11 * 1.01  # a step of float16 just below 1


def test_no_more_values_give_way_than_have_to():
    """Rounding every value towards x0 would shorten the perturbation much more."""
    x0, x = _case(3, 0.5, "l2", on_lattice=True, shape=(20, 3, 32, 32))
    x = L2(0.5).project_(x0 + (x - x0) * 100, x0)
    q = quantise(x, x0, L2(0.5)).double() / 255
    kept = _distance(q, x0, "l2") / _distance(x, x0, "l2")
    assert float(kept.min()) > 0.999 and float(_distance(q, x0, "l2").max()) <= 0.5 + 1e-6
    towards = torch.where(x > x0, (x.double() * 255).floor(), (x.double() * 255).ceil()) / 255
    assert float((_distance(towards, x0, "l2") / _distance(x, x0, "l2")).max()) < 0.9


def test_rounding_to_nearest_would_leave_the_ball():
    """What quantise is for: without it these tests would not fail."""
    x0, x = _case(0, 0.5, "l2", on_lattice=True, shape=(20, 3, 32, 32))
    x = L2(0.5).project_(x0 + (x - x0) * 100, x0)
    assert float(_distance((x.double() * 255).round() / 255, x0, "l2").max()) > 0.501


def test_each_row_has_its_own_radius_and_each_channel_its_own_box():
    x0, x = _case(1, 0.1, "linf", on_lattice=True)
    eps = torch.tensor([0.1, 0.0, 0.05, 1 / 255])
    lo, hi = torch.tensor([51, 0, 128]) / 255, torch.tensor([153, 255, 230]) / 255
    x0 = torch.maximum(torch.minimum(x0, hi.view(3, 1, 1)), lo.view(3, 1, 1))
    threat = Linf(eps, lo, hi)
    q = quantise(threat.project_(x, x0), x0, threat).double() / 255
    assert bool((_distance(q, x0, "linf") <= eps.double() + 1e-6).all())
    assert torch.equal(q[1], (x0[1].double() * 255).round() / 255)
    assert bool((q >= lo.double().view(3, 1, 1) - 1e-6).all()) and bool((q <= hi.double().view(3, 1, 1) + 1e-6).all())


def test_near_a_box_that_is_not_representable_it_rounds_inwards():
    x = torch.tensor([0.2991, 0.6999, 0.7, 0.2999, 0.51]).view(1, 1, 1, 5)
    for norm in (Linf, L2):
        q = quantise(x, x, norm(math.inf, lo=0.299, hi=0.7)).flatten()
        assert q.tolist() == [77, 178, 178, 77, 130]  # the box is 76.2 to 178.5
        half = quantise(x, x, norm(math.inf, lo=0.299, hi=0.7), "float16").double()
        assert float(half.min()) >= 0.299 - 1e-6 and float(half.max()) <= 0.7 + 1e-6


def test_a_small_ball_around_a_centre_that_is_not_representable():
    """Rounding alone takes half of this radius: images have to give way by more than the choice of neighbours."""
    x0 = torch.rand(40, 3, 6, 5, generator=torch.Generator().manual_seed(2))
    nearest = _distance((x0.double() * 255).round() / 255, x0, "l2")
    eps = float(nearest.max()) * 1.01
    x = L2(eps).project_((x0 + 0.1 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1), x0)
    q = quantise(x, x0, L2(eps)).double() / 255
    assert float(_distance(q, x0, "l2").max()) <= eps + 1e-6
    # Not just the centre rounded: it keeps to the side on which x lies.
    inner = ((q - x0.double()) * (x - x0).double()).flatten(1).sum(1)
    assert bool((inner > ((x0.double() * 255).round() / 255 - x0).mul((x - x0).double()).flatten(1).sum(1)).all())


@given(seed=st.integers(0, 2**31))
def test_without_a_ball_it_is_rounding_to_nearest(seed):
    """Of two neighbours that are equally near either may be taken, and float16 has them often: 4097/8192, say."""
    g = torch.Generator().manual_seed(seed)
    x, x0 = torch.rand(5, 3, 4, 4, generator=g), torch.rand(5, 3, 4, 4, generator=g)
    x[0, 0, 0] = torch.tensor([1.5, 2.5, 127.5, 254.5]) / 255
    x[1, 0, 0] = torch.tensor([4097.0, 4099.0, 6145.0, 8191.0]) / 8192
    for threat in (L2(math.inf), Linf(math.inf)):
        levels, halves = quantise(x, x0, threat).double() / 255, quantise(x, x0, threat, "float16").double()
        nearest = (x.double() * 255).round() / 255, x.half().double()
        for got, want in ((levels, nearest[0]), (halves, nearest[1])):
            torch.testing.assert_close((got - x).abs(), (want - x).abs(), rtol=0, atol=1e-12)
    assert quantise(x, x, L2(0.0), "float32") is x
    assert quantise(x[:0], x[:0], Linf(0.1)).shape == (0, 3, 4, 4)


def test_what_cannot_be_rounded_is_refused():
    x = torch.rand(2, 3, 4, 4)
    for norm in (Linf, L2):
        with pytest.raises(
            ValueError, match=r"no uint8 image was found within .* 0 of x0 in row 0.*store the set as float32"
        ):
            quantise(x, x, norm(0.0))
    with pytest.raises(ValueError, match=r"x0 should have the shape of images \(2, 3, 4, 4\)"):
        quantise(x, x[:1], L2(0.5))
    with pytest.raises(ValueError, match="dtype should be one of float32, float16, uint8, got 'int8'"):
        quantise(x, x, L2(0.5), "int8")
    with pytest.raises(ValueError, match="sample 1 holds NaN"):
        quantise(x.index_fill(0, torch.tensor([1]), math.nan), x, L2(0.5))
    with pytest.raises(ValueError, match="sample 0 holds values from"):
        quantise(x - 1.5, x, L2(9.0))
