"""The inner maximisation: the worst move of bounded length against a Gaussian likelihood (Lemmas 1 and 2)."""

from __future__ import annotations

import numpy as np

from . import _checks


def inner_multiplier(moments: np.ndarray, model_variances: np.ndarray, eps: float) -> np.ndarray:
    """The excess u > 0 of the multiplier lambda = (1 + u) / s_min of Lemmas 1 and 2, for each row.

    The maximum over ||delta|| = eps of sum_i (v_i + delta_i)^2 / s_i is attained at delta_i = v_i / (lambda s_i - 1),
    where lambda >= 1 / s_min solves

        sum_i a_i / (lambda s_i - 1)^2 = eps^2,        a_i = v_i^2.

    The excess is returned, not lambda: lambda s_i - 1 = (s_i - s_min) / s_min + u s_i / s_min has no cancellation.

    Args:
        moments: a [n, d], >= 0 (v_i^2 with one sample per row; or a single row of E v_i^2, the relaxed problem).
        model_variances: s [d], positive.
        eps: the L2 radius, positive.

    Returns:
        u [n]. u = 0 marks the "hard case" in which v has no component along the smallest variance (probability zero for
        a Gaussian) and the remainder of eps^2 is spent there.
    """
    moments = np.atleast_2d(np.asarray(moments, dtype=np.float64)) / eps**2
    gap, ratio, at_minimum = _relative_spectrum(model_variances)
    bottom = moments[:, at_minimum].sum(1)
    rest = moments[:, ~at_minimum]
    # No single term may exceed the sum, which bounds u from below by d + 1 one-term problems.
    u = np.sqrt(bottom)
    if rest.size:
        u = np.maximum(u, ((np.sqrt(rest) - gap[~at_minimum]) / ratio[~at_minimum]).max(1))
    u = np.maximum(u, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        length_at_zero = (rest / gap[~at_minimum] ** 2).sum(1)
    hard = (bottom == 0) & (length_at_zero <= 1)
    # 1 / ||delta(u)|| is increasing and concave, so Newton's method from the left never overshoots and needs no
    # bracket. The loop ends when no row moves any more; near-linearity makes that a few iterations.
    for _ in range(100):
        reach = gap + ratio * u[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(moments > 0, moments / reach**2, 0.0)
            squared = terms.sum(1)
            slope = np.where(moments > 0, terms * ratio / reach, 0.0).sum(1)
            step = squared * (np.sqrt(squared) - 1) / slope
        step = np.where(hard | ~np.isfinite(step), 0.0, step)
        u = np.where(hard, 0.0, np.maximum(u + step, 0.0))
        if (np.abs(step) <= 1e-11 * u).all():  # quadratic convergence: the remaining error is far below rounding
            break
    return u


def moved_moments(moments: np.ndarray, model_variances: np.ndarray, eps: float) -> np.ndarray:
    """The moments (v_i + delta_i)^2 at the worst delta of length eps.

    (v_i + delta_i)^2 = a_i (lambda s_i / (lambda s_i - 1))^2 with lambda from :func:`inner_multiplier`. On a single row
    of second moments E v_i^2 the same formula gives E (v_i + (M v)_i)^2 of the relaxed problem.

    Args:
        moments: a_i = v_i^2, [n, d].
        model_variances: [d].
        eps: the L2 radius; 0 returns the moments.

    Returns:
        [n, d].
    """
    moments = np.atleast_2d(np.asarray(moments, dtype=np.float64))
    if eps == 0:
        return moments.copy()
    gap, ratio, at_minimum = _relative_spectrum(model_variances)
    u = inner_multiplier(moments, model_variances, eps)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where(moments > 0, moments * (ratio * (1 + u) / (gap + ratio * u)) ** 2, 0.0)
    hard = u[:, 0] == 0
    if hard.any():
        spent = (moments[hard][:, ~at_minimum] / gap[~at_minimum] ** 2).sum(1)
        first = int(np.flatnonzero(at_minimum)[0])
        moved[hard, first] = np.maximum(eps**2 - spent, 0.0)
    return moved


def worst_move(v: np.ndarray, model_variances: np.ndarray, eps: float) -> np.ndarray:
    """The delta of length eps that raise sum_i (v_i + delta_i)^2 / s_i the most (Lemma 1).

    Args:
        v: [n, d].
        model_variances: s [d].
        eps: the L2 radius.

    Returns:
        delta [n, d].
    """
    v = np.atleast_2d(_checks.points("v", v, np.size(model_variances)))
    spectrum = _checks.variances("model_variances", model_variances)
    eps = _checks.real("eps", eps, minimum=0.0)
    if eps == 0:
        return np.zeros_like(v)
    gap, ratio, at_minimum = _relative_spectrum(spectrum)
    u = inner_multiplier(v**2, spectrum, eps)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        delta = np.where(v != 0, v / (gap + ratio * u), 0.0)
    hard = u[:, 0] == 0
    if hard.any():
        first = int(np.flatnonzero(at_minimum)[0])
        delta[hard, first] = np.sqrt(np.maximum(eps**2 - (delta[hard] ** 2).sum(1), 0.0))
    return delta


def _relative_spectrum(model_variances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(s - s_min) / s_min, s / s_min, and the positions of the minimum."""
    smallest = model_variances.min()
    return (model_variances - smallest) / smallest, model_variances / smallest, model_variances == smallest
