"""Proportions with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(successes: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default.

    ``(p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)`` with p = successes/n. It is valid at 0 and at n,
    where the usual ``p -+ z sqrt(p (1 - p)/n)`` has width 0.

    Args:
        successes: the number of successes, in 0 .. n.
        n: the number of samples, positive.
        z: the quantile of the normal distribution.

    Returns:
        The lower and upper bound, in [0, 1].

    Raises:
        ValueError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes should be in 0 .. n with n > 0, got {successes} of {n}")
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class Share:
    """A proportion, ``count`` of ``n`` samples, with its 95 % interval.

    Attributes:
        count: the number of successes.
        n: the number of samples.
    """

    count: int
    n: int

    @property
    def value(self) -> float:
        """The proportion, in [0, 1]."""
        return self.count / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.count, self.n)

    def to_dict(self) -> dict:
        """The proportion and its interval as JSON values.

        Returns:
            A dict with value, count, n and interval.
        """
        return {"value": self.value, "count": self.count, "n": self.n, "interval": list(self.interval)}
