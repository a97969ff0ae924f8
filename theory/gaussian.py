"""The task of Section 4: two Gaussians, the classifier between them, and its exact accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from . import _checks

NORMS = ("l2", "linf")


@dataclass(frozen=True, eq=False)
class GaussianTask:
    """y uniform on {-1, +1} and x ~ N(y mean, covariance), paper equation (9).

    mean: [d]. covariance: a positive number (times the identity), a vector [d] (a diagonal) or a symmetric positive
    definite matrix [d, d]. Everything is float64. A number or a vector never makes a d x d array, so d = 10^5 is cheap;
    a matrix is split once into `variances` (ascending) and `basis` (eigenvectors as columns, None for a diagonal).

    Raises ValueError for sizes that do not match, NaN or infinity, and a matrix that is not symmetric or not positive
    definite.
    """

    mean: np.ndarray
    covariance: np.ndarray
    variances: np.ndarray = field(init=False, repr=False)
    basis: np.ndarray | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        mean = _checks.vector("mean", self.mean)
        covariance = _checks.array("covariance", self.covariance, "as a number, [d] or [d, d]")
        dim = mean.size
        basis = None
        if covariance.ndim == 0:
            spectrum = _checks.variances("covariance", np.full(dim, covariance))
        elif covariance.ndim == 1:
            if covariance.size != dim:
                raise ValueError(f"covariance should have the size of mean, [{dim}], got shape {covariance.shape}")
            spectrum = _checks.variances("covariance", covariance)
        elif covariance.shape == (dim, dim):
            spectrum, basis = _checks.spectrum_of("covariance", covariance)
        else:
            raise ValueError(
                f"covariance should be a number, [{dim}] or [{dim}, {dim}] for a mean of shape [{dim}], "
                f"got shape {covariance.shape}"
            )
        self._set(mean, covariance, spectrum, basis)

    def _set(self, mean, covariance, variances, basis) -> None:
        for name, value in (("mean", mean), ("covariance", covariance), ("variances", variances), ("basis", basis)):
            if value is not None:
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    @property
    def dim(self) -> int:
        """d, the number of coordinates of x."""
        return self.mean.size

    @property
    def condition(self) -> float:
        """kappa = largest over smallest variance."""
        return float(self.variances.max() / self.variances.min())

    def with_variances(self, variances: np.ndarray) -> GaussianTask:
        """The task with the same mean and eigenvectors and another spectrum [d]."""
        spectrum = _checks.variances("variances", variances, self.dim)
        if self.basis is None:
            return GaussianTask(self.mean, spectrum)
        task = object.__new__(GaussianTask)  # the basis is known: no second decomposition
        task._set(self.mean, (self.basis * spectrum) @ self.basis.T, spectrum, self.basis)
        return task

    def matrix(self) -> np.ndarray:
        """The covariance as a dense matrix [d, d]."""
        return np.diag(self.variances) if self.basis is None else (self.basis * self.variances) @ self.basis.T

    def to_eigenbasis(self, x: np.ndarray) -> np.ndarray:
        """Coordinates of x [..., d] along the eigenvectors of the covariance (x itself for a diagonal one)."""
        x = _checks.points("x", x, self.dim)
        return x if self.basis is None else x @ self.basis

    def from_eigenbasis(self, coordinates: np.ndarray) -> np.ndarray:
        """The inverse of `to_eigenbasis`."""
        coordinates = _checks.points("coordinates", coordinates, self.dim)
        return coordinates if self.basis is None else coordinates @ self.basis.T

    def direction(self) -> np.ndarray:
        """w = S^-1 mean [d], the gradient of the classifier x^T S^-1 mean with respect to x."""
        return self.from_eigenbasis(self.to_eigenbasis(self.mean) / self.variances)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """sign(x^T S^-1 mean) in {-1, 0, +1} for x [..., d]: the label of the smaller NLL (0 on the boundary)."""
        return np.sign(_checks.points("x", x, self.dim) @ self.direction())

    def nll(self, x: np.ndarray, y: np.ndarray | float = 1.0) -> np.ndarray:
        """-log N(x; y mean, S) for x [..., d] and labels y broadcast against x's leading shape."""
        x = _checks.points("x", x, self.dim)
        centred = self.to_eigenbasis(x - np.asarray(y, dtype=np.float64)[..., None] * self.mean)
        log_determinant = np.log(self.variances).sum()
        return 0.5 * ((centred**2 / self.variances).sum(-1) + log_determinant + self.dim * math.log(2 * math.pi))

    def moments_about(self, model: GaussianTask) -> np.ndarray:
        """E (u_i^T (x - model.mean))^2 for the eigenvectors u_i of model's covariance and x of the class +1: [d].

        Raises ValueError for a model of another size.
        """
        if model.dim != self.dim:
            raise ValueError(f"model should have the size of task, {self.dim}, got {model.dim}")
        if model.basis is self.basis:
            spread = self.variances
        elif model.basis is None:
            spread = (self.basis**2) @ self.variances
        else:
            spread = np.einsum("ji,jk,ki->i", model.basis, self.matrix(), model.basis)
        return spread + model.to_eigenbasis(self.mean - model.mean) ** 2

    def sample(self, n: int, seed: int | np.random.Generator = 0) -> tuple[np.ndarray, np.ndarray]:
        """n draws (x [n, d], y [n] in {-1, +1}) from the task."""
        n = _checks.integer("n", n, minimum=0)
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, size=n) * 2.0 - 1.0
        noise = rng.standard_normal((n, self.dim)) * np.sqrt(self.variances)
        return y[:, None] * self.mean + self.from_eigenbasis(noise), y

    def standard_score(self, w: np.ndarray | None = None, *, eps: float = 0.0, norm: str = "l2") -> float:
        """z = (w^T mean - eps ||w||_*) / sqrt(w^T S w), so that the accuracy of sign(w^T x) under attack is Phi(z).

        The adversary moves x by delta with ||delta|| <= eps in `norm` ("l2" or "linf"); the worst move lowers y w^T x
        by exactly eps ||w||_*, the dual norm (L2 for "l2", L1 for "linf"), for every sample alike. w: [d], default S^-1
        mean.

        Raises ValueError for w = 0 (also when w is left out and the mean is 0): such a classifier has no boundary.
        """
        eps = _checks.real("eps", eps, minimum=0.0)
        _checks.choice("norm", norm, NORMS)
        name = "w" if w is not None else "mean"
        w = self.direction() if w is None else _checks.vector("w", w, self.dim)
        largest = np.abs(w).max()
        if largest == 0:
            raise ValueError(f"{name} should not be zero: sign(w^T x) with w = 0 separates nothing")
        w = w / largest
        dual = np.abs(w).sum() if norm == "linf" else np.sqrt((w * w).sum())
        spread = np.sqrt((self.to_eigenbasis(w) ** 2 * self.variances).sum())
        return float((w @ self.mean - eps * dual) / spread)

    def accuracy(self, w: np.ndarray | None = None, *, eps: float = 0.0, norm: str = "l2") -> float:
        """Exact accuracy of sign(w^T x) on this task, clean (eps = 0) or against the worst perturbation of size eps.

        Arguments and errors as in `standard_score`. A perturbation that reaches the boundary counts as an error, which
        changes nothing: the boundary has probability zero.
        """
        return float(ndtr(self.standard_score(w, eps=eps, norm=norm)))


def worst_perturbation(w: np.ndarray, y: np.ndarray, eps: float, norm: str = "l2") -> np.ndarray:
    """The move of size eps that lowers y w^T x the most, delta [n, d] for labels y [n].

    delta = -y eps w / ||w||_2 for "l2" and -y eps sign(w) for "linf".
    """
    w = _checks.vector("w", w)
    eps = _checks.real("eps", eps, minimum=0.0)
    if _checks.choice("norm", norm, NORMS) == "linf":
        unit = np.sign(w)
    else:
        scaled = w / np.abs(w).max()
        unit = scaled / np.sqrt((scaled * scaled).sum())
    return -eps * np.asarray(y, dtype=np.float64)[:, None] * unit
