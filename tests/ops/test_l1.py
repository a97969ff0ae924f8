"""The L1 operators: the projection onto ball and box against its conditions and against scipy; steps; random starts."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import F32, F64

from advfeat import ops

SEEDS = st.integers(0, 2**31)


def batch(seed, rows, dim, dtype=F64, scale=1.0):
    """Points around centres in [0, 1], some values on the edge of the box."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(rows, dim, generator=g, dtype=F64)
    x0 = torch.where(torch.rand(rows, dim, generator=g) < 0.2, x0.round(), x0).to(dtype)
    return (x0 + scale * torch.randn(rows, dim, generator=g, dtype=F64)).to(dtype), x0


@given(SEEDS, st.integers(1, 5), st.integers(1, 40), st.sampled_from([0.01, 0.3, 3.0]), st.floats(0.01, 8))
def test_the_projection_satisfies_its_optimality_conditions(seed, rows, dim, scale, eps):
    """v = clip(x0 + soft(u - x0, l)) with l >= 0, and l > 0 only on the sphere: it is convex, so v is the nearest."""
    u, x0 = batch(seed, rows, dim, scale=scale)
    v = ops.project_l1(u, x0, eps)
    length = (v - x0).abs().sum(1)
    assert (v >= 0).all() and (v <= 1).all() and (length <= eps * (1 + 1e-12)).all()
    for row in range(rows):
        d, moved = u[row] - x0[row], v[row] - x0[row]
        free = (moved != 0) & (v[row] > 0) & (v[row] < 1)  # what is neither at x0 nor at the box
        multipliers = (d - moved).abs()[free]
        assert (moved * d >= 0).all()
        if free.any():
            level = float(multipliers.mean())
            assert (multipliers - level).abs().max() <= 1e-9 * (1 + level)
            assert (d.abs()[(moved == 0) & (v[row] > 0) & (v[row] < 1)] <= level + 1e-9).all()
            assert level <= 1e-9 or length[row] >= eps * (1 - 1e-9)


