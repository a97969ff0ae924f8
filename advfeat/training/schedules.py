"""Learning rate schedules, each a function of the step alone, so that a resumed run needs no state for them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

SCHEDULES = ("constant", "cosine", "step", "cyclic")


def learning_rate(
    schedule: str,
    base: float,
    step: int,
    steps_per_epoch: int,
    epochs: int,
    *,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    peak: float = 4 / 15,
) -> float:
    """Return the learning rate of a step.

    With T = steps_per_epoch * epochs and s = step:

    * "constant": base.
    * "cosine": base (1 + cos(pi s / T)) / 2.
    * "step": base gamma^m, where m counts the milestones reached; the paper authors' library drops by 0.1 after epochs
      50 and 100 of 150.
    * "cyclic": a triangle 0 -> base -> 0 that peaks at the share ``peak`` of the training (4/15 in the authors'
      library), evaluated at (s + 1) / (T + 1), so that no step is wasted on a rate of 0.

    Args:
        schedule: "constant", "cosine", "step" or "cyclic".
        base: Highest learning rate.
        step: Step, in 0 .. T - 1.
        steps_per_epoch: Steps per epoch.
        epochs: Number of epochs.
        milestones: Epochs at which "step" drops.
        gamma: Factor of a drop.
        peak: Share of the training at which "cyclic" peaks.

    Returns:
        The learning rate.

    Raises:
        ValueError: If the schedule is unknown.
    """
    total = steps_per_epoch * epochs
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return base * 0.5 * (1.0 + math.cos(math.pi * step / total))
    if schedule == "step":
        return base * gamma ** bisect.bisect_right(sorted(milestones), step // steps_per_epoch)
    if schedule == "cyclic":
        t = (step + 1) / (total + 1)
        return base * (t / peak if t < peak else (1.0 - t) / (1.0 - peak))
    raise ValueError(f"schedule should be one of {', '.join(SCHEDULES)}, got {schedule!r}")
