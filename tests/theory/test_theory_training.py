"""Adversarial training of the Gaussian model ends where Theorem 2 says, from population gradients and from samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advfeat import ops
from advfeat.theory import (
    GaussianTask,
    exact_parameters,
    relaxed_loss,
    robust_parameters,
    train_on_samples,
    train_population,
)


def dense(spectrum, seed):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (q * np.asarray(spectrum)) @ q.T


def distance(trained, parameters):
    """Of the covariance relative to its largest eigenvalue, and of the mean relative to the largest deviation."""
    largest = parameters.variances.max()
    covariance = np.abs(trained.covariance - parameters.learned.matrix()).max() / largest
    return max(covariance, np.abs(trained.mean - parameters.task.mean).max() / math.sqrt(largest))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 6), log_eps=st.floats(-2, 1))
def test_population_training_ends_at_theorem_2(seed, dim, log_eps):
    rng = np.random.default_rng(seed)
    task = GaussianTask(rng.standard_normal(dim), dense(np.exp(rng.uniform(-1.5, 1.5, dim)), seed))
    # From anywhere, with correlations that are not the data's: the problem is convex in (T, m).
    start = GaussianTask(3 * rng.standard_normal(dim), dense(np.exp(rng.uniform(-1, 1, dim)), seed + 1))
    eps = 10.0**log_eps
    solved = robust_parameters(task, eps)
    trained = train_population(task, eps, start=start)
    assert trained.converged and distance(trained, solved) < 1e-6
    assert trained.losses[-1] == pytest.approx(relaxed_loss(task, solved.learned, eps), abs=1e-9)


def test_the_plain_gradient_ends_there_too():
    task = GaussianTask(np.array([0.4, -0.2, 0.1]), np.array([3.0, 0.7, 0.2]))
    trained = train_population(task, 0.8, natural=False)
    assert trained.converged and distance(trained, robust_parameters(task, 0.8)) < 1e-6
    assert len(train_population(task, 0.8).losses) < len(trained.losses)


def test_training_survives_a_large_condition_number():
    task = GaussianTask(np.ones(6), dense(np.geomspace(1e-4, 1.0, 6), 2))
    trained = train_population(task, 0.05)
    assert trained.converged and distance(trained, robust_parameters(task, 0.05)) < 1e-6


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), eps=st.floats(0.05, 5.0))
def test_the_population_gradient_is_the_gradient_of_the_robust_loss(seed, eps):
    # Danskin by finite differences: the loss, maximised anew at each point, against one step of plain descent.
    rng = np.random.default_rng(seed)
    task = GaussianTask(rng.standard_normal(3), dense(np.exp(rng.uniform(-1, 1, 3)), seed))
    model = GaussianTask(rng.standard_normal(3), dense(np.exp(rng.uniform(-1, 1, 3)), seed + 1))

    def loss(precision, linear):
        covariance = np.linalg.inv(precision)
        return relaxed_loss(task, GaussianTask(covariance @ linear, (covariance + covariance.T) / 2), eps)

    stepped = train_population(task, eps, natural=False, steps=1, start=model)
    precision, linear = np.linalg.inv(model.matrix()), model.direction()
    after = np.linalg.inv(stepped.covariance)
    # unit^2 dT = -a G and unit dm = -a g for one step length a (undoing the plain gradient's units).
    unit = task.variances.mean()
    moved = np.concatenate([(unit**2 * (after - precision)).ravel(), unit * (after @ stepped.mean - linear)])
    gradient, h = np.empty(12), 1e-5
    for i in range(3):
        for j in range(3):
            shift = np.zeros((3, 3))
            shift[i, j] += h / 2
            shift[j, i] += h / 2
            gradient[3 * i + j] = (loss(precision + shift, linear) - loss(precision - shift, linear)) / (2 * h)
        shift = np.eye(3)[i] * h
        gradient[9 + i] = (loss(precision, linear + shift) - loss(precision, linear - shift)) / (2 * h)
    cosine = -moved @ gradient / np.linalg.norm(moved) / np.linalg.norm(gradient)
    assert cosine > 1 - 1e-6


@pytest.mark.parametrize("eps", [0.3, 0.8, 3.0])
def test_training_on_samples_ends_at_theorem_2_of_the_sample(eps):
    task = GaussianTask(np.array([0.5, -0.3, 0.2]), dense([3.0, 0.7, 0.2], 5))
    x, y = task.sample(2000, 1)
    x = x * y[:, None]
    trained = train_on_samples(x, eps)
    sample = GaussianTask(x.mean(0), np.cov(x.T, bias=True))
    assert trained.converged and distance(trained, robust_parameters(sample, eps)) < 5e-6
    # ... which is the task's own up to sampling error, 1/sqrt(n).
    assert distance(trained, robust_parameters(task, eps)) < 5 * math.sqrt(2 / len(x))


def test_balls_for_each_sample_end_at_the_exact_problem():
    values, eps = np.array([4.0, 0.25]), 0.8
    exact = exact_parameters(values, eps, nodes=64).variances
    relaxed = robust_parameters(GaussianTask(np.zeros(2), values), eps).variances
    # Antithetic whitened samples with the exact second moments, so that little sampling error is left.
    z = np.random.default_rng(0).standard_normal((4000, 2))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / len(z))).T * np.sqrt(values)
    own = np.diag(train_on_samples(z, eps, constraint="per-sample", tolerance=1e-5).covariance)
    shared = np.diag(train_on_samples(z, eps, tolerance=1e-5).covariance)
    np.testing.assert_allclose(shared, relaxed, rtol=1e-4)
    np.testing.assert_allclose(own, exact, rtol=0.02)
    assert abs(own[1] / exact[1] - 1) < 0.2 * abs(relaxed[1] / exact[1] - 1)


def test_the_inner_step_goes_through_the_library_projection(monkeypatch):
    calls = []
    project = ops.project_l2

    def counted(x, x0, eps, lo, hi):
        calls.append((tuple(x.shape), eps, lo, hi))
        return project(x, x0, eps, lo, hi)

    monkeypatch.setattr(ops, "project_l2", counted)
    x = np.random.default_rng(0).standard_normal((50, 2))
    train_on_samples(x, 0.5, steps=3)
    assert calls and set(calls) == {((1, 100), 0.5 * math.sqrt(50), -math.inf, math.inf)}
    calls.clear()
    train_on_samples(x, 0.5, steps=3, constraint="per-sample")
    assert calls and set(calls) == {((50, 2), 0.5, -math.inf, math.inf)}


def test_no_adversary_is_maximum_likelihood():
    x = np.random.default_rng(1).standard_normal((300, 3)) * [1.0, 2.0, 0.5] + [1.0, 0.0, -1.0]
    trained = train_on_samples(x, 0.0, tolerance=1e-9)
    np.testing.assert_allclose(trained.mean, x.mean(0), atol=1e-7)
    np.testing.assert_allclose(trained.covariance, np.cov(x.T, bias=True), atol=1e-7)


def test_bad_arguments_are_named():
    task = GaussianTask(np.zeros(2), 1.0)
    with pytest.raises(ValueError, match="eps should be >= 0, got -1"):
        train_population(task, -1.0)
    with pytest.raises(ValueError, match="d should be <= 256, got 257"):
        train_population(GaussianTask(np.zeros(257), 1.0), 1.0)
    with pytest.raises(ValueError, match="start should have the size of the data, 2, got 3"):
        train_population(task, 1.0, start=GaussianTask(np.zeros(3), 1.0))
    with pytest.raises(ValueError, match=r"x should be \[n, d\] with n > d samples, got shape \(3, 3\)"):
        train_on_samples(np.eye(3), 1.0)
    with pytest.raises(ValueError, match="x should be finite, got nan"):
        train_on_samples(np.full((9, 2), math.nan), 1.0)
    with pytest.raises(ValueError, match="constraint should be one of expectation, per-sample, got 'mean'"):
        train_on_samples(np.random.default_rng(0).standard_normal((9, 2)), 1.0, constraint="mean")
    with pytest.raises(ValueError, match="steps should be >= 1, got 0"):
        train_population(task, 1.0, steps=0)