@pytest.mark.parametrize("eps", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_projection_is_what_scipy_finds(seed, eps):
    u, x0 = (t[0].numpy() for t in batch(seed, 1, 7))
    # The moves up and down as separate variables, in which the ball is linear.
    bounds = [(0, 1 - c) for c in x0] + [(0, c) for c in x0]
    ball = {"type": "ineq", "fun": lambda z: eps - z.sum()}
    found = scipy.optimize.minimize(
        lambda z: 0.5 * ((x0 + z[:7] - z[7:] - u) ** 2).sum(),
        np.zeros(14),
        bounds=bounds,
        constraints=[ball],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    ours = ops.project_l1(torch.tensor(u)[None], torch.tensor(x0)[None], eps)[0].numpy()
    np.testing.assert_allclose(ours, x0 + found.x[:7] - found.x[7:], atol=1e-6)


@given(SEEDS, st.sampled_from([F32, F64]), st.floats(0.01, 4))
def test_a_point_in_ball_and_box_keeps_its_bits_and_projecting_again_changes_nothing(seed, dtype, eps):
    u, x0 = batch(seed, 4, 12, dtype)
    v = ops.project_l1(u, x0, eps)
    tolerance = 1e-6 if dtype == F32 else 1e-12
    torch.testing.assert_close(ops.project_l1(v, x0, eps), v, rtol=0, atol=tolerance)
    near = x0 + (v - x0) / 2
    assert torch.equal(ops.project_l1(near, x0, eps), near.clamp(0, 1))
    assert torch.equal(ops.project_l1(u, x0, math.inf), u.clamp(0, 1))
    assert torch.equal(ops.project_l1(u, x0, 0.0), x0)


def test_radii_by_sample_bounds_by_channel_and_other_layouts():
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 5, 6, generator=g)
    u, eps = x0 + torch.randn(x0.shape, generator=g), torch.tensor([0.0, 0.5, 3.0, math.inf])
    lo, hi = torch.tensor([0.0, -0.5, -1.0]), torch.tensor([1.0, 1.5, 2.0])
    v = ops.project_l1(u, x0, eps, lo, hi)
    for i in range(4):
        alone = ops.project_l1(u[i : i + 1], x0[i : i + 1], float(eps[i]), lo, hi)
        torch.testing.assert_close(v[i : i + 1], alone, rtol=0, atol=0)
    for c in range(3):
        assert (v[:, c] >= lo[c]).all() and (v[:, c] <= hi[c]).all()
    last = [t.to(memory_format=torch.channels_last) for t in (u, x0)]
    torch.testing.assert_close(ops.project_l1(*last, eps, lo, hi), v, rtol=0, atol=1e-6)
    mapped = torch.func.vmap(lambda a, b, e: ops.project_l1(a[None], b[None], e, lo, hi)[0])(u, x0, eps)
    torch.testing.assert_close(mapped, v, rtol=0, atol=1e-6)


def test_the_projection_has_a_gradient():
    g = torch.Generator().manual_seed(3)
    x0 = 0.2 + 0.6 * torch.rand(3, 6, generator=g, dtype=F64)
    u, eps = x0 + 0.3 * torch.randn(3, 6, generator=g, dtype=F64), torch.tensor([0.3, 0.6, 5.0], dtype=F64)
    assert torch.autograd.gradcheck(lambda a, b, e: ops.project_l1(a, b, e), [t.requires_grad_() for t in (u, x0, eps)])


def test_a_nan_stays_in_its_sample_and_empty_batches_pass():
    u, x0 = batch(0, 3, 5)
    u[1, 2] = float("nan")
    v = ops.project_l1(u, x0, 0.5)
    assert v[[0, 2]].isfinite().all() and v[1, 2].isnan()
    for shape in ((0, 3), (2, 0)):
        assert ops.project_l1(torch.rand(shape), torch.rand(shape), 1.0).shape == shape
        assert ops.l1_step(*torch.rand(3, *shape), 0.1, 1.0).shape == shape
        assert ops.random_start_l1(torch.rand(shape), 1.0, 0, torch.arange(shape[0])).shape == shape


@given(SEEDS, st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.floats(1e-30, 1e30))
def test_a_step_moves_the_largest_share_by_its_length_at_any_scale(seed, share, scale):
    _, x0 = batch(seed, 3, 50)
    g = torch.Generator().manual_seed(seed)
    grad = torch.randn(3, 50, generator=g, dtype=F64)
    y = ops.l1_step(x0, scale * grad, x0, 0.25, math.inf, -9.0, 9.0, share=share)
    moved = y - x0
    torch.testing.assert_close(moved.abs().sum(1), torch.full((3,), 0.25, dtype=F64))
    kept = max(1, 50 - int((1 - share) * 50))
    assert ((moved != 0).sum(1) == kept).all() and (moved * grad >= 0).all()
    smallest = torch.where(moved != 0, grad.abs(), math.inf).amin(1)
    assert (torch.where(moved == 0, grad.abs(), 0).amax(1) <= smallest).all()
    assert torch.equal(
        y, ops.l1_step(x0, grad, x0, 0.25, math.inf, -9.0, 9.0, share=torch.full((3,), share, dtype=F64))
    )


def test_steps_in_place_with_momentum_and_bad_gradients():
    u, x0 = batch(5, 4, 20, F32, 0.01)
    u = ops.project_l1(u, x0, 1.0)
    grad = torch.randn(4, 20, generator=torch.Generator().manual_seed(1))
    grad[1], grad[2, 3] = 0, float("inf")
    status, velocity, x = torch.zeros(4, 2, dtype=torch.int32), torch.full_like(u, 0.01), u.clone()
    want = ops.project_l1(u + 0.75 * velocity + ops.l1_step(u, grad, u, 0.1, math.inf, -9, 9) - u, x0, 1.0)
    assert ops.l1_step_(x, grad, x0, 0.1, 1.0, grad_status=status, velocity=velocity, momentum=0.75) is x
    torch.testing.assert_close(x, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(velocity, x - u, rtol=0, atol=1e-6)
    assert status.tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]


def test_random_starts_are_uniform_in_the_ball_and_keyed_by_sample():
    x0, ids = torch.full((4000, 3), 0.5, dtype=F64), torch.arange(4000)
    start = ops.random_start_l1(x0, 0.4, 7, ids)
    length = (start - x0).abs().sum(1) / 0.4
    assert (length <= 1).all()
    # The volume within r is r^3: its cubes are uniform, and every coordinate has the same mean magnitude, 1 / 4.
    assert scipy.stats.kstest((length**3).numpy(), "uniform").pvalue > 1e-3
    torch.testing.assert_close((start - x0).abs().mean(0) / 0.4, torch.full((3,), 0.25, dtype=F64), rtol=0, atol=0.01)
    assert torch.equal(ops.random_start_l1(x0[5:9], 0.4, 7, ids[5:9]), start[5:9])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.project_l1(x, x, -1.0), "eps should be at least 0, got -1"),
        (lambda x: ops.project_l1(x, x[:1], 1.0), "x0 should have the shape of x"),
        (lambda x: ops.l1_step(x, x, x, 0.1, 1.0, share=0.0), "share should be above 0 and at most 1, got 0"),
        (lambda x: ops.l1_step(x, x, x, 0.1, 1.0, share=torch.tensor([0.5, 2.0])), "share should be .* at index 1"),
        (lambda x: ops.l1_step(x, x, x, 0.1, 1.0, momentum=0.5), "velocity should be a tensor"),
        (lambda x: ops.l1_step(x.requires_grad_(), x, x, 0.1, 1.0), "l1_step has no gradient"),
        (lambda x: ops.random_start_l1(x, math.inf, 0, torch.arange(2)), "eps should be finite"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(torch.rand(2, 4))
