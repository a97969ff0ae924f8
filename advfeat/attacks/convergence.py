"""A per-sample stopping rule for attacks whose objective has converged."""

from __future__ import annotations

from dataclasses import dataclass

from advfeat._arguments import number, whole_number


@dataclass(frozen=True)
class Converged:
    """Stops a sample after ``patience`` consecutive steps without a gain.

    A gain is a value better than that of the last gain by more than ``tolerance`` times its magnitude; counting starts
    afresh with each restart. The rule trades closeness for time: the distance of D_R was still falling slowly after the
    paper's thousand steps (Table 5). docs/performance.md reports what the default saves and what it leaves.

    It is a rule for steps of constant length. With a schedule that falls, the gains come at its end, and fewer steps
    leave less than stopping early does.

    Args:
        patience: steps without a gain before a sample stops, at least 1.
        tolerance: the relative size of a gain, in [0, 1).

    Raises:
        ValueError: ``patience`` is below 1 or ``tolerance`` outside [0, 1).

    Example:
        PGD(L2(math.inf), steps=1000, step_size=0.1, objective=Representation(), targeted=True, stop=Converged())
    """

    patience: int = 50
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", whole_number("patience", self.patience))
        object.__setattr__(self, "tolerance", number("tolerance", self.tolerance))
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance should be in [0, 1), got {self.tolerance!r}")
