"""Argument checks of the theory package: every message names the argument, what was expected and what was given."""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

# A dense matrix that differs from its transpose by more than this (relative to its largest entry) counts as a mistake,
# not as rounding: products such as Q diag(s) Q^T in float64 are symmetric to a few 1e-16.
SYMMETRY_TOLERANCE = 1e-10


def real(name: str, value: object, *, minimum: float = -math.inf, strict: bool = False) -> float:
    """A value as a finite Python float.

    Args:
        name: the name of the argument.
        value: the value.
        minimum: the smallest allowed value.
        strict: whether the value must exceed ``minimum``.

    Returns:
        The number.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is not finite, or too small.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.floating, np.integer)):
        raise TypeError(f"{name} should be a real number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} should be finite, got {number}")
    if number < minimum or (strict and number == minimum):
        raise ValueError(f"{name} should be {'>' if strict else '>='} {minimum:g}, got {number:g}")
    return number


def integer(name: str, value: object, *, minimum: int) -> int:
    """A value as a Python int.

    Args:
        name: the name of the argument.
        value: the value.
        minimum: the smallest allowed value.

    Returns:
        The integer.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is too small.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} should be an integer, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} should be >= {minimum}, got {value}")
    return int(value)


def array(name: str, value: object, shape: str) -> np.ndarray:
    """A value as a float64 array without NaN or infinity.

    Args:
        name: the name of the argument.
        value: the value.
        shape: the expected shape, for the message only.

    Returns:
        The array.

    Raises:
        TypeError: it is not an array of real numbers.
        ValueError: it holds NaN or infinity.
    """
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
    """A value as a float64 vector.

    Args:
        name: the name of the argument.
        value: the value.
        size: the expected number of entries; None for any.

    Returns:
        The vector.

    Raises:
        TypeError: as for :func:`array`.
        ValueError: as for :func:`array`, or the shape is wrong.
    """
    expected = "[d]" if size is None else f"[{size}]"
    result = array(name, value, expected)
    if result.ndim != 1 or result.size == 0 or (size is not None and result.size != size):
        raise ValueError(f"{name} should be a vector {expected}, got shape {result.shape}")
    return result


def variances(name: str, value: object, size: int | None = None) -> np.ndarray:
    """A value as a vector of positive, normal float64 numbers (a spectrum).

    Args:
        name: the name of the argument.
        value: the value.
        size: the expected number of entries; None for any.

    Returns:
        The vector.

    Raises:
        TypeError: as for :func:`vector`.
        ValueError: as for :func:`vector`, or an entry is not positive and normal.
    """
    result = vector(name, value, size)
    smallest = int(result.argmin())
    if result[smallest] < np.finfo(np.float64).tiny:
        raise ValueError(f"{name} should be positive definite, got the eigenvalue {result[smallest]:g} at [{smallest}]")
    return result


def points(name: str, value: object, dim: int) -> np.ndarray:
    """A value as a float64 array [..., dim].

    Args:
        name: the name of the argument.
        value: the value.
        dim: the size of the last dimension.

    Returns:
        The array.

    Raises:
        TypeError: as for :func:`array`.
        ValueError: as for :func:`array`, or the shape is wrong.
    """
    result = array(name, value, f"[..., {dim}]")
    if result.ndim == 0 or result.shape[-1] != dim:
        raise ValueError(f"{name} should have shape [..., {dim}], got {result.shape}")
    return result


def spectrum_of(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigendecomposition of a symmetric positive definite matrix.

    Args:
        name: the name of the argument.
        matrix: [d, d].

    Returns:
        Eigenvalues [d] in ascending order and eigenvectors [d, d] as columns.

    Raises:
        ValueError: the matrix is not symmetric, or not positive definite beyond rounding.
    """
    scale = float(np.abs(matrix).max())
    asymmetry = float(np.abs(matrix - matrix.T).max())
    if asymmetry > SYMMETRY_TOLERANCE * scale:
        raise ValueError(f"{name} should be symmetric, got max |A - A^T| = {asymmetry:g} where max |A| = {scale:g}")
    values, basis = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] <= 0:
        raise ValueError(f"{name} should be positive definite, got the smallest eigenvalue {values[0]:g}")
    # eigh resolves eigenvalues to about d * 2^-52 of the largest one: below that even the sign is rounding.
    resolution = matrix.shape[0] * np.finfo(np.float64).eps * values[-1]
    if values[0] <= resolution:
        raise ValueError(
            f"{name} should be positive definite beyond rounding ({resolution:g} here), got the smallest eigenvalue "
            f"{values[0]:g} and the largest {values[-1]:g}; give the spectrum as a vector if it is known exactly"
        )
    return values, basis


def choice(name: str, value: object, options: tuple[str, ...]) -> str:
    """Checks that a value is one of several options.

    Args:
        name: the name of the argument.
        value: the value.
        options: the options.

    Returns:
        The value.

    Raises:
        ValueError: it is none of them.
    """
    if value not in options:
        raise ValueError(f"{name} should be one of {', '.join(options)}, got {value!r}")
    return str(value)
