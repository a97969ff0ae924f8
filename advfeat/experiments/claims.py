"""Verdicts that several experiments give: which of two models is more robust, which of two drops is larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advfeat.experiments.result import Finding, Number, Plain, compare, fewest_seeds


@dataclass(frozen=True)
class Measured:
    """A model as a claim speaks of it: what it was trained on, its accuracy, its robust accuracy at each radius."""

    trained_on: str
    accuracy: Number
    robust: Sequence[Number]


def failed(accuracy: Number, chance: float) -> bool:
    """Whether a training has to be taken for one that came to nothing: right no more than twice as often as by chance.
    Such a model is robust for no reason, or fragile for none."""
    return compare(accuracy, 2 * chance) != "supported"


def more_robust(
    claim: str, against: str, more: Measured, less: Measured, radii: Sequence[float], chance: float
) -> Finding:
    """That one model is more robust than another, looked at at the radius where the two lie furthest apart, in
    whichever direction; where another radius says the opposite, that is said. Where a training failed nothing is
    decided."""
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
    """By how much an accuracy falls, between the least and the most that the two intervals allow."""
    (low, high), (other_low, other_high) = before.interval, after.interval
    return Plain((low - other_high, high - other_low), 1)
