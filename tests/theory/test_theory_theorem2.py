"""Theorem 2: lambda against high precision, S_r against numerical minimisation, its laws, bounds and limits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from advfeat.theory import GaussianTask, paper_bounds, prior_bounds, relaxed_loss, robust_parameters

NOTES = GaussianTask(np.array([0.4, -0.2, 0.1]), np.array([3.0, 0.7, 0.2]))

spectra = st.lists(st.floats(-12.0, 12.0), min_size=1, max_size=7).map(lambda logs: 10.0 ** np.array(logs))
radii = st.floats(-10.0, 10.0).map(lambda log: 10.0**log)


def centred(spectrum):
    return GaussianTask(np.zeros(len(spectrum)), spectrum)


def rotation(dim, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def lambda_by_bisection(spectrum, eps) -> float:
    """lambda from the constraint as printed in (27), E||Mv||^2 = sum s_i / (lambda S_i - 1)^2 = eps^2, S by Lemma 4.

    Bisection in 60-digit decimals: another form of the equation, another variable, another method than the product's.
    """
    import decimal

    with decimal.localcontext() as context:
        context.prec = 60
        d = decimal.Decimal
        s = [d(float(value)) for value in spectrum]
        target = d(float(eps)) ** 2

        def length(lam):
            total = d(0)
            for value in s:
                learned = value / 2 + 1 / lam + (value / lam + value * value / 4).sqrt()
                total += value / (lam * learned - 1) ** 2
            return total

        low, high = d("1e-60"), d("1e60")
        for _ in range(400):
            middle = (low * high).sqrt()
            if length(middle) > target:
                low = middle
            else:
                high = middle
        return float(low)


def test_the_test_vector_of_the_notes():
    solved = robust_parameters(NOTES, 0.8)
    assert solved.lam == pytest.approx(1.66748, abs=1e-5)
    np.testing.assert_allclose(solved.variances, [4.11195, 1.68612, 1.06018], atol=1e-5)
    np.testing.assert_array_equal(solved.learned.mean, NOTES.mean)


@given(spectrum=spectra, eps=radii)
def test_lambda_to_twelve_digits_against_bisection(spectrum, eps):
    assert robust_parameters(centred(spectrum), eps).lam == pytest.approx(lambda_by_bisection(spectrum, eps), rel=1e-12)


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 5), log_eps=st.floats(-1.5, 1.5))
def test_s_r_against_numerical_minimisation_of_the_robust_loss(seed, dim, log_eps):
    rng = np.random.default_rng(seed)
    task = GaussianTask(rng.standard_normal(dim), np.exp(rng.uniform(-1.5, 1.5, dim)))
    eps = 10.0**log_eps
    solved = robust_parameters(task, eps)

    def loss(parameters):
        return relaxed_loss(task, GaussianTask(parameters[dim:], np.exp(parameters[:dim])), eps)

    start = np.concatenate([np.log(task.variances) + rng.normal(0, 0.3, dim), task.mean + rng.normal(0, 0.3, dim)])
    found = minimize(loss, start, method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(np.exp(found.x[:dim]), solved.variances, rtol=2e-4)
    np.testing.assert_allclose(found.x[dim:], task.mean, atol=2e-3 * math.sqrt(solved.variances.max()))
    assert relaxed_loss(task, solved.learned, eps) <= found.fun + 1e-9


@given(seed=st.integers(0, 10**6), eps=st.sampled_from([0.1, 1.0, 5.0]))
def test_no_full_covariance_and_no_other_mean_does_better(seed, eps):
    # The paper restricts the learned covariance to the eigenbasis of the data; the minimum is global without that.
    rng = np.random.default_rng(seed)
    q = rotation(3, seed)
    task = GaussianTask(rng.standard_normal(3), (q * np.exp(rng.uniform(-1, 1, 3))) @ q.T)
    learned = robust_parameters(task, eps).learned
    least = relaxed_loss(task, learned, eps)
    for size in (1e-2, 0.3):
        noise = rng.standard_normal((3, 3)) * size
        root = np.linalg.cholesky(learned.matrix()) @ (np.eye(3) + noise)
        moved = GaussianTask(task.mean + size * rng.standard_normal(3), root @ root.T)
        assert relaxed_loss(task, moved, eps) >= least - 1e-12


def test_the_relaxed_loss_is_a_maximum_over_functions_of_x():
    # Random perturbations (affine in x, so that they are easy to draw) with E||delta||^2 = eps^2 do no better.
    rng = np.random.default_rng(5)
    model = GaussianTask(np.array([0.5, 0.0, -0.5]), np.array([1.0, 2.0, 0.4]))
    x = NOTES.mean + rng.standard_normal((20_000, 3)) * np.sqrt(NOTES.variances)
    bound = relaxed_loss(NOTES, model, 0.7)
    best = -math.inf
    for _ in range(200):
        delta = x @ rng.standard_normal((3, 3)) + rng.standard_normal(3)
        delta *= 0.7 / math.sqrt((delta**2).sum(1).mean())
        best = max(best, model.nll(x + delta).mean())
    assert best < bound + 0.02
    # ... and the linear map of Lemma 2 reaches it, at the learned parameters.
    solved = robust_parameters(NOTES, 0.7)
    moved = x + (x - NOTES.mean) * solved.adversary
    value = solved.learned.nll(moved)
    error = value.std() / math.sqrt(len(x))
    assert abs(value.mean() - relaxed_loss(NOTES, solved.learned, 0.7)) < 4.5 * error


@given(spectrum=spectra, eps=radii)
def test_the_constraint_the_adversary_and_lemma_4(spectrum, eps):
    solved = robust_parameters(centred(spectrum), eps)
    assert (solved.adversary**2 * spectrum).sum() == pytest.approx(eps**2, rel=1e-11)
    t = 1 / solved.lam
    lemma4 = spectrum / 2 + t + np.sqrt(spectrum * t + spectrum**2 / 4)
    np.testing.assert_allclose(solved.variances, lemma4, rtol=1e-11)
    # (25): S*^-1 = S^-1 (M + I)^2
    np.testing.assert_allclose((1 + solved.adversary) ** 2 * spectrum, solved.variances, rtol=1e-10)


@given(spectrum=spectra, eps=radii)
def test_bounds(spectrum, eps):
    task = centred(spectrum)
    solved = robust_parameters(task, eps)
    slack = 1 + 1e-11
    assert (solved.variances >= spectrum / slack).all()  # S_r >= S*
    assert solved.lam * solved.variances.min() > 1 / slack  # the branch on which the inner problem is concave
    for bounds in (paper_bounds(solved), prior_bounds(task, eps)):
        assert bounds.lower <= solved.lam * slack
        assert solved.lam <= bounds.upper * slack
        assert solved.variances.sum() <= bounds.trace * slack


@given(spectrum=spectra, eps=radii, factor=st.floats(1.01, 100.0))
def test_monotone_in_eps(spectrum, eps, factor):
    task = centred(spectrum)
    small, large = robust_parameters(task, eps), robust_parameters(task, factor * eps)
    assert large.lam < small.lam
    assert (large.variances >= small.variances * (1 - 1e-14)).all()
    # Every ratio of two variances shrinks: the condition number is one of them.
    order = np.argsort(spectrum)
    for a, b in ((spectrum, small.variances), (small.variances, large.variances)):
        ratio = (b / a)[order]
        assert (np.diff(ratio) <= 1e-12 * ratio[:-1]).all()
        assert (np.diff(b[order]) >= -1e-12 * b[order][:-1]).all()


@given(spectrum=spectra, eps=radii, exponent=st.floats(-60, 60))
def test_scaling_law(spectrum, eps, exponent):
    # x -> c x takes s -> c^2 s, eps -> c eps, lambda -> lambda / c^2, S_r -> c^2 S_r.
    c = 10.0**exponent
    plain, scaled = robust_parameters(centred(spectrum), eps), robust_parameters(centred(c**2 * spectrum), c * eps)
    assert scaled.lam * c**2 == pytest.approx(plain.lam, rel=1e-11)
    np.testing.assert_allclose(scaled.variances / c**2, plain.variances, rtol=1e-11)


@given(seed=st.integers(0, 10**6), dim=st.integers(2, 6), eps=st.floats(0.01, 10.0))
def test_rotation_equivariance(seed, dim, eps):
    rng = np.random.default_rng(seed)
    spectrum, mean, q = np.exp(rng.uniform(-2, 2, dim)), rng.standard_normal(dim), rotation(dim, seed)
    plain = robust_parameters(GaussianTask(mean, spectrum), eps)
    turned = robust_parameters(GaussianTask(q @ mean, (q * spectrum) @ q.T), eps)
    assert turned.lam == pytest.approx(plain.lam, rel=1e-9)
    np.testing.assert_allclose(turned.learned.matrix(), (q * plain.variances) @ q.T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(turned.learned.mean, q @ mean)
    np.testing.assert_allclose(turned.learned.direction(), q @ plain.learned.direction(), rtol=1e-7, atol=1e-8)


@given(spectrum=st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=5).map(lambda logs: 10.0 ** np.array(logs)))
def test_limits(spectrum):
    task = centred(spectrum)
    unit = math.sqrt(spectrum.min())
    tiny, huge = 1e-9 * unit, 1e9 * math.sqrt(spectrum.max())
    assert robust_parameters(task, tiny).lam == pytest.approx(math.sqrt((1 / spectrum).sum()) / tiny, rel=1e-6)
    np.testing.assert_allclose(robust_parameters(task, tiny).variances, spectrum, rtol=1e-6)
    assert robust_parameters(task, huge).lam == pytest.approx(len(spectrum) / huge**2, rel=1e-6)
    np.testing.assert_allclose(robust_parameters(task, huge).variances, huge**2 / len(spectrum), rtol=1e-6)
    zero = robust_parameters(task, 0.0)
    assert zero.lam == math.inf and (zero.adversary == 0).all()
    np.testing.assert_array_equal(zero.variances, spectrum)


@given(value=st.floats(-5, 5), dim=st.integers(1, 50), eps=radii)
def test_isotropic_closed_form(value, dim, eps):
    # One equation, solvable by hand: sqrt(t + s/4) - sqrt(s)/2 = eps/sqrt(d), so t = e^2 + e sqrt(s), e = eps/sqrt(d).
    s = 10.0**value
    e = eps / math.sqrt(dim)
    solved = robust_parameters(GaussianTask(np.zeros(dim), s), eps)
    assert 1 / solved.lam == pytest.approx(e**2 + e * math.sqrt(s), rel=1e-12)
    np.testing.assert_allclose(solved.variances, (math.sqrt(s) + e) ** 2, rtol=1e-12)


def test_exact_rational_instance():
    # s = 1, d = 1, eps = 1: t = 2 and S_r = 4, lambda = 1/2, all rational.
    solved = robust_parameters(centred(np.array([1.0])), 1.0)
    assert Fraction(solved.lam).limit_denominator(1000) == Fraction(1, 2)
    assert solved.variances[0] == pytest.approx(4.0, rel=1e-15)


@given(seed=st.integers(0, 100))
def test_extreme_spectra_stay_finite(seed):
    rng = np.random.default_rng(seed)
    spectrum = 10.0 ** rng.uniform(-140, 140, 6)
    eps = 10.0 ** rng.uniform(-60, 60)
    solved = robust_parameters(centred(spectrum), eps)
    assert 0 < solved.lam < math.inf and np.isfinite(solved.variances).all()
    lengths = solved.adversary * np.sqrt(spectrum) / eps
    assert (lengths**2).sum() == pytest.approx(1.0, rel=1e-11)


def test_a_hundred_thousand_dimensions():
    rng = np.random.default_rng(0)
    spectrum = 10.0 ** rng.uniform(-8, 8, 100_000)
    solved = robust_parameters(centred(spectrum), 3.0)
    assert (solved.adversary**2 * spectrum).sum() == pytest.approx(9.0, rel=1e-12)
    # The same spectrum a hundred times over at ten times the radius has the same lambda.
    part = spectrum[:1000]
    once, often = robust_parameters(centred(part), 3.0), robust_parameters(centred(np.tile(part, 100)), 30.0)
    assert often.lam == pytest.approx(once.lam, rel=1e-12)


def test_robust_training_buys_robust_accuracy_here_and_costs_clean_accuracy():
    task = GaussianTask(np.array([1.0, 0.5, 0.3]), np.array([1.0, 0.2, 0.01]))
    robust = robust_parameters(task, 0.5).learned.direction()
    assert task.accuracy(robust) < task.accuracy()
    assert task.accuracy(robust, eps=0.5) > task.accuracy(eps=0.5) + 0.1


def test_bad_arguments_are_named():
    for eps, message in ((-0.1, "eps should be >= 0, got -0.1"), (math.nan, "finite, got nan"), (math.inf, "got inf")):
        with pytest.raises(ValueError, match=message):
            robust_parameters(NOTES, eps)
    with pytest.raises(ValueError, match="eps should be > 0, got 0"):
        paper_bounds(robust_parameters(NOTES, 0.0))
    with pytest.raises(ValueError, match="eps should be > 0, got 0"):
        prior_bounds(NOTES, 0.0)
    with pytest.raises(ValueError, match="model should have the size of task, 3, got 2"):
        relaxed_loss(NOTES, GaussianTask(np.zeros(2), 1.0), 0.1)


@given(eps=radii)
def test_one_dimension_by_hand(eps):
    # d = 1: the adversary widens the standard deviation by eps, so S_r = (sqrt(s) + eps)^2.
    assert robust_parameters(centred(np.array([4.0])), eps).variances[0] == pytest.approx((2 + eps) ** 2, rel=1e-13)
