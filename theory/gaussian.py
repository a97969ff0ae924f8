"""The task of Section 4: two Gaussians, the classifier between them, and its exact accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from scipy.special import ndtr

from . import _checks

NORMS = ("l2", "linf")


@dataclass(frozen=True, eq=False)
class GaussianTask:
    """y uniform on {-1, +1} and x ~ N(y mean, covariance), paper equation (9).

    Everything is float64. A number or a vector never makes a d x d array, so d = 10^5 is cheap; a matrix is decomposed
    once.

    Args:
        mean: [d].
        covariance: a positive number (times the identity), a vector [d] (a diagonal) or a symmetric positive definite
            matrix [d, d].

    Attributes:
        variances: the spectrum [d]; ascending for a matrix.
        basis: the eigenvectors [d, d] as columns; None for a diagonal covariance.

    Raises:
        TypeError: an argument is not an array of real numbers.
        ValueError: the sizes do not match, a value is NaN or infinite, or the matrix is not symmetric or not positive
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
        """The dimension d of x."""
        return self.mean.size

    @property
    def condition(self) -> float:
        """The condition number kappa, the largest over the smallest variance."""
        return float(self.variances.max() / self.variances.min())

    def with_variances(self, variances: np.ndarray) -> GaussianTask:
        """The task with the same mean and eigenvectors and another spectrum.

        Args:
            variances: [d], positive.

        Returns:
            The task.

        Raises:
            ValueError: the spectrum is invalid.
        """
        spectrum = _checks.variances("variances", variances, self.dim)
        if self.basis is None:
            return GaussianTask(self.mean, spectrum)
        task = object.__new__(GaussianTask)  # the basis is known, so no second decomposition is needed
        task._set(self.mean, (self.basis * spectrum) @ self.basis.T, spectrum, self.basis)
        return task

    def matrix(self) -> np.ndarray:
        """The covariance as a dense matrix.

        Returns:
            [d, d].
        """
        return np.diag(self.variances) if self.basis is None else (self.basis * self.variances) @ self.basis.T

    def to_eigenbasis(self, x: np.ndarray) -> np.ndarray:
        """Coordinates along the eigenvectors of the covariance.

        Args:
            x: [..., d].

        Returns:
            [..., d]; x itself for a diagonal covariance.
        """
        x = _checks.points("x", x, self.dim)
        return x if self.basis is None else x @ self.basis

    def from_eigenbasis(self, coordinates: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_eigenbasis`.

        Args:
            coordinates: [..., d].

        Returns:
            [..., d].
        """
        coordinates = _checks.points("coordinates", coordinates, self.dim)
        return coordinates if self.basis is None else coordinates @ self.basis.T

    def direction(self) -> np.ndarray:
        """The gradient w = S^-1 mean of the classifier x^T S^-1 mean with respect to x.

        Returns:
            [d].
        """
        return self.from_eigenbasis(self.to_eigenbasis(self.mean) / self.variances)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """The classifier sign(x^T S^-1 mean): the label with the smaller NLL.

        Args:
            x: [..., d].

        Returns:
            Labels in {-1, 0, +1}; 0 on the boundary.
        """
        return np.sign(_checks.points("x", x, self.dim) @ self.direction())

    def nll(self, x: np.ndarray, y: np.ndarray | float = 1.0) -> np.ndarray:
        """The negative log-likelihood -log N(x; y mean, S).

        Args:
            x: [..., d].
            y: labels, broadcast against x's leading shape.

        Returns:
            The leading shape of x.
        """
        x = _checks.points("x", x, self.dim)
        centred = self.to_eigenbasis(x - np.asarray(y, dtype=np.float64)[..., None] * self.mean)
        log_determinant = np.log(self.variances).sum()
        return 0.5 * ((centred**2 / self.variances).sum(-1) + log_determinant + self.dim * math.log(2 * math.pi))

    def moments_about(self, model: GaussianTask) -> np.ndarray:
        """E (u_i^T (x - model.mean))^2 for the eigenvectors u_i of the model's covariance and x of the class +1.

        Args:
            model: the model.

        Returns:
            [d].

        Raises:
            ValueError: the model has another size.
        """
        if model.dim != self.dim:
            raise ValueError(f"model should have the size of task, {self.dim}, got {model.dim}")
        if model.basis is self.basis:
            spread = self.variances
        elif model.basis is None:
            spread = (cast("np.ndarray", self.basis) ** 2) @ self.variances  # None would be the model's own
        else:
            spread = np.einsum("ji,jk,ki->i", model.basis, self.matrix(), model.basis)
        return spread + model.to_eigenbasis(self.mean - model.mean) ** 2

    def sample(self, n: int, seed: int | np.random.Generator = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draws samples from the task.

        Args:
            n: the number of samples.
            seed: a seed or a generator.

        Returns:
            x [n, d] and y [n] in {-1, +1}.
        """
        n = _checks.integer("n", n, minimum=0)
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, size=n) * 2.0 - 1.0
        noise = rng.standard_normal((n, self.dim)) * np.sqrt(self.variances)
        return y[:, None] * self.mean + self.from_eigenbasis(noise), y

    def standard_score(self, w: np.ndarray | None = None, *, eps: float = 0.0, norm: str = "l2") -> float:
        """The score z = (w^T mean - eps ||w||_*) / sqrt(w^T S w): the accuracy of sign(w^T x) under attack is Phi(z).

        The adversary moves x by delta with ||delta|| <= eps in ``norm``. For every sample the worst move lowers y w^T x
        by exactly eps ||w||_*, the dual norm (L2 for "l2", L1 for "linf").

        Args:
            w: [d]; S^-1 mean by default.
            eps: the radius.
            norm: "l2" or "linf".

        Returns:
            z.

        Raises:
            ValueError: w = 0 (also by default, if the mean is 0): such a classifier has no boundary.
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
        """Exact accuracy of sign(w^T x), clean (eps = 0) or against the worst perturbation of size eps.

        A perturbation that reaches the boundary counts as an error; this changes nothing, since the boundary has
        probability zero.

        Args:
            w: as for :meth:`standard_score`.
            eps: as for :meth:`standard_score`.
            norm: as for :meth:`standard_score`.

        Returns:
            The accuracy, in [0, 1].

        Raises:
            ValueError: as for :meth:`standard_score`.
        """
        return float(ndtr(self.standard_score(w, eps=eps, norm=norm)))


def worst_perturbation(w: np.ndarray, y: np.ndarray, eps: float, norm: str = "l2") -> np.ndarray:
    """The move of size eps that lowers y w^T x the most.

    delta = -y eps w / ||w||_2 for "l2" and -y eps sign(w) for "linf".

    Args:
        w: [d].
        y: labels [n].
        eps: the radius.
        norm: "l2" or "linf".

    Returns:
        delta [n, d].
    """
    w = _checks.vector("w", w)
    eps = _checks.real("eps", eps, minimum=0.0)
    if _checks.choice("norm", norm, NORMS) == "linf":
        unit = np.sign(w)
    else:
        scaled = w / np.abs(w).max()
        unit = scaled / np.sqrt((scaled * scaled).sum())
    return -eps * np.asarray(y, dtype=np.float64)[:, None] * unit
