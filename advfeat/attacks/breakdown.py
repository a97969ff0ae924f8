"""What each of several attacks in turn broke of what those before it left, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """The cost of an attack.

    Attributes:
        samples_forwarded: samples through the model's forward pass.
        samples_backwarded: samples through its backward pass.
        seconds: time on the clock, without that spent waiting for images.
    """

    samples_forwarded: int = 0
    samples_backwarded: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.samples_forwarded + other.samples_forwarded,
            self.samples_backwarded + other.samples_backwarded,
            self.seconds + other.seconds,
        )

    def part(self, first: int, last: int, total: int) -> Cost:
        """The share of some of the samples that an attack was run on.

        Args:
            first: the first sample.
            last: the one after the last.
            total: the number of samples.

        Returns:
            The share; those of consecutive parts add up to the whole.
        """

        # Differences of rounded sums, so that the parts add up to the whole.
        def count(spent: int) -> int:
            return spent * last // max(total, 1) - spent * first // max(total, 1)

        seconds = self.seconds * (last - first) / max(total, 1)
        return Cost(count(self.samples_forwarded), count(self.samples_backwarded), seconds)


@dataclass(frozen=True)
class Turn:
    """One of several attacks in turn.

    Attributes:
        name: such as "apgd-ce".
        attacked: the number of samples that the attacks before it left.
        broken: how many of them it broke.
        cost: its passes and its time. An evaluation at x counts with the attack that follows it.
    """

    name: str
    attacked: int
    broken: int
    cost: Cost

    @property
    def left(self) -> int:
        """The number of samples that it left."""
        return self.attacked - self.broken
