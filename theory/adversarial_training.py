"""Adversarial training of the Gaussian model (E.3.4): descent on (T, m) = (S^-1, S^-1 mean), inner maximisation.

For any fixed perturbation delta(x) the loss E NLL(x + delta(x)) is convex in (T, m) (Lemma 3). The maximum over
perturbations that do not depend on (T, m) is therefore convex too, its gradient is the gradient at the maximiser
(Danskin), and descent converges to the unique minimum: Theta_r of Theorem 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import _checks
from .gaussian import GaussianTask
from .trust_region import moved_moments

# Training keeps d x d matrices and decomposes one per step.
MAX_DIM = 256
CONSTRAINTS = ("expectation", "per-sample")

Objective = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Trained:
    """The end of a descent.

    Attributes:
        mean: [d].
        covariance: [d, d].
        losses: [steps + 1].
        converged: whether the gradient vanished.
    """

    mean: np.ndarray
    covariance: np.ndarray
    losses: np.ndarray
    converged: bool


def train_population(
    task: GaussianTask,
    eps: float,
    *,
    natural: bool = True,
    steps: int = 2000,
    tolerance: float = 1e-8,
    start: GaussianTask | None = None,
) -> Trained:
    """Adversarial training with population gradients: no samples; the inner maximum and its expectation are exact.

    Each step solves the inner problem for the current model, delta(x) = (lambda S - I)^-1 (x - mean) with E||delta||^2
    = eps^2, and descends along

        dL/dT = (E z z^T - mean mean^T - S) / 2,    dL/dm = mean - E z,    z = x + delta(x),

    with T a full symmetric matrix (the paper restricts it to a diagonal one).

    Args:
        task: the data.
        eps: the L2 radius.
        natural: whether to descend in the model's own metric, which copes with condition numbers of 1e8; False for the
            plain gradient of E.3.4, with the same limit.
        steps: the largest number of steps.
        tolerance: on the norm of the gradient.
        start: the first model; by default mean 0 and tr S*/d times the identity.

    Returns:
        The trained model.

    Raises:
        ValueError: d > 256.
    """
    eps = _checks.real("eps", eps, minimum=0.0)
    data = task.matrix()

    def objective(precision, m):
        values, basis = np.linalg.eigh(precision)
        if values[0] <= 0:
            return math.inf, precision, m
        variances = 1 / values
        mean = basis @ (variances * (basis.T @ m))
        shift = task.mean - mean
        moments = data + np.outer(shift, shift)  # E v v^T with v = x - mean
        along = np.einsum("ji,jk,ki->i", basis, moments, basis)
        moved = moved_moments(along, variances, eps)[0]
        stretch = (basis * np.sqrt(moved / along)) @ basis.T  # I + M
        drift = stretch @ shift
        cross = np.outer(mean, drift)
        spread = stretch @ moments @ stretch + cross + cross.T + np.outer(mean, mean)
        loss = 0.5 * ((moved * values).sum() - np.log(values).sum() + task.dim * math.log(2 * math.pi))
        gradient = (spread - np.outer(mean, mean) - (basis * variances) @ basis.T) / 2
        return float(loss), gradient, -drift

    return _descend(objective, *_start(task, start), steps, tolerance, natural)


def train_on_samples(
    x: np.ndarray,
    eps: float,
    *,
    constraint: str = "expectation",
    natural: bool = True,
    steps: int = 300,
    inner_steps: int = 200,
    tolerance: float = 1e-6,
    start: GaussianTask | None = None,
) -> Trained:
    """Adversarial training on samples of one class, as in E.3.4: projected gradient ascent inside, descent outside.

    The inner step is x + delta <- project_l2(x + delta + a grad_x NLL, x, radius), with advfeat's own projection,
    warm-started from the last outer step, until it converges or reaches ``inner_steps``. The outer gradient is
    automatic differentiation of the NLL at x + delta. Nothing from Theorem 2 is used.

    Args:
        x: samples [n, d].
        eps: the L2 radius.
        constraint: "expectation" puts the whole sample into one ball of radius eps sqrt(n), mean ||delta||^2 <= eps^2,
            the relaxed problem (20), which converges to :func:`robust_parameters` of the sample mean and covariance.
            "per-sample" gives each sample its own ball of radius eps, (11)/(15), which converges to the solution of the
            exact problem.
        natural: as in :func:`train_population`.
        steps: the largest number of outer steps.
        inner_steps: the largest number of inner steps.
        tolerance: on the norm of the gradient.
        start: as in :func:`train_population`.

    Returns:
        The trained model.

    Raises:
        ValueError: there are fewer than d + 1 samples (a singular covariance), or d > 256.
    """
    import torch

    from advfeat import ops

    eps = _checks.real("eps", eps, minimum=0.0)
    _checks.choice("constraint", constraint, CONSTRAINTS)
    inner_steps = _checks.integer("inner_steps", inner_steps, minimum=1)
    x = _checks.array("x", x, "[n, d]")
    if x.ndim != 2 or x.shape[0] <= x.shape[1]:
        raise ValueError(f"x should be [n, d] with n > d samples, got shape {x.shape}")
    n, dim = x.shape
    sample = GaussianTask(x.mean(0), np.atleast_2d(np.cov(x.T, bias=True)))

    points = torch.from_numpy(x)
    rows = (1, n * dim) if constraint == "expectation" else (n, dim)
    radius = eps * math.sqrt(n) if constraint == "expectation" else eps
    moved = points.clone()

    def ascend(precision, mean, step_size):
        nonlocal moved
        for _ in range(inner_steps):
            uphill = (moved - mean) @ precision  # grad_x NLL(x + delta)
            trial = (moved + step_size * uphill).reshape(rows)
            following = ops.project_l2(trial, points.reshape(rows), radius, -math.inf, math.inf).reshape(n, dim)
            change = float((following - moved).norm())
            moved = following
            if change <= 1e-11 * radius * math.sqrt(n):
                return

    def objective(precision, m):
        values = np.linalg.eigvalsh(precision)
        if values[0] <= 0:
            return math.inf, precision, m
        t = torch.from_numpy(precision.copy()).requires_grad_()
        linear = torch.from_numpy(m.copy()).requires_grad_()
        with torch.no_grad():
            # Projection onto a sphere discards the length, so a long step is a power iteration and cannot overshoot.
            ascend(t, torch.linalg.solve(t, linear), 1e3 / float(values[-1]))
        # NLL in (T, m), Lemma 3: z^T T z / 2 - m^T z + m^T T^-1 m / 2 - log det T / 2.
        quadratic = ((moved @ t) * moved).sum(1).mean() / 2 - moved.mean(0) @ linear
        loss = quadratic + linear @ torch.linalg.solve(t, linear) / 2 - torch.logdet(t) / 2
        loss.backward()
        gradient = t.grad.numpy()
        value = float(loss.detach()) + dim / 2 * math.log(2 * math.pi)
        return value, (gradient + gradient.T) / 2, linear.grad.numpy()

    return _descend(objective, *_start(sample, start), steps, tolerance, natural)


def _start(task: GaussianTask, start: GaussianTask | None) -> tuple[np.ndarray, np.ndarray, float]:
    """The first (T, m), and the mean variance of the data as the unit of squared length."""
    if task.dim > MAX_DIM:
        raise ValueError(f"training keeps d x d matrices: d should be <= {MAX_DIM}, got {task.dim}")
    unit = float(task.variances.mean())
    if start is None:
        start = GaussianTask(np.zeros(task.dim), np.full(task.dim, unit))
    if start.dim != task.dim:
        raise ValueError(f"start should have the size of the data, {task.dim}, got {start.dim}")
    return np.linalg.inv(start.matrix()), start.direction(), unit


def _descend(
    objective: Objective,
    t: np.ndarray,
    m: np.ndarray,
    unit: float,
    steps: int,
    tolerance: float,
    natural: bool,
) -> Trained:
    """Gradient descent with Barzilai-Borwein step sizes, halved until the loss falls.

    It stops at |gradient| <= tolerance. With ``natural`` the gradient (G, g) in (T, m) is taken in the metric of the
    model itself, the Hessian of (m^T T^-1 m - log det T) / 2,

        |(dT, dm)|^2 = tr(S dT S dT) / 2 + u^T S u,   u = dm - dT mean,

    so dT = T (2G + g mean^T + mean g^T) T and u = T g: the path then depends neither on the units nor, nearly, on the
    condition number. The plain gradient runs on (unit T, sqrt(unit) m). |gradient| is taken in the same metric, and is
    also unit-free.
    """
    steps = _checks.integer("steps", steps, minimum=1)
    tolerance = _checks.real("tolerance", tolerance, minimum=0.0)

    def steepest(gradient_t, gradient_m):
        if natural:
            mean = np.linalg.solve(t, m)
            cross = np.outer(gradient_m, mean)
            step_t = t @ (2 * gradient_t + cross + cross.T) @ t
            return step_t, t @ gradient_m + step_t @ mean
        return gradient_t / unit**2, gradient_m / unit

    loss, gradient_t, gradient_m = objective(t, m)
    losses, converged, size = [loss], False, None
    for _ in range(steps):
        step_t, step_m = steepest(gradient_t, gradient_m)
        slope = float((step_t * gradient_t).sum() + step_m @ gradient_m)
        if math.sqrt(max(slope, 0.0)) <= tolerance:
            converged = True
            break
        if size is None:
            size = 1.0 if natural else 1 / max(1.0, math.sqrt(slope))
        # Nonmonotone (Grippo et al.): a Barzilai-Borwein step may raise the loss temporarily. The last term allows for
        # rounding.
        reference = max(losses[-8:]) + 1e-14 * abs(losses[-1])
        for _ in range(60):
            next_t, next_m = t - size * step_t, m - size * step_m
            next_loss, next_gradient_t, next_gradient_m = objective((next_t + next_t.T) / 2, next_m)
            if next_loss <= reference - 1e-4 * size * slope:
                break
            size /= 2
        else:
            break  # no decrease left above rounding
        fall = (step_t * (next_gradient_t - gradient_t)).sum() + step_m @ (next_gradient_m - gradient_m)
        t, m = (next_t + next_t.T) / 2, next_m
        gradient_t, gradient_m = next_gradient_t, next_gradient_m
        losses.append(next_loss)
        if fall < 0:  # the step size of Barzilai and Borwein, |move|^2 / (move . change of gradient)
            size = size * slope / -float(fall)
    covariance = np.linalg.inv(t)
    return Trained(covariance @ m, (covariance + covariance.T) / 2, np.array(losses), converged)
