"""Theorem 3: the worst-case cosine, its minimiser, the condition for strictness, and what happens to one given mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advfeat.theory import (
    GaussianTask,
    cosine,
    exact_parameters,
    robust_parameters,
    worst_cosine,
    worst_cosine_by_optimiser,
    worst_mean,
)
from advfeat.theory.theorem3 import CONDITION_EXAMPLE

spectra = st.lists(st.floats(-6.0, 6.0), min_size=1, max_size=6).map(lambda logs: 10.0 ** np.array(logs))
radii = st.floats(-6.0, 6.0).map(lambda log: 10.0**log)


def centred(spectrum):
    return GaussianTask(np.zeros(len(spectrum)), np.asarray(spectrum))


def test_the_test_vector_of_the_notes():
    task = centred([3.0, 0.7, 0.2])
    learned = robust_parameters(task, 0.8).learned
    assert task.condition == pytest.approx(15.0) and learned.condition == pytest.approx(3.8785, abs=5e-5)
    assert worst_cosine(task) == pytest.approx(0.48412, abs=1e-5)
    assert worst_cosine(learned) == pytest.approx(0.80737, abs=1e-5)


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 5), full=st.booleans())
def test_the_worst_cosine_against_numerical_minimisation(seed, dim, full):
    rng = np.random.default_rng(seed)
    spectrum = np.exp(rng.uniform(-2, 2, dim))
    q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    task = GaussianTask(np.zeros(dim), (q * spectrum) @ q.T if full else spectrum)
    assert worst_cosine_by_optimiser(task, seed=seed) == pytest.approx(worst_cosine(task), rel=1e-6)


@given(seed=st.integers(0, 10**6), spectrum=spectra)
def test_no_mean_is_below_the_worst_one(seed, spectrum):
    task = centred(spectrum)
    least = worst_cosine(task)
    assert cosine(worst_mean(task), task) == pytest.approx(least, rel=1e-9)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        assert cosine(rng.standard_normal(len(spectrum)) * spectrum ** rng.uniform(0, 1), task) >= least * (1 - 1e-9)


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 5))
def test_cosine_and_worst_mean_by_dense_algebra(seed, dim):
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    task = GaussianTask(np.zeros(dim), (q * np.exp(rng.uniform(-3, 3, dim))) @ q.T)
    mean = rng.standard_normal(dim)
    gradient = np.linalg.solve(task.matrix(), mean)
    expected = mean @ gradient / np.linalg.norm(mean) / np.linalg.norm(gradient)
    assert cosine(mean, task) == pytest.approx(expected, rel=1e-9)
    assert cosine(1e200 * mean, task) == pytest.approx(expected, rel=1e-9)
    worst = worst_mean(task)
    assert np.linalg.norm(worst) == pytest.approx(1.0)
    # A stationary point of the cosine: finite differences in every direction.
    for direction in np.eye(dim):
        slope = (cosine(worst + 1e-5 * direction, task) - cosine(worst - 1e-5 * direction, task)) / 2e-5
        assert abs(slope) < 1e-4


@given(spectrum=spectra, eps=radii)
def test_the_robust_parameters_are_better_and_strictly_so_when_anything_moves(spectrum, eps):
    task = centred(spectrum)
    learned = robust_parameters(task, eps).learned
    assert worst_cosine(learned) >= worst_cosine(task) * (1 - 1e-13)
    if task.condition > 1.01 and eps > 1e-3 * math.sqrt(spectrum.max()):
        assert worst_cosine(learned) > worst_cosine(task)


@given(value=st.floats(-5, 5), dim=st.integers(1, 5), eps=radii)
def test_equality_for_isotropic_data_and_for_eps_zero(value, dim, eps):
    isotropic = GaussianTask(np.zeros(dim), 10.0**value)
    assert worst_cosine(robust_parameters(isotropic, eps).learned) == pytest.approx(1.0, abs=1e-14)
    task = centred([3.0, 0.7, 0.2])
    assert worst_cosine(robust_parameters(task, 0.0).learned) == worst_cosine(task)


@given(seed=st.integers(0, 10**6), spectrum=spectra, eps=radii, factor=st.floats(1.0, 100.0))
def test_every_fixed_mean_improves_with_eps(seed, spectrum, eps, factor):
    # Stronger than the theorem (docs/theory.md): the cosine of EVERY mean rises with eps, not just the worst one's.
    rng = np.random.default_rng(seed)
    task = centred(spectrum)
    models = [task, robust_parameters(task, eps).learned, robust_parameters(task, factor * eps).learned]
    for _ in range(5):
        mean = rng.standard_normal(len(spectrum)) * spectrum ** rng.uniform(0, 1)
        values = [cosine(mean, model) for model in models]
        assert values[0] <= values[1] + 1e-12 and values[1] <= values[2] + 1e-12


@pytest.mark.parametrize("eps", [0.1, 1.0, 5.0])
def test_every_fixed_mean_improves_for_the_exact_problem_too(eps):
    spectrum = np.array([10.0, 1.0, 0.05])
    task, learned = centred(spectrum), centred(exact_parameters(spectrum, eps, nodes=32).variances)
    rng = np.random.default_rng(0)
    means = rng.standard_normal((300, 3)) * spectrum ** rng.uniform(0, 1, (300, 1))
    assert min(cosine(mean, learned) - cosine(mean, task) for mean in means) > -1e-9


def test_a_smaller_condition_number_alone_is_not_enough():
    # All that the paper's proof uses of S_r is its condition number: here that falls, and a given mean gets worse.
    before, after = centred(CONDITION_EXAMPLE["before"]), centred(CONDITION_EXAMPLE["after"])
    mean = np.array(CONDITION_EXAMPLE["mean"])
    assert after.condition < before.condition and worst_cosine(after) > worst_cosine(before)
    assert cosine(mean, before) == pytest.approx(1.0) and cosine(mean, after) == pytest.approx(0.9487, abs=1e-4)


def test_a_hundred_thousand_dimensions():
    spectrum = np.geomspace(1e-3, 1e5, 100_000)
    task = centred(spectrum)
    assert cosine(worst_mean(task), task) == pytest.approx(2e4 / (1 + 1e8), rel=1e-9)
    assert worst_cosine(task) == pytest.approx(2e4 / (1 + 1e8), rel=1e-12)


def test_bad_arguments_are_named():
    task = centred([3.0, 0.7])
    with pytest.raises(ValueError, match="mean should not be zero"):
        cosine(np.zeros(2), task)
    with pytest.raises(ValueError, match=r"mean should be a vector \[2\], got shape \(3,\)"):
        cosine(np.ones(3), task)
    with pytest.raises(ValueError, match=r"mean should be finite, got nan"):
        cosine(np.array([1.0, math.nan]), task)
    with pytest.raises(ValueError, match="starts should be >= 1"):
        worst_cosine_by_optimiser(task, starts=0)
