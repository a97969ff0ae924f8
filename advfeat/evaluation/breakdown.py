"""Robust accuracy after each of several attacks in turn: which attack broke which sample, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from advfeat.attacks import Attack, AttackResult
from advfeat.attacks.breakdown import Cost
from advfeat.attacks.ensemble import InTurn
from advfeat.intervals import Share


@dataclass(frozen=True)
class AfterAttack:
    """One attack of several in turn, or the only one.

    The counts of all rows add up: each attack is run on what the one before it left, and what the last one left is
    :attr:`Robustness.found_alone`.

    Attributes:
        name: Name of the attack in its ensemble, such as "apgd-ce".
        attacked: Number of samples that the attacks before it left.
        broken: How many of these it broke.
        accuracy: Robust accuracy after it.
        forward_passes: Samples that it passed forward through the model.
        backward_passes: Samples that it passed backward through the model.
        seconds: Time that it took, without that for reading images and for judging its examples.
    """

    name: str
    attacked: int
    broken: int
    accuracy: Share
    forward_passes: int
    backward_passes: int
    seconds: float = field(compare=False)

    def to_dict(self, seconds: bool = False) -> dict:
        """Return the row as JSON values.

        Args:
            seconds: Include the time, which differs from one run to the next.
        """
        found = {
            "name": self.name,
            "attacked": self.attacked,
            "broken": self.broken,
            "robust_accuracy": self.accuracy.to_dict(),
            "forward_passes": self.forward_passes,
            "backward_passes": self.backward_passes,
        }
        return found | {"seconds": self.seconds} if seconds else found


def names_of(attack: Attack) -> tuple[str, ...]:
    """Name the rows of an attack's breakdown.

    Args:
        attack: The attack.

    Returns:
        The names of the attacks that it runs in turn, or its own.
    """
    return attack.turns if isinstance(attack, InTurn) else (type(attack).__name__,)


class Tally:
    """Which attack in turn broke each attacked sample, and what each attack cost.

    Args:
        attack: The attack.
        n: Number of attacked samples.
        keep: Whether to keep the examples.

    Attributes:
        broken_by: int64 [n], position of the attack that broke the sample among ``names``; -1 for none.
        costs: Cost of each attack.
        examples: [n, ...], examples of the attacked samples, if they are kept.
    """

    def __init__(self, attack: Attack, n: int, keep: bool = False) -> None:
        self.keep = keep
        self.examples: Tensor | None = None
        self.names = names_of(attack)
        self.broken_by = torch.full((n,), -1, dtype=torch.int64, device="cpu")
        self.costs = [Cost()] * len(self.names)

    def add(self, rows: slice, result: AttackResult, hit: Tensor, seconds: float) -> None:
        """Add the result of a batch.

        Args:
            rows: The samples of the batch.
            result: The result of the attack.
            hit: bool [B], the samples that are broken by the judgement of the model itself.
            seconds: Time that the batch took, for an attack that does not measure the time of its parts.
        """
        if self.keep:
            if self.examples is None:
                self.examples = result.x_adv.new_zeros(len(self.broken_by), *result.x_adv.shape[1:], device="cpu")
            self.examples[rows] = result.x_adv.cpu()
        by = torch.zeros_like(hit, dtype=torch.int64)
        if result.broken_by is not None:
            # An example that only the model itself finds misclassified is that of the first attack.
            by = result.broken_by.clamp(min=0).long()
        self.broken_by[rows] = torch.where(hit, by, -1).cpu()
        own = [Cost(result.samples_forwarded, result.samples_backwarded, seconds)]
        for i, cost in enumerate(result.costs.values() if result.broken_by is not None else own):
            self.costs[i] += cost

    def take_over(self, rows: Tensor, again: Tally) -> None:
        """Take the outcome of another attempt at some of the samples.

        Args:
            rows: int64 [m], the samples.
            again: Its outcome, for m samples.
        """
        self.broken_by[rows] = again.broken_by
        if self.examples is not None and again.examples is not None:
            self.examples[rows] = again.examples
        self.costs = [cost + more for cost, more in zip(self.costs, again.costs, strict=True)]

    def after_each(self, n: int) -> tuple[AfterAttack, ...]:
        """Return the breakdown.

        Args:
            n: Number of all samples, of which the accuracy is a share.
        """
        left, rows = len(self.broken_by), []
        for i, (name, cost) in enumerate(zip(self.names, self.costs, strict=True)):
            broken = int((self.broken_by == i).sum())
            passes = cost.samples_forwarded, cost.samples_backwarded
            rows.append(AfterAttack(name, left, broken, Share(left - broken, n), *passes, cost.seconds))
            left -= broken
        return tuple(rows)
