"""The first two attacks of AutoAttack (Croce and Hein 2020), one after the other on what is left standing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from advfeat.attacks.apgd import APGD
from advfeat.attacks.base import Attack, check_settings, take_integer
from advfeat.attacks.context import Run
from advfeat.attacks.ensemble import InTurn
from advfeat.attacks.pgd import PGD
from advfeat.attacks.record import Record
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective, TargetedDLR
from advfeat.settings import CHANGES_NO_RESULT
from advfeat.threat import Threat


@dataclass(frozen=True, eq=False)
class Auto(InTurn):
    """APGD on the margin, then APGD towards each of the strongest other classes by the targeted DLR.

        result = advfeat.Auto(advfeat.L2(0.5)).run(model, x, y)

    What AutoAttack's standard version does first, with the margin for the cross-entropy (the same direction, without
    its saturation) and starts inside the ball. Its FAB and Square attacks are not here, so what is left
    standing is an upper bound of what AutoAttack leaves. Fewer than four classes: the margin alone.

    threat: with a finite eps. steps: of each run. target_classes: at most this many targets, the strongest first at x.
    restarts: of the first attack. seed, autocast, graph: as for :class:`advfeat.APGD`. Every run attacks only samples
    that none before has broken, and none those that the model has wrong at x: they stay as they are, with
    ``first_success`` 0. ``value`` is the margin's where that broke the sample or none did, else the targeted DLR's.
    Costs up to ``steps * (restarts + target_classes)`` gradients a sample.
    """

    threat: Threat
    steps: int = 100
    objective: str = field(default="Margin, TargetedDLR", init=False)  # what is written beside a number
    target_classes: int = 9
    restarts: int = 1
    targeted: bool = field(default=False, init=False)
    seed: int = 0
    autocast: torch.dtype | None = None
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)

    random_start = True
    objectives = ()  # none that a user wrote
    takes_start = False

    def __post_init__(self) -> None:
        check_settings(self)
        take_integer(self, "target_classes", 0)

    @cached_property
    def attacks(self) -> tuple[Attack, ...]:
        """A look at x, APGD on the margin, and APGD towards the strongest other class, the second, and so on."""
        common = {"steps": self.steps, "autocast": self.autocast, "graph": self.graph}
        return (
            PGD(self.threat, steps=0, autocast=self.autocast),
            APGD(self.threat, restarts=self.restarts, seed=self.seed, **common),
            *(RankedAPGD(self.threat, rank=k, seed=self.seed + 1 + k, **common) for k in range(self.target_classes)),
        )


@dataclass(frozen=True, eq=False)
class RankedAPGD(APGD):
    """APGD towards one other class of each sample, by the targeted DLR loss.

    rank: 0 for the other class with the largest logit at x, 1 for the second, and so on. Samples that have no such
    class, or fewer than the four classes that the loss compares, stay as they are.
    """

    objective: Objective = field(default_factory=TargetedDLR)
    rank: int = 0

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """As :meth:`advfeat.attacks.Attack.check`; ``target`` holds labels, and the loss's pairs come of them."""
        of_labels = APGD(self.threat, steps=self.steps, random_start=self.random_start, restarts=self.restarts)
        return of_labels.check(x, target, start, sample_ids)

    def _run(self, run: Run) -> AttackResult:
        logits, forwarded = run.logits_at_x()
        found = run.result(Record(run.x0, self.targeted), forwarded=forwarded, backwarded=0)
        if logits.shape[1] < max(4, self.rank + 1):  # what the loss needs
            return found
        values, classes = logits.scatter(1, run.target[:, None], float("-inf")).sort(dim=1, descending=True)
        # A class whose logit is -inf is out.
        has_one = (values[:, self.rank] != -torch.inf) & ((logits > -torch.inf).sum(dim=1) >= 4)
        rows = has_one.nonzero()[:, 0]
        if rows.numel():
            pairs = torch.stack([run.target[rows], classes[rows, self.rank]], dim=1)
            found.take_over(rows, super()._run(run.rows(rows, pairs)), failures=True)
        return found
