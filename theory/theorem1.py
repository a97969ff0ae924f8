"""Theorem 1: the gain of an adversary with penalty C against the maximum-likelihood Gaussian, exact and measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from . import _checks
from .gaussian import GaussianTask


@dataclass(frozen=True)
class Convention:
    """The objective over delta: weight * q(v + delta) - penalty * C ||delta||_2^2, with q(v) = v^T S^-1 v.

    Only penalty / weight affects delta.

    Attributes:
        weight: 1/2 for the NLL and 1 for twice the NLL ("constant factors discarded").
        penalty: the factor of C ||delta||_2^2.
    """

    weight: float
    penalty: float

    def strength(self, c: float) -> float:
        """The C of the printed formula: the same maximiser as q(v + delta) - strength ||delta||_2^2.

        Args:
            c: C in this convention.

        Returns:
            The C of the printed formula.
        """
        return c * self.penalty / self.weight


# The printed right-hand side holds literally only in "doubled". "nll" reads the statement with the loss that the paper
# defines; "lemma1" has the scaling of Lemma 1's multiplier: the printed maximiser, half of the printed value.
CONVENTIONS = {
    "doubled": Convention(weight=1.0, penalty=1.0),
    "nll": Convention(weight=0.5, penalty=1.0),
    "lemma1": Convention(weight=0.5, penalty=0.5),
}


def vulnerability(
    task: GaussianTask, c: float, *, convention: str = "doubled", model: GaussianTask | None = None
) -> float:
    """L_adv - L: the expected loss at the adversary's move minus the expected clean loss (Theorem 1).

    The adversary maximises loss(x + delta) - penalty(delta); L_adv is the loss alone, without the penalty, at that
    delta. With M = (C' S - I)^-1 the move is delta = M (x - mean), and for the maximum-likelihood model (S = S*, mean =
    mean*)

        convention   loss                        penalty            C'    L_adv - L
        "doubled"    v^T S^-1 v (twice the NLL)  C ||delta||^2      C     tr[(I + M)^2] - d
        "nll"        NLL                         C ||delta||^2      2C    (tr[(I + M)^2] - d) / 2
        "lemma1"     NLL                         (C/2) ||delta||^2  C     (tr[(I + M)^2] - d) / 2

    For another ``model`` the trace becomes sum_i e_i / s_i ((C' s_i / (C' s_i - 1))^2 - 1), with s_i the model's
    variances and e_i = E (u_i^T (x - model mean))^2 along its eigenvectors.

    Args:
        task: the data.
        c: C, positive.
        convention: "doubled", "nll" or "lemma1".
        model: any mean and covariance; by default the maximum-likelihood model.

    Returns:
        L_adv - L.

    Raises:
        ValueError: unless C' > 1 / s_min of the model: at and below it the loss outgrows the penalty along the smallest
            variance, and the maximum is infinite (or not attained).
    """
    model = task if model is None else model
    moments = task.moments_about(model) / model.variances
    excess = _concavity(model, c, convention)
    # (c'/(c'-1))^2 - 1 = (2 e + 1) / e^2 with e = c' - 1 avoids cancellation when C is large.
    return float(CONVENTIONS[convention].weight * (moments * (2 * excess + 1) / excess**2).sum())


def penalised_vulnerability(
    task: GaussianTask, c: float, *, convention: str = "doubled", model: GaussianTask | None = None
) -> float:
    """The gain of the adversary's own objective, the loss minus the penalty: weight * tr[(C' S - I)^-1].

    It is the objective at delta less the clean loss. The formula holds for the maximum-likelihood model; otherwise it
    is sum_i e_i / s_i / (C' s_i - 1) times the weight. Its derivative in C is minus the expected penalty per unit of C.

    Args:
        task: as for :func:`vulnerability`.
        c: as for :func:`vulnerability`.
        convention: as for :func:`vulnerability`.
        model: as for :func:`vulnerability`.

    Returns:
        The gain of the objective.

    Raises:
        ValueError: as for :func:`vulnerability`.
    """
    model = task if model is None else model
    moments = task.moments_about(model) / model.variances
    excess = _concavity(model, c, convention)
    return float(CONVENTIONS[convention].weight * (moments / excess).sum())


def penalised_move(x: np.ndarray, model: GaussianTask, c: float, *, convention: str = "doubled") -> np.ndarray:
    """The adversary's move delta = (C' S - I)^-1 (x - mean) (printed in E.2 without the x - mean).

    Args:
        x: [..., d].
        model: the model.
        c: as for :func:`vulnerability`.
        convention: as for :func:`vulnerability`.

    Returns:
        delta [..., d].

    Raises:
        ValueError: as for :func:`vulnerability`.
    """
    excess = _concavity(model, c, convention)
    return model.from_eigenbasis(model.to_eigenbasis(np.asarray(x, dtype=np.float64) - model.mean) / excess)


def isotropic_minimum(dim: int, trace: float, c: float, *, convention: str = "doubled") -> float:
    """The smallest vulnerability over covariances of the given trace, attained only at (trace / d) I.

    sum_i (C s_i / (C s_i - 1))^2 - d is a sum of strictly convex functions of s_i > 1 / C, so Jensen's inequality
    applies.

    Args:
        dim: d.
        trace: the trace.
        c: as for :func:`vulnerability`.
        convention: as for :func:`vulnerability`.

    Returns:
        The smallest vulnerability.

    Raises:
        ValueError: as for :func:`vulnerability`.
    """
    dim = _checks.integer("dim", dim, minimum=1)
    trace = _checks.real("trace", trace, minimum=0.0, strict=True)
    return vulnerability(GaussianTask(np.zeros(dim), np.asarray(trace / dim)), c, convention=convention)


def vulnerability_by_optimiser(
    v: np.ndarray, model: GaussianTask, c: float, *, convention: str = "doubled"
) -> np.ndarray:
    """The loss gained on each displacement, with delta found by scipy (no closed form).

    An independent check of :func:`vulnerability`: BFGS on the objective as the theorem states it, from delta = 0.

    Args:
        v: displacements x - mean [n, d].
        model: the model.
        c: as for :func:`vulnerability`.
        convention: as for :func:`vulnerability`.

    Returns:
        [n].

    Raises:
        ValueError: as for :func:`vulnerability`.
    """
    _concavity(model, c, convention)
    rule = CONVENTIONS[convention]
    v = np.atleast_2d(_checks.points("v", v, model.dim))
    precision = np.linalg.inv(model.matrix())

    gained = np.empty(len(v))
    for row, centre in enumerate(v):

        def negative(delta, centre=centre):
            pull = precision @ (centre + delta)
            value = rule.weight * (centre + delta) @ pull - rule.penalty * c * delta @ delta
            return -value, -2 * (rule.weight * pull - rule.penalty * c * delta)

        delta = minimize(negative, np.zeros(model.dim), jac=True, method="BFGS", options={"gtol": 1e-9}).x
        after, before = centre + delta, centre
        gained[row] = rule.weight * (after @ precision @ after - before @ precision @ before)
    return gained


def cubature_points(task: GaussianTask) -> np.ndarray:
    """The d displacements sqrt(d s_i) u_i, whose equal-weight mean is exact for every quadratic form under N(0, S).

    Args:
        task: the task.

    Returns:
        [d, d].
    """
    points = np.diag(np.sqrt(task.dim * task.variances))
    return task.from_eigenbasis(points)


def vulnerability_by_sampling(
    task: GaussianTask, c: float, *, convention: str = "doubled", n: int = 100_000, seed: int = 0
) -> tuple[float, float]:
    """Monte Carlo estimate of L_adv - L: the increase of the NLL itself at x + delta over n samples.

    Args:
        task: as for :func:`vulnerability`.
        c: as for :func:`vulnerability`.
        convention: as for :func:`vulnerability`.
        n: the number of samples.
        seed: of the samples.

    Returns:
        The mean and its standard error.

    Raises:
        ValueError: as for :func:`vulnerability`.
    """
    _concavity(task, c, convention)
    n = _checks.integer("n", n, minimum=2)
    twice_weight = 2 * CONVENTIONS[convention].weight
    rng = np.random.default_rng(seed)
    chunk = max(1, min(n, 4_000_000 // task.dim))
    total = squares = 0.0
    for start in range(0, n, chunk):
        x, y = task.sample(min(chunk, n - start), rng)
        x = x * y[:, None]  # by symmetry all samples can be mapped to the class +1
        gained = twice_weight * (task.nll(x + penalised_move(x, task, c, convention=convention)) - task.nll(x))
        total += gained.sum()
        squares += (gained**2).sum()
    mean = total / n
    return float(mean), float(np.sqrt(max(squares / n - mean**2, 0.0) / (n - 1)))


def _concavity(model: GaussianTask, c: float, convention: str) -> np.ndarray:
    """C' s_i - 1 along the model's eigenvectors, which must all be positive."""
    _checks.choice("convention", convention, tuple(CONVENTIONS))
    c = _checks.real("c", c, minimum=0.0)
    rule = CONVENTIONS[convention]
    smallest = float(model.variances.min())
    excess = rule.strength(c) * model.variances - 1
    if excess.min() <= 0:
        bound = rule.weight / (rule.penalty * smallest)
        share = "1" if rule.strength(1.0) == 1 else "1/2"
        raise ValueError(
            f"c should be > {bound:.6g} ({share} over the smallest variance {smallest:.6g}, convention "
            f"{convention!r}), got {c:.6g}: below it the loss outgrows the penalty along that axis, and at it the "
            "maximum diverges"
        )
    return excess
