"""Argument checks of the theory module: every message names the argument, what was expected and what was seen."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

# A dense matrix that is further from its transpose than this (relative to its largest entry) is taken for a mistake,
# not for rounding: products such as Q diag(s) Q^T in float64 come out symmetric to a few 1e-16.
SYMMETRY_TOLERANCE = 1e-10


def real(name: str, value: object, *, minimum: float = -math.inf, strict: bool = False) -> float:
    """`value` as a finite Python float that is at least `minimum` (greater than it when `strict`)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.floating, np.integer)):
        raise TypeError(f"{name} should be a real number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} should be finite, got {number}")
    if number < minimum or (strict and number == minimum):
        raise ValueError(f"{name} should be {'>' if strict else '>='} {minimum:g}, got {number:g}")
    return number


def integer(name: str, value: object, *, minimum: int) -> int:
    """`value` as a Python int that is at least `minimum`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} should be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} should be >= {minimum}, got {value}")
    return int(value)


def array(name: str, value: object, shape: str) -> np.ndarray:
    """`value` as a float64 array without NaN or infinity; `shape` only words the message."""
    try:
        result = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} should be an array of real numbers {shape}, got {type(value).__name__}") from error
    finite = np.isfinite(result)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"{name} should be finite, got {result[where]} at {list(where)}")
    return result


def vector(name: str, value: object, size: int | None = None) -> np.ndarray:
    """`value` as a float64 vector, of `size` entries when that is given."""
    expected = "[d]" if size is None else f"[{size}]"
    result = array(name, value, expected)
    if result.ndim != 1 or result.size == 0 or (size is not None and result.size != size):
        raise ValueError(f"{name} should be a vector {expected}, got shape {result.shape}")
    return result


def variances(name: str, value: object, size: int | None = None) -> np.ndarray:
    """`value` as a vector of positive, normal float64 numbers (a spectrum)."""
    result = vector(name, value, size)
    smallest = int(result.argmin())
    if result[smallest] < np.finfo(np.float64).tiny:
        raise ValueError(f"{name} should be positive definite, got the eigenvalue {result[smallest]:g} at [{smallest}]")
    return result


def points(name: str, value: object, dim: int) -> np.ndarray:
    """`value` as a float64 array [..., dim]."""
    result = array(name, value, f"[..., {dim}]")
    if result.ndim == 0 or result.shape[-1] != dim:
        raise ValueError(f"{name} should have shape [..., {dim}], got {result.shape}")
    return result


def spectrum_of(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (ascending) and eigenvectors (columns) of a symmetric positive definite matrix [d, d]."""
    scale = float(np.abs(matrix).max())
    asymmetry = float(np.abs(matrix - matrix.T).max())
    if asymmetry > SYMMETRY_TOLERANCE * scale:
        raise ValueError(f"{name} should be symmetric, got max |A - A^T| = {asymmetry:g} where max |A| = {scale:g}")
    values, basis = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] <= 0:
        raise ValueError(f"{name} should be positive definite, got the smallest eigenvalue {values[0]:g}")
    # eigh resolves eigenvalues to about d * 2^-52 of the largest one: below that the sign itself is rounding.
    resolution = matrix.shape[0] * np.finfo(np.float64).eps * values[-1]
    if values[0] <= resolution:
        raise ValueError(
            f"{name} should be positive definite beyond rounding ({resolution:g} here), got the smallest eigenvalue "
            f"{values[0]:g} and the largest {values[-1]:g}; give the spectrum as a vector if it is known exactly"
        )
    return values, basis


def choice(name: str, value: object, options: tuple[str, ...]) -> str:
    """`value` as one of `options`."""
    if value not in options:
        raise ValueError(f"{name} should be one of {', '.join(options)}, got {value!r}")
    return str(value)
