"""The robust problem before its relaxation, (11)/(15), in which every sample has its own ball; solved numerically."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, root
from scipy.special import gammaln

from . import _checks
from .gaussian import GaussianTask
from .theorem2 import robust_parameters
from .trust_region import moved_moments

# The product rule over the group norms would need too much memory with more groups than this.
MAX_GROUPS = 3


@dataclass(frozen=True, eq=False)
class ExactParameters:
    """The solution of (15).

    Attributes:
        variances: [g].
        loss: the loss there.
        residual: the residual of the stationarity condition.
    """

    variances: np.ndarray
    loss: float
    residual: float


def exact_parameters(
    values: np.ndarray, eps: float, *, multiplicity: np.ndarray | int = 1, nodes: int = 96
) -> ExactParameters:
    """Minimises E max_{||delta|| = eps} NLL(x + delta) over S, for S* with few distinct variances: (11)/(15).

    By symmetry the solution has one variance for each group too, and the mean stays mean* (the problem is convex in
    (S^-1, S^-1 mean) and even about mean*).

    The inner maximum of a sample depends only on its g group norms, which follow chi distributions, so the expectation
    is a product rule of Gauss-Legendre quadratures: no sampling error. The outer problem is solved through its
    stationarity condition, s_g = E[(v + delta)_g^2] / m_g, which is the population gradient by Danskin's theorem.

    Args:
        values: [g], the distinct variances of S*, g <= 3.
        eps: the L2 radius.
        multiplicity: [g], how often each variance occurs (a number: all equally), so that d = sum(multiplicity) may be
            anything.
        nodes: quadrature points per group.

    Returns:
        The solution.

    Raises:
        ValueError: there are more than 3 groups, eps < 0, or a multiplicity is below 1.
    """
    values = _checks.variances("values", values)
    eps = _checks.real("eps", eps, minimum=0.0)
    nodes = _checks.integer("nodes", nodes, minimum=8)
    if values.size > MAX_GROUPS:
        raise ValueError(f"values should have at most {MAX_GROUPS} distinct variances, got {values.size}")
    counts = np.broadcast_to(np.asarray(multiplicity), values.shape)
    for count in counts:
        _checks.integer("multiplicity", count, minimum=1)
    counts = counts.astype(np.float64)

    moments, weights = _group_moments(values, counts, nodes)
    relaxed = robust_parameters(GaussianTask(np.zeros(int(counts.sum())), np.repeat(values, counts.astype(int))), eps)
    start = np.log(relaxed.variances[np.r_[0, np.cumsum(counts.astype(int))[:-1]]])

    def residual(log_variances):
        moved = moved_moments(moments, np.exp(log_variances), eps)
        return np.log(weights @ moved / counts) - log_variances

    solution = root(residual, start, method="hybr", options={"xtol": 1e-12})
    variances = np.exp(solution.x)
    moved = weights @ moved_moments(moments, variances, eps)
    loss = 0.5 * ((moved / variances).sum() + counts @ solution.x + counts.sum() * math.log(2 * math.pi))
    return ExactParameters(variances, float(loss), float(np.abs(residual(solution.x)).max()))


def exact_parameters_by_sampling(task: GaussianTask, eps: float, *, n: int = 20_000, seed: int = 0) -> ExactParameters:
    """The same minimum by brute force: the loss on n sampled displacements, minimised by L-BFGS.

    For any spectrum and small d. Its error falls as 1/sqrt(n). It is a check of :func:`exact_parameters` that shares
    neither its quadrature nor its stationarity condition (it uses finite differences of the loss).

    Args:
        task: the task.
        eps: the L2 radius.
        n: the number of samples.
        seed: of the samples.

    Returns:
        The solution, with variances in the order of ``task.variances``.
    """
    eps = _checks.real("eps", eps, minimum=0.0)
    n = _checks.integer("n", n, minimum=1)
    moments = np.random.default_rng(seed).standard_normal((n, task.dim)) ** 2 * task.variances

    def loss(log_variances):
        variances = np.exp(log_variances)
        moved = moved_moments(moments, variances, eps).mean(0)
        return 0.5 * ((moved / variances).sum() + log_variances.sum() + task.dim * math.log(2 * math.pi))

    found = minimize(loss, np.log(robust_parameters(task, eps).variances), method="L-BFGS-B", options={"ftol": 1e-14})
    return ExactParameters(np.exp(found.x), float(found.fun), float(np.abs(found.jac).max()))


@dataclass(frozen=True, eq=False)
class RelaxationGap:
    """The distance between the exact and the relaxed solution.

    Attributes:
        dims: [k].
        gap: [k, g], |exact / relaxed - 1|.
    """

    dims: np.ndarray
    gap: np.ndarray

    @property
    def rate(self) -> np.ndarray:
        """The least-squares slope [g] of log gap against log d over the upper half of the dimensions: -1 means 1/d."""
        half = len(self.dims) // 2
        return np.polyfit(np.log(self.dims[half:]), np.log(self.gap[half:]), 1)[0]


def relaxation_gap(values: np.ndarray, eps_per_root_d: float, copies: list[int], *, nodes: int = 96) -> RelaxationGap:
    """The gap for S* = ``values`` repeated m times, for m in ``copies``, at eps = eps_per_root_d sqrt(d).

    d = m len(values). eps grows with sqrt(d) as ||v|| does: with a fixed eps the two problems would agree trivially,
    since nothing moves.

    Args:
        values: [g], distinct variances.
        eps_per_root_d: the L2 radius over sqrt(d).
        copies: the values of m.
        nodes: as for :func:`exact_parameters`.

    Returns:
        The gap.
    """
    values = _checks.variances("values", values)
    scale = _checks.real("eps_per_root_d", eps_per_root_d, minimum=0.0, strict=True)
    gaps = []
    for count in copies:
        dim = count * values.size
        exact = exact_parameters(values, scale * math.sqrt(dim), multiplicity=count, nodes=nodes)
        relaxed = robust_parameters(GaussianTask(np.zeros(dim), np.repeat(values, count)), scale * math.sqrt(dim))
        gaps.append(np.abs(exact.variances / relaxed.variances[::count] - 1))
    return RelaxationGap(np.array(copies, dtype=np.float64) * values.size, np.array(gaps))


def _group_moments(values: np.ndarray, counts: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [n, g] of the squared group norms a_g = s_g chi^2(m_g), and their weights [n] (sum 1)."""
    unit, unit_weights = np.polynomial.legendre.leggauss(nodes)
    axes, axis_weights = [], []
    for value, count in zip(values, counts, strict=True):
        # chi(m) has a standard deviation below 1 around sqrt(m): nine of them omit less than 1e-17.
        low, high = max(0.0, math.sqrt(count) - 9.0), math.sqrt(count) + 9.0
        r = low + (high - low) * (unit + 1) / 2
        log_density = (count - 1) * np.log(r) - r**2 / 2 - (count / 2 - 1) * math.log(2) - gammaln(count / 2)
        weight = unit_weights * (high - low) / 2 * np.exp(log_density)
        axes.append(value * r**2)
        axis_weights.append(weight / weight.sum())
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    weights = axis_weights[0]
    for other in axis_weights[1:]:
        weights = np.multiply.outer(weights, other).ravel()
    return grid, weights
