"""Theorem 2: the parameters that robust maximum likelihood learns, in closed form up to one scalar root."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from . import _checks
from .gaussian import GaussianTask
from .trust_region import moved_moments


@dataclass(frozen=True, eq=False)
class RobustParameters:
    """The parameters that robust maximum likelihood learns: the true mean and S_r >= S* (Theorem 2).

    Attributes:
        task: the data.
        eps: the L2 radius.
        lam: the multiplier lambda (infinity at eps = 0).
        variances: the spectrum of S_r [d], in the order of ``task.variances``.
    """

    task: GaussianTask
    eps: float
    lam: float
    variances: np.ndarray

    @property
    def learned(self) -> GaussianTask:
        """N(mean*, S_r) as a task: its classifier is the robust classifier."""
        return self.task.with_variances(self.variances)

    @property
    def adversary(self) -> np.ndarray:
        """The spectrum of the adversary's map M = (lambda S_r - I)^-1 [d] (Lemma 2): delta = M (x - mean)."""
        if self.eps == 0:
            return np.zeros_like(self.variances)
        # lambda S_r - 1 = lambda sqrt(S_r S*), see docs/theory.md; for large lambda the difference would cancel.
        return 1 / self.lam / np.sqrt(self.variances) / np.sqrt(self.task.variances)


def robust_parameters(task: GaussianTask, eps: float) -> RobustParameters:
    """The solution of the relaxed robust problem (14)/(20) at L2 radius eps: Theorem 2 and Lemma 4.

        mean_r = mean*,    S_r = S*/2 + I/lambda + sqrt(S*/lambda + S*^2/4) = (sqrt(1/lambda + S*/4) + sqrt(S*)/2)^2

    with lambda the unique solution of E||M v||^2 = eps^2, in t = 1/lambda and s = spectrum of S*:

        sum_i ( sqrt(t + s_i/4) - sqrt(s_i)/2 )^2 = eps^2.

    The left side grows from 0 to infinity with t, so lambda exists and is unique for every eps > 0; eps = 0 gives
    lambda = infinity and S_r = S*. Note eps^2: the paper's (27) prints eps (docs/theory.md).

    It handles spectra over hundreds of orders of magnitude and d = 10^5; the relative error of lambda is about 1e-15.

    Args:
        task: the data.
        eps: the L2 radius.

    Returns:
        The parameters.

    Raises:
        ValueError: eps is negative, NaN or infinite.
    """
    eps = _checks.real("eps", eps, minimum=0.0)
    if eps == 0:
        return RobustParameters(task, 0.0, math.inf, task.variances.copy())
    deviations = np.sqrt(task.variances)
    root_t = eps * math.exp(_log_root(deviations / eps))
    variances = (np.hypot(root_t, deviations / 2) + deviations / 2) ** 2
    return RobustParameters(task, eps, (1 / root_t) ** 2, variances)


def _log_root(r: np.ndarray) -> float:
    """The value log tau for which tau = sqrt(t)/eps solves sum_i (sqrt(tau^2 + r_i^2/4) - r_i/2)^2 = 1.

    r = sqrt(s)/eps.
    """
    half = r / 2

    def log_length(log_tau: float) -> float:
        tau = math.exp(log_tau)
        # The rationalised form tau^2 / (sqrt(tau^2 + r^2/4) + r/2): the difference itself loses all digits if
        # tau << r. Dividing before multiplying keeps tau^2 from overflowing.
        terms = tau * (tau / (np.hypot(tau, half) + half))
        largest = terms.max()
        return math.log(largest) + 0.5 * math.log(((terms / largest) ** 2).sum())

    # Each term is below tau and below tau^2 / r: two lower bounds, tight for large and for small eps.
    smallest = r.min()
    inverse = math.sqrt(((smallest / r) ** 2).sum())  # smallest * ||1/r||
    low = max(-0.5 * math.log(r.size), 0.5 * (math.log(smallest) - math.log(inverse)))
    at_low = log_length(low)
    if at_low >= 0:
        return low
    # d log(length) / d log(tau) lies in (1, 2], so the length reaches 1 before log tau has grown by -at_low.
    high = low - at_low * (1 + 1e-12) + 1e-12
    return brentq(log_length, low, high, xtol=1e-16, rtol=8.9e-16)


