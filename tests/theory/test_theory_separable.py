"""Figure 14: margins against brute force, and what standard and robust training find on the separable ellipses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advfeat.theory import EllipsePair, hard_margin, standard_classifiers, train_logistic
from advfeat.theory.separable import DEFAULT_EPS, PAPER_DRAWING

PAIR = EllipsePair()


def test_the_default_pair_has_the_annotated_gaps():
    (c1, c2), (a1, a2) = PAIR.centre, PAIR.semi_axes
    assert c1 - a1 > DEFAULT_EPS
    assert c2 - a2 == pytest.approx(DEFAULT_EPS / 2)


def test_samples_fill_their_ellipses():
    x, y = PAIR.sample(50_000, 1)
    inside = ((y[:, None] * x - PAIR.centre) / PAIR.semi_axes) ** 2
    assert inside.sum(1).max() <= 1 + 1e-12
    # Uniform in a disc: the squared radius is uniform on [0, 1].
    assert inside.sum(1).mean() == pytest.approx(0.5, abs=0.01) and (inside.sum(1) < 0.25).mean() == pytest.approx(
        0.25, abs=0.01
    )


@given(
    angle=st.floats(-0.3, 1.8), b=st.floats(-0.1, 0.1), norm=st.sampled_from(["l2", "linf"]), scale=st.floats(0.1, 50)
)
def test_the_margin_against_brute_force(angle, b, norm, scale):
    w = scale * np.array([math.cos(angle), math.sin(angle)])
    around = np.linspace(0, 2 * math.pi, 20_001)
    border = np.stack([np.cos(around), np.sin(around)], axis=1) * PAIR.semi_axes
    scores = np.concatenate([(border + PAIR.centre) @ w + scale * b, -((border - PAIR.centre) @ w + scale * b)])
    # The nearest point of the line in each norm, coordinate by coordinate for L-inf.
    dual = np.linalg.norm(w) if norm == "l2" else np.abs(w).sum()
    assert PAIR.margin(w, scale * b, norm=norm) == pytest.approx(scores.min() / dual, abs=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("pair", [PAIR, PAPER_DRAWING, EllipsePair((1.0, 1.0), (0.5, 0.2))])
def test_no_random_classifier_beats_the_best_margin(pair, norm):
    best, w = pair.best_margin(norm=norm)
    assert pair.margin(w, norm=norm) == pytest.approx(best, abs=1e-12)
    rng = np.random.default_rng(0)
    assert (
        max(
            pair.margin(w, b, norm=norm)
            for w, b in zip(rng.standard_normal((3000, 2)), rng.normal(0, 0.05, 3000), strict=True)
        )
        <= best + 1e-9
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_standard_training_is_accurate_and_not_robust_and_robust_training_is_both(seed):
    x, y = PAIR.sample(1000, seed)
    for found in standard_classifiers(x, y):
        assert 0 < PAIR.margin(found.w, found.b) < DEFAULT_EPS, found.name
    robust = train_logistic(x, y, eps=DEFAULT_EPS)
    assert PAIR.margin(robust.w, robust.b) >= DEFAULT_EPS
    # It ignores x2 "despite its predictiveness": the boundary is vertical.
    assert abs(robust.w[1]) < 1e-3 * robust.w[0]
    # And no sample is lost at the largest perturbation, corner by corner of the L-inf ball.
    for corner in np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * DEFAULT_EPS:
        assert ((x + corner) @ robust.w + robust.b > 0).tolist() == (y > 0).tolist()


def test_the_adversarial_gradient_is_one_of_the_worst_case_loss():
    # One step from w by hand: finite differences of mean log(1 + exp(-(y (w x + b) - eps |w|_1))).
    x, y = PAIR.sample(200, 3)
    two = train_logistic(x, y, eps=0.1, steps=2, step_size=1.0)
    first = train_logistic(x, y, eps=0.1, steps=1, step_size=1.0)

    def loss(w, b):
        return np.log1p(np.exp(-(y * (x @ w + b) - 0.1 * np.abs(w).sum()))).mean()

    h = 1e-6
    gradient = [(loss(first.w + h * e, first.b) - loss(first.w - h * e, first.b)) / (2 * h) for e in np.eye(2)]
    # steps=1 takes a full first step; of two, both are full: the length falls over the second half only.
    np.testing.assert_allclose(two.w, first.w - np.array(gradient), rtol=1e-5)


def test_the_hard_margin_is_the_largest_l2_margin():
    x, y = PAIR.sample(300, 0)
    found = hard_margin(x, y)
    reached = (y * (x @ found.w + found.b)).min() / np.linalg.norm(found.w)
    rng = np.random.default_rng(1)
    for w, b in zip(rng.standard_normal((2000, 2)), rng.normal(0, 0.1, 2000), strict=True):
        assert (y * (x @ w + b)).min() / np.linalg.norm(w) <= reached + 1e-6
    with pytest.raises(ValueError, match="the sample should be linearly separable"):
        hard_margin(np.array([[0.0, 0], [1, 1], [0, 1], [1, 0]]), np.array([1.0, 1, -1, -1]))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="semi_axes should be > 0, got 0"):
        EllipsePair(semi_axes=(0.0, 0.1))
    with pytest.raises(ValueError, match=r"centre should be a vector \[2\], got shape \(3,\)"):
        EllipsePair(centre=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="w should not be zero"):
        PAIR.margin(np.zeros(2))
    with pytest.raises(ValueError, match="norm should be one of l2, linf, got 'l1'"):
        PAIR.best_margin(norm="l1")
    with pytest.raises(ValueError, match="eps should be >= 0, got -1"):
        train_logistic(*PAIR.sample(10), eps=-1.0)
