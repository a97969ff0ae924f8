"""Verdicts that several experiments share: which of two models is more robust, which of two drops is larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advfeat.experiments.result import Finding, Number, Plain, compare, fewest_seeds


@dataclass(frozen=True)
class Measured:
    """A model as the subject of a claim.

    Attributes:
        trained_on: Name of its training set.
        accuracy: Clean accuracy in per cent.
        robust: Robust accuracy in per cent at each radius.
    """

    trained_on: str
    accuracy: Number
    robust: Sequence[Number]


def failed(accuracy: Number, chance: float) -> bool:
    """Return whether a training must be considered failed: accuracy not above twice chance.

    The robustness or fragility of such a model means nothing.

    Args:
        accuracy: Clean accuracy in per cent.
        chance: Accuracy of guessing in per cent.
    """
    return compare(accuracy, 2 * chance) != "supported"


def more_robust(
    claim: str, against: str, more: Measured, less: Measured, radii: Sequence[float], chance: float
) -> Finding:
    """Judge the claim that one model is more robust than another.

    The models are compared at the radius with the largest gap between them, in either direction; if another radius
    gives the opposite verdict, the observation says so. If a training failed, the verdict is inconclusive.

    Args:
        claim: The claim.
        against: What would count against it.
        more: The model claimed to be more robust.
        less: The other model.
        radii: Radii of the robust accuracies, in pixel scale [0, 1].
        chance: Accuracy of guessing in per cent.

    Returns:
        The claim with observation and verdict.
    """
    i = max(range(len(radii)), key=lambda k: abs(more.robust[k].mean - less.robust[k].mean))
    observed = (
        f"At radius {radii[i]:g}: {more.robust[i]} ({more.trained_on}) against {less.robust[i]} ({less.trained_on})."
    )
    verdicts = [compare(a, b) for a, b in zip(more.robust, less.robust, strict=True)]
    for k, verdict in enumerate(verdicts):
        if {verdict, verdicts[i]} == {"supported", "contradicted"}:
            observed += f" At {radii[k]:g} the other way round: {more.robust[k]} against {less.robust[k]}."
    at_chance = [m.trained_on for m in (more, less) if failed(m.accuracy, chance)]
    if at_chance:
        observed += f" {' and '.join(at_chance)}: no more than twice chance without an attack."
    seeds = fewest_seeds(more.accuracy, less.accuracy, *more.robust, *less.robust)
    return Finding(claim, against, observed, "inconclusive" if at_chance else verdicts[i], seeds=seeds)


def drop(before: Number, after: Number) -> Plain:
    """Return by how much an accuracy falls.

    Args:
        before: Accuracy before.
        after: Accuracy after.

    Returns:
        The smallest and largest drop, in points, that the two intervals allow.
    """
    (low, high), (other_low, other_high) = before.interval, after.interval
    return Plain((low - other_high, high - other_low), 1)
