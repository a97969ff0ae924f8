"""When an attack has come as far as it will: a rule to stop by, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

from advfeat._arguments import number, whole_number


@dataclass(frozen=True)
class Converged:
    """A sample is done once ``patience`` steps in a row brought no gain.

    A gain is a value better than that of the last gain by more than ``tolerance`` times its magnitude; each start
    begins anew. It trades closeness for time: the distance of D_R was still falling slowly after the paper's thousand
    steps (Table 5); docs/performance.md has what this default saves and leaves.

        PGD(L2(math.inf), steps=1000, step_size=0.1, objective=Representation(), targeted=True, stop=Converged())

    Errors: ValueError for patience below 1 or tolerance outside [0, 1).
    """

    patience: int = 50
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "patience", whole_number("patience", self.patience))
        object.__setattr__(self, "tolerance", number("tolerance", self.tolerance))
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance should be in [0, 1), got {self.tolerance!r}")