def relaxed_loss(task: GaussianTask, model: GaussianTask, eps: float) -> float:
    """The maximum over E||delta||^2 = eps^2 of E NLL(x + delta) under ``model``: the loss that Theorem 2 minimises.

    x ~ N(mean*, S*), and delta is any function of x. The maximiser is linear, (lambda S - I)^-1 (x - mean) with one
    lambda for all x (Lemma 2). lambda is found numerically here, from the model's own spectrum, without Theorem 2's
    solution.

    Args:
        task: the data.
        model: the model.
        eps: the L2 radius.

    Returns:
        The loss.
    """
    eps = _checks.real("eps", eps, minimum=0.0)
    moved = moved_moments(task.moments_about(model), model.variances, eps)[0]
    log_determinant = np.log(model.variances).sum()
    return float(0.5 * ((moved / model.variances).sum() + log_determinant + task.dim * math.log(2 * math.pi)))


@dataclass(frozen=True)
class Bounds:
    """Bounds on the solution of Theorem 2.

    Attributes:
        lower: lower <= lambda.
        upper: lambda <= upper.
        trace: tr S_r <= trace.
    """

    lower: float
    upper: float
    trace: float


def paper_bounds(parameters: RobustParameters) -> Bounds:
    """The bounds in the proof of Theorem 2, (29) and after, with e = eps^2 in place of the printed eps.

        d / tr S_r (1 + sqrt(d s*_min / e)) <= lambda <= (sqrt(||S*||_F d / e) + 1) / s_r,min
        tr S_r <= 2 (e + tr S*)

    They use S_r, so they need the root first; :func:`prior_bounds` needs only S*.

    Args:
        parameters: the solution.

    Returns:
        The bounds.

    Raises:
        ValueError: eps = 0.
    """
    eps = _checks.real("eps", parameters.eps, minimum=0.0, strict=True)
    spectrum, learned = parameters.task.variances, parameters.variances
    dim = spectrum.size
    lower = dim / learned.sum() * (1 + math.sqrt(dim * spectrum.min()) / eps)
    frobenius = spectrum.max() * math.sqrt(((spectrum / spectrum.max()) ** 2).sum())
    upper = (math.sqrt(frobenius * dim) / eps + 1) / learned.min()
    return Bounds(float(lower), float(upper), float(2 * (eps**2 + spectrum.sum())))


def prior_bounds(task: GaussianTask, eps: float) -> Bounds:
    """Bounds on lambda from S* and eps alone (docs/theory.md has the two-line proofs).

        x^2 <= lambda <= min( sqrt(tr S*^-1) / eps, d / eps^2 ),    x = (sqrt(d^2 + 4 d^(3/2) T / eps) - d) / (2 T),

    with T = tr sqrt(S*). The upper bound is exact in both limits: lambda ~ sqrt(tr S*^-1)/eps for eps -> 0 and lambda ~
    d/eps^2 for eps -> infinity; the lower bound in the second, and in the first if S* is isotropic.

    Args:
        task: the data.
        eps: the L2 radius.

    Returns:
        The bounds.
    """
    eps = _checks.real("eps", eps, minimum=0.0, strict=True)
    spectrum = task.variances
    dim, roots = task.dim, float(np.sqrt(spectrum).sum())
    # (sqrt(d^2 + c) - d) / (2T) in rationalised form, c = 4 d^1.5 T / eps.
    x = 2 * dim**1.5 / eps / (math.sqrt(dim**2 + 4 * dim**1.5 * roots / eps) + dim)
    upper = min(math.sqrt((1 / spectrum).sum()) / eps, dim / eps**2)
    # From S_r <= (sqrt(t) + sqrt(s))^2 at the lower bound of lambda.
    trace = float(((1 / x + np.sqrt(spectrum)) ** 2).sum())
    return Bounds(float(x**2), float(upper), trace)
