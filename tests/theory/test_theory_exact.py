"""The per-sample robust problem: quadrature against sampling, and the rate at which the relaxation meets it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advfeat.theory import (
    GaussianTask,
    exact_parameters,
    exact_parameters_by_sampling,
    relaxation_gap,
    robust_parameters,
)


@pytest.mark.parametrize(("values", "eps"), [([4.0, 0.25], 0.5656854), ([2.0, 1.0, 0.3], 1.5)])
def test_quadrature_and_stationarity_against_sampling_and_minimisation(values, eps):
    exact = exact_parameters(np.array(values), eps, nodes=40)
    assert exact.residual < 1e-10
    runs = [
        exact_parameters_by_sampling(GaussianTask(np.zeros(len(values)), np.array(values)), eps, n=4000, seed=seed)
        for seed in range(6)
    ]
    found = np.array([run.variances for run in runs])
    error = found.std(0, ddof=1) / math.sqrt(len(runs))
    # Six runs: a t distribution with five degrees of freedom.
    assert (np.abs(found.mean(0) - exact.variances) < 6 * error).all()
    assert (error < 0.02 * exact.variances).all()


@pytest.mark.slow
def test_repeated_values_as_groups_are_the_same_problem():
    once = exact_parameters(np.array([2.0, 2.0, 0.5]), 0.7, nodes=64)
    grouped = exact_parameters(np.array([2.0, 0.5]), 0.7, multiplicity=np.array([2, 1]), nodes=128)
    assert once.variances[0] == pytest.approx(once.variances[1], rel=1e-9)
    np.testing.assert_allclose(once.variances[[0, 2]], grouped.variances, rtol=2e-4)
    assert once.loss == pytest.approx(grouped.loss, rel=1e-5)


def test_isotropic_data_in_closed_form():
    # By symmetry the move is radial, ||v + delta|| = ||v|| + eps, so S = E(||v|| + eps)^2 / d: chi moments.
    for dim, s, eps in ((1, 1.0, 0.5), (3, 2.0, 1.0), (50, 0.5, 4.0)):
        mean_length = math.sqrt(2 * s) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
        expected = (dim * s + 2 * eps * mean_length + eps**2) / dim
        assert exact_parameters(np.array([s]), eps, multiplicity=dim).variances[0] == pytest.approx(expected, rel=1e-10)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 20))
def test_scaling_and_limits(seed, count):
    rng = np.random.default_rng(seed)
    values, eps = np.exp(rng.uniform(-1, 1, 2)), float(np.exp(rng.uniform(-2, 1)))
    exact = exact_parameters(values, eps, multiplicity=count, nodes=48)
    assert (exact.variances > values).all()
    scaled = exact_parameters(100.0 * values, 10.0 * eps, multiplicity=count, nodes=48)
    np.testing.assert_allclose(scaled.variances, 100.0 * exact.variances, rtol=1e-8)
    np.testing.assert_allclose(exact_parameters(values, 0.0, multiplicity=count).variances, values, rtol=1e-9)


def test_the_gap_falls_as_one_over_d_and_not_exponentially():
    gap = relaxation_gap(np.array([4.0, 0.25]), 0.4, [1, 4, 16, 64, 256], nodes=64)
    # The notes' values for d = 2, 8, 32, 128 (theirs carry sampling error of a few per cent).
    np.testing.assert_allclose(gap.gap[:4, 1], [0.096, 0.030, 0.0074, 0.0019], rtol=0.04)
    np.testing.assert_allclose(gap.rate, -1.0, atol=0.01)
    # Exponential decay c^d would take the ratio to its fourth power from one quadrupling of d to the next.
    ratios = gap.gap[:-1, 1] / gap.gap[1:, 1]
    assert 3.9 < ratios[-1] < 4.1 and 3.8 < ratios[-2] < 4.2


def test_more_nodes_change_nothing():
    coarse = exact_parameters(np.array([4.0, 0.25]), 1.1, multiplicity=4, nodes=48)
    fine = exact_parameters(np.array([4.0, 0.25]), 1.1, multiplicity=4, nodes=96)
    np.testing.assert_allclose(coarse.variances, fine.variances, rtol=1e-8)


def test_the_relaxed_loss_bounds_the_exact_one():
    # An average constraint lets the adversary do more than one for each sample.
    from advfeat.theory import relaxed_loss

    for eps in (0.3, 1.0, 4.0):
        exact = exact_parameters(np.array([2.0, 0.5]), eps)
        task = GaussianTask(np.zeros(2), np.array([2.0, 0.5]))
        assert exact.loss < relaxed_loss(task, robust_parameters(task, eps).learned, eps)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="values should have at most 3 distinct variances, got 4"):
        exact_parameters(np.arange(1.0, 5.0), 1.0)
    with pytest.raises(ValueError, match="multiplicity should be >= 1, got 0"):
        exact_parameters(np.array([1.0, 2.0]), 1.0, multiplicity=0)
    with pytest.raises(ValueError, match="eps should be >= 0, got -1"):
        exact_parameters(np.array([1.0, 2.0]), -1.0)
    with pytest.raises(ValueError, match="values should be positive definite"):
        exact_parameters(np.array([1.0, -2.0]), 1.0)
    with pytest.raises(ValueError, match="eps_per_root_d should be > 0, got 0"):
        relaxation_gap(np.array([1.0, 2.0]), 0.0, [1, 2])
