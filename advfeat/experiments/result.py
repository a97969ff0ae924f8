"""What an experiment gives: numbers over seeds with their spread, tables beside the paper's, verdicts on claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from advfeat.experiments.stages import Stage
from advfeat.intervals import wilson


@dataclass(frozen=True)
class Number:
    """A share of samples, one value a seed.

    counts, n: successes among n samples at each seed. Values are percentages throughout.
    """

    counts: tuple[int, ...]
    n: int

    @classmethod
    def of(cls, shares: Iterable[dict]) -> Number:
        """From ``{"count": ..., "n": ...}`` at each seed."""
        shares = list(shares)
        sizes = {share["n"] for share in shares}
        if len(sizes) != 1:
            raise ValueError(f"shares at all seeds should be of the same number of samples, got {sorted(sizes)}")
        return cls(tuple(share["count"] for share in shares), sizes.pop())

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(100 * count / self.n for count in self.counts)

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """What is compared: the range over the seeds, and at least Wilson's 95 % interval of the mean on n samples.

        Seeds share the test samples, so that more seeds do not shrink the interval of the sample.
        """
        low, high = wilson(round(sum(self.counts) / len(self.counts)), self.n)
        return min(100 * low, *self.values), max(100 * high, *self.values)

    def __str__(self) -> str:
        return f"{self.mean:.1f} %"

    def to_dict(self) -> dict:
        low, high = self.interval
        return {
            "mean": round(self.mean, 3),
            "low": round(low, 3),
            "high": round(high, 3),
            "values": [round(v, 3) for v in self.values],
            "n": self.n,
        }


@dataclass(frozen=True)
class Plain:
    """A number that is no share of samples: a coefficient, a distance, a count; one value a seed."""

    values: tuple[float, ...]
    digits: int = 2

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def __str__(self) -> str:
        return f"{self.mean:.{self.digits}f}"

    def to_dict(self) -> dict:
        low, high = self.interval
        return {"mean": self.mean, "low": low, "high": high, "values": list(self.values), "digits": self.digits}


@dataclass(frozen=True)
class Cell:
    """Our number and the paper's in the same unit; either may be missing.

    approximate: the paper's, read off a figure or rounded in its text. whose: the number beside ours, if not the
    paper's.
    """

    ours: Number | Plain | None = None
    paper: float | None = None
    approximate: bool = False
    whose: str = "paper"

    def to_dict(self) -> dict:
        return {
            "ours": None if self.ours is None else self.ours.to_dict() | {"text": str(self.ours)},
            "paper": self.paper,
            "approximate": self.approximate,
            "whose": self.whose,
        }


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first column their names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns) - 1:
                raise ValueError(f"row {name!r} should have {len(self.columns) - 1} cells, got {len(cells)}")

    def to_dict(self) -> dict:
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [{"name": name, "cells": [cell.to_dict() for cell in cells]} for name, cells in self.rows],
            "caption": self.caption,
        }

    def differences(self) -> list[str]:
        """Each of our numbers beside the paper's, in words."""
        found = []
        for name, cells in self.rows:
            for column, cell in zip(self.columns[1:], cells, strict=True):
                if cell.ours is None or cell.paper is None:
                    continue
                gap = cell.ours.mean - cell.paper
                unit = " points" if isinstance(cell.ours, Number) else ""
                digits = 1 if isinstance(cell.ours, Number) else cell.ours.digits
                how = f"{abs(gap):.{digits}f}{unit} {'above' if gap > 0 else 'below'}"
                if round(abs(gap), digits) == 0:
                    how = "the same as"
                about = "about " if cell.approximate else ""
                found.append(f"{name}, {column}: {cell.ours}, {how} the {cell.whose}'s {about}{cell.paper:g}.")
        return found


Verdict = Literal["supported", "supported once", "inconclusive", "contradicted once", "contradicted"]


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, what would count against it, and what was observed.

    seeds: how many seeds of trainings the claim rests on, the fewest of any number in it; None where it rests on no
    training. With one seed the verdict is "supported once" or "contradicted once" at most: other initial weights can
    change it, and the interval covers the sampling of the test images alone.
    """

    claim: str
    against: str
    observed: str
    verdict: Verdict
    seeds: int | None = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.seeds == 1 and self.verdict in ("supported", "contradicted"):
            object.__setattr__(self, "verdict", f"{self.verdict} once")

    def to_dict(self) -> dict:
        return {
            "claim": self.claim,
            "against": self.against,
            "observed": self.observed,
            "verdict": self.verdict,
            "seeds": self.seeds,
        }


def fewest_seeds(*numbers: Number | Plain) -> int:
    """The seeds that a claim on all of these numbers rests on."""
    return min(len(number.values) for number in numbers)


def compare(larger: Number | Plain | float, smaller: Number | Plain | float) -> Verdict:
    """ "supported" where the first lies above the second and their intervals are apart, "contradicted" where below."""
    (low, high), (other_low, other_high) = _interval(larger), _interval(smaller)
    if low > other_high:
        return "supported"
    return "contradicted" if high < other_low else "inconclusive"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim of several parts."""
    order: tuple[Verdict, ...] = ("contradicted", "inconclusive", "supported")
    return min(verdicts, key=order.index)


def _interval(number: Number | Plain | float) -> tuple[float, float]:
    return (number, number) if isinstance(number, (int, float)) else number.interval


@dataclass(frozen=True)
class Picture:
    """A figure as PNG bytes; name: of its file."""

    name: str
    title: str
    png: bytes
    caption: str = ""


@dataclass
class Result:
    """The outcome of an experiment.

    tables: ours beside the paper's. findings: claims with verdicts. pictures: figures in the paper's form, and samples.
    notes: what a reader has to know about how it was done here. why_different: what the difference to the paper's
    numbers comes from, as far as it is known.
    also: stages that the plan could not foresee, each after what it needs.
    """

    tables: list[Table]
    findings: list[Finding]
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why_different: list[str] = field(default_factory=list)
    also: list[Stage] = field(default_factory=list)

    def to_dict(self) -> dict:
        return {
            "tables": [table.to_dict() for table in self.tables],
            "findings": [finding.to_dict() for finding in self.findings],
            "differences": [line for table in self.tables for line in table.differences()],
            "why_different": self.why_different,
            "notes": self.notes,
        }
