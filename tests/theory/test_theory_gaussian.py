"""The Gaussian task: its errors, its sampling, and its exact accuracies against attacked samples and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from advfeat.theory import GaussianTask, worst_move, worst_perturbation


def rotation(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def dense(spectrum, seed: int) -> np.ndarray:
    q = rotation(len(spectrum), seed)
    return (q * np.asarray(spectrum)) @ q.T


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([1.0, 2.0], [[2.0, 1.0], [0.5, 2.0]], r"covariance should be symmetric, got max \|A - A\^T\| = 0.5"),
        (
            [1.0, 2.0],
            [[1.0, 2.0], [2.0, 1.0]],
            r"covariance should be positive definite, got the smallest eigenvalue -1",
        ),
        ([1.0, 2.0], [[1.0, 1.0], [1.0, 1.0]], r"covariance should be positive definite"),
        ([1.0, 2.0], [1.0, -3.0], r"covariance should be positive definite, got the eigenvalue -3 at \[1\]"),
        ([1.0, 2.0], [1.0, 0.0], r"covariance should be positive definite, got the eigenvalue 0 at \[1\]"),
        ([1.0, 2.0], -1.0, r"covariance should be positive definite, got the eigenvalue -1"),
        ([1.0, 2.0], [1.0, NAN], r"covariance should be finite, got nan at \[1\]"),
        ([1.0, INF], [1.0, 1.0], r"mean should be finite, got inf at \[1\]"),
        ([1.0, 2.0], [1.0, 1.0, 1.0], r"covariance should have the size of mean, \[2\], got shape \(3,\)"),
        ([1.0, 2.0], np.eye(3), r"covariance should be a number, \[2\] or \[2, 2\] .* got shape \(3, 3\)"),
        ([[1.0, 2.0]], [1.0, 1.0], r"mean should be a vector \[d\], got shape \(1, 2\)"),
        ([], [], r"mean should be a vector \[d\], got shape \(0,\)"),
    ],
)
def test_bad_tasks_are_named(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        GaussianTask(np.array(mean, dtype=float), covariance)


def test_bad_types_and_arguments_are_named():
    task = GaussianTask(np.ones(2), 1.0)
    with pytest.raises(TypeError, match="mean should be an array of real numbers"):
        GaussianTask("north", 1.0)
    with pytest.raises(ValueError, match="eps should be >= 0, got -0.5"):
        task.accuracy(eps=-0.5)
    with pytest.raises(ValueError, match="eps should be finite, got nan"):
        task.accuracy(eps=NAN)
    with pytest.raises(TypeError, match="eps should be a real number, got str"):
        task.accuracy(eps="0.5")
    with pytest.raises(ValueError, match="norm should be one of l2, linf, got 'l1'"):
        task.accuracy(norm="l1")
    with pytest.raises(ValueError, match=r"w should be a vector \[2\], got shape \(3,\)"):
        task.accuracy(np.ones(3))
    with pytest.raises(ValueError, match=r"w should not be zero"):
        task.accuracy(np.zeros(2))
    with pytest.raises(ValueError, match=r"mean should not be zero"):
        GaussianTask(np.zeros(2), 1.0).accuracy()
    with pytest.raises(ValueError, match=r"x should have shape \[..., 2\], got \(4, 3\)"):
        task.classify(np.ones((4, 3)))
    with pytest.raises(ValueError, match="n should be >= 0, got -1"):
        task.sample(-1)


def test_a_task_is_not_changed_through_its_inputs():
    mean, covariance = np.ones(2), np.ones(2)
    task = GaussianTask(mean, covariance)
    mean[0] = covariance[0] = 7.0
    assert task.mean[0] == 1.0 and task.variances[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        task.variances[0] = 3.0


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 6))
def test_nll_and_direction_against_scipy_and_a_dense_solve(seed, dim):
    rng = np.random.default_rng(seed)
    covariance = dense(np.exp(rng.uniform(-3, 3, dim)), seed)
    task = GaussianTask(rng.standard_normal(dim), covariance)
    x, y = rng.standard_normal((7, dim)), rng.integers(0, 2, 7) * 2.0 - 1
    expected = [
        -multivariate_normal(label * task.mean, covariance).logpdf(point) for point, label in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(task.nll(x, y), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(task.direction(), np.linalg.solve(covariance, task.mean), rtol=1e-8, atol=1e-8)
    # The classifier takes the label of the SMALLER negative log-likelihood (printed as an arg max).
    np.testing.assert_array_equal(task.classify(x), np.where(task.nll(x, 1.0) < task.nll(x, -1.0), 1.0, -1.0))


def test_sampling_has_the_moments_asked_for():
    task = GaussianTask(np.array([1.0, -2.0, 0.5]), dense([3.0, 0.7, 0.2], 1))
    n = 200_000
    x, y = task.sample(n, 3)
    assert set(np.unique(y)) == {-1.0, 1.0} and abs(y.mean()) < 5 / math.sqrt(n)
    centred = x - y[:, None] * task.mean
    assert np.abs(centred.mean(0)).max() < 5 * math.sqrt(3 / n)
    np.testing.assert_allclose(centred.T @ centred / n, task.matrix(), atol=5 * 3 * math.sqrt(2 / n))
    again, _ = task.sample(n, 3)
    np.testing.assert_array_equal(x, again)
    assert task.sample(0)[0].shape == (0, 3)


@given(
    seed=st.integers(0, 10**6),
    dim=st.sampled_from([1, 2, 5]),
    norm=st.sampled_from(["l2", "linf"]),
    eps=st.sampled_from([0.0, 0.1, 0.7]),
    full=st.booleans(),
)
def test_accuracy_against_attacked_samples(seed, dim, norm, eps, full):
    rng = np.random.default_rng(seed)
    spectrum = np.exp(rng.uniform(-1, 1, dim))
    task = GaussianTask(rng.standard_normal(dim), dense(spectrum, seed) if full else spectrum)
    w = rng.standard_normal(dim)
    n = 20_000
    x, y = task.sample(n, rng)
    attacked = x + worst_perturbation(w, y, eps, norm)
    share = (np.sign(attacked @ w) == y).mean()
    exact = task.accuracy(w, eps=eps, norm=norm)
    assert abs(share - exact) < 5 * math.sqrt(max(exact * (1 - exact), 1 / n) / n)


@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]))
def test_no_perturbation_in_the_ball_beats_the_worst_one(seed, norm):
    rng = np.random.default_rng(seed)
    w, eps = rng.standard_normal(4), 0.3
    worst = worst_perturbation(w, np.ones(1), eps, norm)[0]
    size = np.linalg.norm(worst) if norm == "l2" else np.abs(worst).max()
    assert size == pytest.approx(eps, rel=1e-12)
    others = rng.standard_normal((500, 4))
    others *= eps / (np.linalg.norm(others, axis=1) if norm == "l2" else np.abs(others).max(1))[:, None]
    assert (others @ w >= worst @ w - 1e-12).all()


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-120, 1e-3, 1e5, 1e120]))
def test_accuracy_is_invariant_under_rotation_and_units(seed, scale):
    rng = np.random.default_rng(seed)
    spectrum, mean, eps = np.exp(rng.uniform(-2, 2, 4)), rng.standard_normal(4), 0.2
    plain = GaussianTask(mean, spectrum)
    q = rotation(4, seed)
    turned = GaussianTask(q @ mean, (q * spectrum) @ q.T)
    assert turned.accuracy(eps=eps) == pytest.approx(plain.accuracy(eps=eps), abs=1e-9)
    np.testing.assert_allclose(np.sort(turned.variances), np.sort(spectrum), rtol=1e-9)
    scaled = GaussianTask(scale * mean, scale**2 * spectrum)
    for norm in ("l2", "linf"):
        expected = plain.standard_score(eps=eps, norm=norm)
        assert scaled.standard_score(eps=scale * eps, norm=norm) == pytest.approx(expected, rel=1e-9)


def test_the_gaussian_classifier_is_the_most_accurate_linear_one():
    task = GaussianTask(np.array([1.0, 0.4, -0.3]), dense([2.0, 0.5, 0.1], 4))
    best = task.accuracy()
    rng = np.random.default_rng(0)
    assert all(task.accuracy(w) <= best for w in rng.standard_normal((300, 3)))
    assert all(task.accuracy(task.direction() + 0.02 * w) < best for w in rng.standard_normal((50, 3)))


def test_one_dimension_and_a_hundred_thousand():
    one = GaussianTask(np.array([0.5]), np.array([[2.0]]))
    assert one.accuracy() == pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2.0) / math.sqrt(2))), rel=1e-14)
    dim = 100_000
    spectrum = np.geomspace(1e-6, 1e6, dim)
    big = GaussianTask(np.sqrt(spectrum) * 2 / math.sqrt(dim), spectrum)
    # A dense matrix would be 80 GB; the Mahalanobis length 2 gives Phi(2).
    assert big.accuracy() == pytest.approx(0.9772498680518208, rel=1e-12)
    x, _ = big.sample(3, 0)
    assert x.shape == (3, dim) and np.isfinite(big.nll(x)).all()


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 4), eps=st.sampled_from([1e-3, 0.3, 2.0, 50.0]))
def test_the_worst_move_is_a_move_of_length_eps_and_no_other_is_worse(seed, dim, eps):
    rng = np.random.default_rng(seed)
    spectrum, v = np.exp(rng.uniform(-3, 3, dim)), rng.standard_normal((5, dim))
    delta = worst_move(v, spectrum, eps)
    np.testing.assert_allclose(np.linalg.norm(delta, axis=1), eps, rtol=1e-12)
    value = ((v + delta) ** 2 / spectrum).sum(1)
    others = rng.standard_normal((2000, 1, dim))
    others *= eps / np.linalg.norm(others, axis=2, keepdims=True)
    assert (((v + others) ** 2 / spectrum).sum(2) <= value * (1 + 1e-12)).all()
    near = delta + 1e-3 * eps * rng.standard_normal((200, 1, dim))
    near *= eps / np.linalg.norm(near, axis=2, keepdims=True)
    assert (((v + near) ** 2 / spectrum).sum(2) <= value * (1 + 1e-12)).all()


def test_the_worst_move_in_the_hard_case():
    # No part of v along the smallest variance, and the rest too short to use up eps: the move turns to that axis.
    delta = worst_move(np.array([[1.0, 0.0]]), np.array([4.0, 1.0]), 2.0)
    np.testing.assert_allclose(np.linalg.norm(delta), 2.0)
    np.testing.assert_allclose(delta[0, 0], 1 / 3)  # lambda = 1: delta_1 = v_1 / (lambda s_1 - 1)
    np.testing.assert_allclose(worst_move(np.zeros((1, 2)), np.array([4.0, 1.0]), 2.0), [[0.0, 2.0]])
    assert (worst_move(np.ones((1, 2)), np.ones(2), 0.0) == 0).all()
