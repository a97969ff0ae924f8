"""The first two attacks of AutoAttack (Croce and Hein 2020), each run on the samples that survive the one before."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from advfeat.attacks.apgd import APGD
from advfeat.attacks.base import Attack, GivenObjective, check_settings, take_integer
from advfeat.attacks.context import Run
from advfeat.attacks.ensemble import InTurn
from advfeat.attacks.pgd import PGD
from advfeat.attacks.record import Record
from advfeat.attacks.result import AttackResult
from advfeat.attacks.target_order import TargetOrder, check_target_order, other_classes, ranks_at_once
from advfeat.objectives import TargetedDLR
from advfeat.settings import CHANGES_NO_RESULT, OMITTED_AT_DEFAULT
from advfeat.threat import Threat


@dataclass(frozen=True, eq=False)
class Auto(InTurn):
    """APGD on the margin, then targeted APGD on the DLR loss towards each of the strongest other classes.

    This is the first part of AutoAttack's standard version, with the margin in place of the cross-entropy (the same
    direction, without its saturation) and random starts from the whole ball, not its surface. AutoAttack's FAB and
    Square attacks are not included, so the accuracy under this attack is an upper bound on that under AutoAttack. With
    fewer than four classes only the margin is run.

    Each run attacks only the samples that no earlier run has broken. Samples that the model misclassifies at x stay
    unchanged, with ``first_success`` 0. ``value`` is the margin if the first run broke the sample or no run did,
    otherwise the targeted DLR. Costs up to ``steps * (restarts + target_classes)`` gradients per sample.

    Args:
        threat: :class:`advfeat.Linf`, :class:`advfeat.L2` or :class:`advfeat.L1` with a finite eps, in pixel scale.
        steps: gradient steps per run.
        target_classes: the largest number of target classes: the other classes with the largest logits at x, in that
            order.
        target_order: "logits", or "malt" for the order of MALT (Melamed, Yehudai and Shamir 2024): first the classes
            whose boundaries would be nearest if the model were linear, at the cost of one backward pass per class. It
            makes a difference only if not all other classes are attacked, by default for models with eleven classes or
            more.
        restarts: of the first attack.
        seed: as for :class:`advfeat.APGD`.
        autocast: as for :class:`advfeat.APGD`.
        graph: as for :class:`advfeat.APGD`.

    Attributes:
        objective: the names of the objectives, as recorded beside a result.
        targeted: always False.

    Example:
        result = advfeat.Auto(advfeat.L2(0.5)).run(model, x, y)
    """

    threat: Threat
    steps: int = 100
    objective: str = field(default="Margin, TargetedDLR", init=False)  # recorded beside a result
    target_classes: int = 9
    target_order: TargetOrder = field(default="logits", metadata=OMITTED_AT_DEFAULT)
    restarts: int = 1
    targeted: bool = field(default=False, init=False)
    seed: int = 0
    autocast: torch.dtype | None = None
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)

    random_start = True
    objectives = ()  # none written by a user
    takes_start = False

    def __post_init__(self) -> None:
        check_settings(self)
        take_integer(self, "target_classes", 0)
        check_target_order(self.target_order)

    @cached_property
    def attacks(self) -> tuple[Attack, ...]:
        """An evaluation at x, APGD on the margin, then APGD towards each target class in order of its logit."""
        threat, targets = self.threat, self.target_classes
        more: dict[str, Any] = {"steps": self.steps, "autocast": self.autocast, "graph": self.graph}
        first = APGD(threat, restarts=self.restarts, seed=self.seed, **more)
        if self.target_order == "logits":
            then = ranked(targets, threat, seed=self.seed + 1, **more)
        elif targets:  # one attack for all ranks: the order is computed once
            then = (RankedAPGD(threat, ranks=targets, target_order="malt", seed=self.seed + 1, **more),)
        else:
            then = ()
        return (PGD(threat, steps=0, autocast=self.autocast), first, *then)

    @property
    def names(self) -> tuple[str, ...]:
        """See :class:`InTurn`: "apgd-margin", then "apgd-t" for each target class."""
        return ("", "apgd-margin", *("apgd-t" for _ in self.attacks[2:]))


@dataclass(frozen=True, eq=False)
class RankedAPGD(APGD):
    """APGD towards other classes of each sample in turn, on the targeted DLR loss.

    Samples stay unchanged if they have no class of this rank, or fewer than the four classes that the loss compares.

    Args:
        objective: the targeted DLR loss; the other settings are as for :class:`advfeat.APGD`.
        rank: 0 for the other class with the largest logit at x, 1 for the second largest, and so on.
        ranks: so many classes from this rank on, each for the samples that those before leave. Several of them share
            a batch where they find room.
        target_order: see :class:`Auto`.
    """

    objective: GivenObjective = field(default_factory=cast("Any", TargetedDLR))
    rank: int = 0
    ranks: int = field(default=1, metadata=OMITTED_AT_DEFAULT)
    target_order: TargetOrder = field(default="logits", metadata=OMITTED_AT_DEFAULT)

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """See :meth:`advfeat.attacks.Attack.check`; ``target`` holds labels, from which the loss's pairs are made."""
        of_labels = APGD(self.threat, steps=self.steps, random_start=self.random_start, restarts=self.restarts)
        return of_labels.check(x, target, start, sample_ids)

    def _run(self, run: Run) -> AttackResult:
        logits, forwarded = run.logits_at_x()
        found = run.result(Record(run.x0, self.targeted), forwarded=forwarded, backwarded=0)
        if logits.shape[1] < max(4, self.rank + 1):  # too few classes for the loss
            return found
        classes, exist, more, backwarded = other_classes(run, logits, self.target_order, self.rank + self.ranks)
        found.samples_forwarded, found.samples_backwarded = forwarded + more, backwarded
        enough = (logits > -torch.inf).sum(dim=1) >= 4  # a class whose logit is -inf is excluded
        left = enough.clone()
        last = min(self.rank + self.ranks, classes.shape[1])
        room = run.room if self.restarts == 1 else 0  # later starts are for those that the first has left
        for ranks in ranks_at_once(self.rank, last, room, lambda: int(left.sum())):
            rows = [(exist[:, k] & left).nonzero()[:, 0] for k in ranks]
            together = torch.cat(rows)
            if not together.numel():
                continue
            others = torch.cat([classes[of_rank, k] for k, of_rank in zip(ranks, rows, strict=True)])
            part = run.rows(together, torch.stack([run.target[together], others], dim=1))
            counts = [len(of_rank) for of_rank in rows]
            part.seeds = [((self.seed or 0) + k - self.rank, count) for k, count in zip(ranks, counts, strict=True)]
            results = APGD._run(self, part).split(counts)
            for k, of_rank, result in zip(ranks, rows, results, strict=True):
                # As if one came after the other: a class counts only where none before it was reached.
                result = result.at(left[of_rank])
                of_rank = of_rank[left[of_rank]]
                found.take_over(of_rank, result, failures=k == self.rank)
                assert result.success is not None
                left[of_rank[result.success]] = False
        return found


def ranked(targets: int, threat: Threat, seed: int, **settings: Any) -> tuple[RankedAPGD, ...]:
    """APGD towards each of so many classes: the first, which breaks the most, and the others.

    Args:
        targets: how many classes.
        threat: the threat model.
        seed: of the first class; those that follow have the next numbers.
        **settings: of :class:`RankedAPGD`.

    Returns:
        At most two attacks, so that the samples that the first leaves can be pooled for the second.
    """
    first = RankedAPGD(threat, rank=0, seed=seed, **settings)
    others = RankedAPGD(threat, rank=1, ranks=max(targets - 1, 1), seed=seed + 1, **settings)
    return (first, others)[: min(targets, 2)]
