"""Theorem 1: the closed form against scipy's maximiser, sampling and finite differences; its minimiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from advfeat.theory import (
    CONVENTIONS,
    GaussianTask,
    isotropic_minimum,
    penalised_move,
    penalised_vulnerability,
    vulnerability,
    vulnerability_by_optimiser,
    vulnerability_by_sampling,
)
from advfeat.theory.theorem1 import cubature_points

NOTES = GaussianTask(np.array([0.4, -0.2, 0.1]), np.array([3.0, 0.7, 0.2]))


def dense(spectrum, seed):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (q * np.asarray(spectrum)) @ q.T


def least_c(task, convention):
    return 1 / CONVENTIONS[convention].strength(1.0) / task.variances.min()


def test_the_test_vector_of_the_notes():
    assert vulnerability(NOTES, 7.5) == pytest.approx(8.6211, abs=5e-5)
    mean, error = vulnerability_by_sampling(NOTES, 7.5, n=400_000, seed=1)
    assert abs(mean - 8.6211) < 4 * error and error < 0.05


@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 5),
    convention=st.sampled_from(sorted(CONVENTIONS)),
    excess=st.floats(1.05, 30.0),
    full=st.booleans(),
)
def test_the_closed_form_against_scipys_maximiser(seed, dim, convention, excess, full):
    rng = np.random.default_rng(seed)
    spectrum = np.exp(rng.uniform(-1.5, 1.5, dim))
    task = GaussianTask(rng.standard_normal(dim), dense(spectrum, seed) if full else spectrum)
    c = excess * least_c(task, convention)
    numeric = vulnerability_by_optimiser(cubature_points(task), task, c, convention=convention).mean()
    assert vulnerability(task, c, convention=convention) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_the_closed_form_against_sampling(convention):
    task = GaussianTask(np.array([1.0, 0.0, 2.0]), dense([2.0, 1.0, 0.5], 3))
    c = 2.5 * least_c(task, convention)
    mean, error = vulnerability_by_sampling(task, c, convention=convention, n=100_000, seed=2)
    closed = vulnerability(task, c, convention=convention)
    assert abs(mean - closed) < 4.5 * error and error < 0.02 * closed


@given(seed=st.integers(0, 10**6), convention=st.sampled_from(sorted(CONVENTIONS)), diagonal=st.sampled_from("tmn"))
def test_another_model_than_the_maximum_likelihood_one(seed, convention, diagonal):
    # The statement says "incurred by (mu, Sigma)", but its right-hand side holds for the true parameters alone.
    rng = np.random.default_rng(seed)
    spectra = np.exp(rng.uniform(-1, 1, (2, 3)))
    task = GaussianTask(rng.standard_normal(3), spectra[0] if diagonal == "t" else dense(spectra[0], seed))
    model = GaussianTask(rng.standard_normal(3), spectra[1] if diagonal == "m" else dense(spectra[1], seed + 1))
    c = 1.5 * least_c(model, convention)
    # v = x - model mean: nodes exact for second moments are the shifted cubature points, with both signs.
    nodes = cubature_points(task)
    v = np.concatenate([nodes, -nodes]) + (task.mean - model.mean)
    numeric = vulnerability_by_optimiser(v, model, c, convention=convention).mean()
    assert vulnerability(task, c, convention=convention, model=model) == pytest.approx(numeric, rel=1e-5)
    if convention == "doubled":
        printed = ((c * model.variances / (c * model.variances - 1)) ** 2).sum() - 3
        assert abs(printed - numeric) > 1e-3 * numeric


@given(seed=st.integers(0, 10**6), convention=st.sampled_from(sorted(CONVENTIONS)), excess=st.floats(1.2, 10.0))
def test_the_envelope_theorem(seed, convention, excess):
    # d/dC of the penalised maximum is minus the expected penalty per unit of C: a check of both closed forms that knows
    # the maximiser only.
    rng = np.random.default_rng(seed)
    task = GaussianTask(np.zeros(3), np.exp(rng.uniform(-1, 1, 3)))
    c = excess * least_c(task, convention)
    h = 1e-6 * c
    slope = (
        penalised_vulnerability(task, c + h, convention=convention)
        - penalised_vulnerability(task, c - h, convention=convention)
    ) / (2 * h)
    move = penalised_move(np.eye(3), task, c, convention=convention)
    rule = CONVENTIONS[convention]
    squared = (np.diag(move) ** 2 * task.variances).sum()
    assert slope == pytest.approx(-rule.penalty * squared, rel=1e-4)
    penalised = penalised_vulnerability(task, c, convention=convention)
    assert vulnerability(task, c, convention=convention) - rule.penalty * c * squared == pytest.approx(
        penalised, rel=1e-9
    )


@given(seed=st.integers(0, 10**6), dim=st.integers(2, 5))
def test_the_isotropic_covariance_is_the_minimiser(seed, dim):
    rng = np.random.default_rng(seed)
    trace = float(np.exp(rng.uniform(-1, 1))) * dim
    c = float(rng.uniform(2.0, 8.0)) * dim / trace
    spectrum = rng.dirichlet(np.full(dim, 5.0)) * (trace - 1.1 * dim / c) + 1.1 / c

    def value(s):
        return vulnerability(GaussianTask(np.zeros(dim), s), c)

    least = isotropic_minimum(dim, trace, c)
    assert value(spectrum) >= least * (1 - 1e-12)
    found = minimize(
        value,
        spectrum,
        constraints={"type": "eq", "fun": lambda s: s.sum() - trace},
        bounds=[(1.02 / c, None)] * dim,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert found.fun == pytest.approx(least, rel=1e-5)
    np.testing.assert_allclose(found.x, trace / dim, rtol=2e-2)


@given(exponent=st.floats(-100, 100), excess=st.floats(1.001, 1e6))
def test_scaling_and_monotonicity(exponent, excess):
    spectrum = np.array([1.0, 5.0, 0.3])
    scale = 10.0**exponent
    task, scaled = GaussianTask(np.zeros(3), spectrum), GaussianTask(np.zeros(3), scale * spectrum)
    c = excess / 0.3
    # x -> sqrt(scale) x with C -> C / scale leaves every term alone.
    assert vulnerability(scaled, c / scale) == pytest.approx(vulnerability(task, c), rel=1e-6)
    assert vulnerability(task, 1.5 * c) < vulnerability(task, c)
    # Large C: sum 2 / (C s), down to where the printed difference tr[...] - d has lost every digit.
    assert vulnerability(task, 1e18 * c) == pytest.approx((2 / (1e18 * c * spectrum)).sum(), rel=1e-9)


def test_conventions_are_related_as_their_names_say():
    assert vulnerability(NOTES, 7.5, convention="lemma1") == pytest.approx(vulnerability(NOTES, 7.5) / 2, rel=1e-14)
    assert vulnerability(NOTES, 7.5, convention="nll") == pytest.approx(vulnerability(NOTES, 15.0) / 2, rel=1e-14)


def test_a_hundred_thousand_dimensions():
    spectrum = np.geomspace(1e-3, 1e3, 100_000)
    task = GaussianTask(np.zeros(100_000), spectrum)
    c = 2e3
    assert vulnerability(task, c) == pytest.approx(((c * spectrum / (c * spectrum - 1)) ** 2 - 1).sum(), rel=1e-9)


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_too_small_a_penalty_is_refused_with_the_reason(convention):
    bound = least_c(NOTES, convention)
    for c in (bound, 0.9 * bound, 0.0):
        with pytest.raises(
            ValueError, match=rf"c should be > {bound:.6g} .*smallest variance 0.2.*outgrows the penalty"
        ):
            vulnerability(NOTES, c, convention=convention)
    assert vulnerability(NOTES, bound * 1.0001, convention=convention) > 1e6


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="convention should be one of doubled, nll, lemma1, got 'half'"):
        vulnerability(NOTES, 7.5, convention="half")
    with pytest.raises(ValueError, match="c should be finite, got nan"):
        vulnerability(NOTES, float("nan"))
    with pytest.raises(ValueError, match="model should have the size of task, 3, got 2"):
        vulnerability(NOTES, 7.5, model=GaussianTask(np.zeros(2), 1.0))
    with pytest.raises(ValueError, match="trace should be > 0, got 0"):
        isotropic_minimum(3, 0.0, 7.5)
    with pytest.raises(ValueError, match="dim should be >= 1, got 0"):
        isotropic_minimum(0, 1.0, 7.5)
