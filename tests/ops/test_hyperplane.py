"""The shortest way to a hyperplane within a box, against linear and quadratic programs and its own conditions."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from advfeat._hyperplane import shortest_way

F64 = torch.float64
ORDERS = [math.inf, 2, 1]
ZERO, ONE = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)


def case(seed, rows, dim, zeros=0.0):
    g = torch.Generator().manual_seed(seed)
    x, w = torch.rand(rows, dim, generator=g, dtype=F64), torch.randn(rows, dim, generator=g, dtype=F64)
    w = torch.where(torch.rand(rows, dim, generator=g) < zeros, 0.0, w)
    return x, w, torch.randn(rows, generator=g, dtype=F64)


def reach(x, w, gap):
    """The most that <w, x> can change in the direction of the gap within the box."""
    up = -(w.sign() * gap.sign()[:, None]) > 0
    return (w.abs() * torch.where(up, 1 - x, x)).sum(1)


@pytest.mark.parametrize("order", ORDERS)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 4),
    dim=st.integers(1, 30),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_it_reaches_the_plane_inside_the_box_by_its_multiplier(order, seed, rows, dim, scale):
    x, w, gap = case(seed, rows, dim, zeros=0.2)
    d = shortest_way(x, scale * w, scale * gap, ZERO, ONE, order)
    torch.testing.assert_close(d, shortest_way(x, w, gap, ZERO, ONE, order), rtol=1e-9, atol=1e-12)
    assert (x + d >= -1e-12).all() and (x + d <= 1 + 1e-12).all() and (d[w == 0] == 0).all()
    can = reach(x, w, gap)
    closed = -(w * d).sum(1) * gap.sign()
    torch.testing.assert_close(closed, torch.minimum(can, gap.abs()), rtol=1e-9, atol=1e-9)
    for row in range(rows):
        if can[row] < gap[row].abs():
            continue
        free = (d[row] != 0) & (x[row] + d[row] > 1e-12) & (x[row] + d[row] < 1 - 1e-12)
        if order == math.inf and free.any():  # all that are free move by as much, and no other further
            assert (d[row][free].abs() - d[row].abs().max()).abs().max() <= 1e-9
        if order == 2 and free.any():  # in proportion to w, and those at the box less
            rate = (d[row].abs() / w[row].abs())[free]
            assert (rate - rate.max()).abs().max() <= 1e-9 * (1 + rate.max())
            used = w[row] != 0
            assert ((d[row].abs() / w[row].abs())[used] <= rate.max() * (1 + 1e-9) + 1e-12).all()
        if order == 1:  # whoever moves has at least the weight of who could still move
            could = (x[row] + d[row] > 1e-12) & (x[row] + d[row] < 1 - 1e-12) & (w[row] != 0)
            moves = d[row] != 0
            if moves.any() and (could & ~moves).any():
                assert w[row].abs()[moves].min() >= w[row].abs()[could & ~moves].max() - 1e-12


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_a_program_finds(order, seed):
    x, w, gap = (t[0].numpy() for t in case(seed, 1, 6))
    gap = float(np.clip(gap, -0.5, 0.5))
    ours = shortest_way(*(torch.tensor(t)[None] for t in (x, w)), torch.tensor([gap], dtype=F64), ZERO, ONE, order)
    length = float(torch.linalg.vector_norm(ours, order))
    if reach(torch.tensor(x)[None], torch.tensor(w)[None], torch.tensor([gap])) < abs(gap):
        pytest.skip("out of reach")
    sides = [(-c, 1 - c) for c in x]
    if order == 2:
        plane = {"type": "eq", "fun": lambda z: w @ z + gap}
        found = scipy.optimize.minimize(
            lambda z: (z**2).sum(),
            np.zeros(6),
            bounds=sides,
            constraints=[plane],
            method="SLSQP",
            options={"ftol": 1e-15},
        )
        best = math.sqrt(found.fun)
    elif order == 1:
        apart = [(0, high) for _, high in sides] + [(0, -low) for low, _ in sides]
        best = scipy.optimize.linprog(np.ones(12), A_eq=[np.r_[w, -w]], b_eq=[-gap], bounds=apart).fun
    else:
        within = np.block([[np.eye(6), -np.ones((6, 1))], [-np.eye(6), -np.ones((6, 1))]])
        settings = {"A_ub": within, "b_ub": np.zeros(12), "A_eq": [np.r_[w, 0]], "b_eq": [-gap]}
        best = scipy.optimize.linprog(np.r_[np.zeros(6), 1], bounds=[*sides, (0, None)], **settings).fun
    assert length == pytest.approx(best, abs=1e-7)


def test_no_gradient_is_no_way():
    d = shortest_way(torch.rand(2, 3), torch.zeros(2, 3), torch.tensor([1.0, 0.0]), ZERO, ONE, 2)
    assert torch.equal(d, torch.zeros(2, 3, dtype=F64))
