"""Results of an experiment: numbers over seeds with their spread, tables beside the paper's, verdicts on claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from advfeat.experiments.base import Stage
from advfeat.intervals import wilson


@dataclass(frozen=True)
class Number:
    """A share of samples at each seed; values are percentages.

    Attributes:
        counts: Successes at each seed.
        n: Number of samples.
    """

    counts: tuple[int, ...]
    n: int

    @classmethod
    def of(cls, shares: Iterable[dict]) -> Number:
        """Build a number from shares.

        Args:
            shares: ``{"count": ..., "n": ...}`` at each seed.

        Returns:
            The number.

        Raises:
            ValueError: If the number of samples differs between seeds.
        """
        shares = list(shares)
        sizes = {share["n"] for share in shares}
        if len(sizes) != 1:
            raise ValueError(f"shares at all seeds should be of the same number of samples, got {sorted(sizes)}")
        return cls(tuple(share["count"] for share in shares), sizes.pop())

    @property
    def values(self) -> tuple[float, ...]:
        """Percentage at each seed."""
        return tuple(100 * count / self.n for count in self.counts)

    @property
    def mean(self) -> float:
        """Mean percentage over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """The interval (low, high) used in comparisons, in per cent.

        It is the range over the seeds, and at least Wilson's 95 % interval of the mean on n samples. Seeds share the
        test samples, so more seeds do not shrink the interval for the sampling of the test images.
        """
        low, high = wilson(round(sum(self.counts) / len(self.counts)), self.n)
        return min(100 * low, *self.values), max(100 * high, *self.values)

    def __str__(self) -> str:
        return f"{self.mean:.1f} %"

    def to_dict(self) -> dict:
        """Return the number as JSON values."""
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
    """A number that is not a share of samples, such as a coefficient, a distance or a count.

    Attributes:
        values: Value at each seed.
        digits: Decimal places to show.
    """

    values: tuple[float, ...]
    digits: int = 2

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Range (low, high) over the seeds."""
        return min(self.values), max(self.values)

    def __str__(self) -> str:
        return f"{self.mean:.{self.digits}f}"

    def to_dict(self) -> dict:
        """Return the number as JSON values."""
        low, high = self.interval
        return {"mean": self.mean, "low": low, "high": high, "values": list(self.values), "digits": self.digits}


@dataclass(frozen=True)
class Cell:
    """Our number and the paper's in the same unit; either may be missing.

    Attributes:
        ours: Our number.
        paper: The paper's number.
        approximate: Whether the paper's number is read off a figure or rounded in its text.
        whose: Origin of the number beside ours, if it is not the paper's.
    """

    ours: Number | Plain | None = None
    paper: float | None = None
    approximate: bool = False
    whose: str = "paper"

    def to_dict(self) -> dict:
        """Return the cell as JSON values."""
        return {
            "ours": None if self.ours is None else self.ours.to_dict() | {"text": str(self.ours)},
            "paper": self.paper,
            "approximate": self.approximate,
            "whose": self.whose,
        }


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        title: Title.
        columns: Headings, the first that of the row names.
        rows: (name, cells) of each row.
        caption: Text below the table.

    Raises:
        ValueError: If a row has the wrong number of cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns) - 1:
                raise ValueError(f"row {name!r} should have {len(self.columns) - 1} cells, got {len(cells)}")

    def to_dict(self) -> dict:
        """Return the table as JSON values."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [{"name": name, "cells": [cell.to_dict() for cell in cells]} for name, cells in self.rows],
            "caption": self.caption,
        }

    def differences(self) -> list[str]:
        """Return one sentence per number on its difference from the paper's."""
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

    With one seed the verdict is at most "supported once" or "contradicted once": other initial weights can change it,
    and the interval covers only the sampling of the test images.

    Attributes:
        claim: The claim.
        against: What would count against it.
        observed: What was observed.
        verdict: The verdict.
        seeds: Number of training seeds that the claim rests on, the smallest over its numbers; None if it rests on no
            training.
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
        """Return the finding as JSON values."""
        return {
            "claim": self.claim,
            "against": self.against,
            "observed": self.observed,
            "verdict": self.verdict,
            "seeds": self.seeds,
        }


def fewest_seeds(*numbers: Number | Plain) -> int:
    """Return the number of seeds that a claim about several numbers rests on.

    Args:
        *numbers: The numbers.
    """
    return min(len(number.values) for number in numbers)


def compare(larger: Number | Plain | float, smaller: Number | Plain | float) -> Verdict:
    """Judge whether one number is larger than another.

    Args:
        larger: The number claimed to be larger.
        smaller: The other number.

    Returns:
        "supported" if the first is larger and the intervals do not overlap, "contradicted" if it is smaller and they do
        not
        overlap, else "inconclusive".
    """
    (low, high), (other_low, other_high) = _interval(larger), _interval(smaller)
    if low > other_high:
        return "supported"
    return "contradicted" if high < other_low else "inconclusive"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a claim with several parts.

    Args:
        verdicts: Verdicts on the parts.
    """
    order: tuple[Verdict, ...] = ("contradicted", "inconclusive", "supported")
    return min(verdicts, key=order.index)


def _interval(number: Number | Plain | float) -> tuple[float, float]:
    return (number, number) if isinstance(number, (int, float)) else number.interval


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Stem of its file name.
        title: Title.
        png: PNG file.
        caption: Text below it.
    """

    name: str
    title: str
    png: bytes
    caption: str = ""


@dataclass
class Result:
    """The outcome of an experiment.

    Attributes:
        tables: Our numbers beside the paper's.
        findings: Claims with verdicts.
        pictures: Figures in the style of the paper, and samples.
        notes: What a reader has to know about the method used here.
        why_different: Known causes of differences from the paper's numbers.
        also: Stages that the plan could not foresee, each after those it needs.
    """

    tables: list[Table]
    findings: list[Finding]
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why_different: list[str] = field(default_factory=list)
    also: list[Stage] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Return the outcome as JSON values, without the pictures."""
        return {
            "tables": [table.to_dict() for table in self.tables],
            "findings": [finding.to_dict() for finding in self.findings],
            "differences": [line for table in self.tables for line in table.differences()],
            "why_different": self.why_different,
            "notes": self.notes,
        }
