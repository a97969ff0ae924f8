"""The first two attacks of AutoAttack (Croce and Hein 2020), one after the other on what is left standing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat.attacks.apgd import APGD
from advfeat.attacks.base import Attack, check_settings, take_integer
from advfeat.attacks.context import Run
from advfeat.attacks.pgd import PGD
from advfeat.attacks.result import AttackResult
from advfeat.objectives import TargetedDLR
from advfeat.threat import Threat


@dataclass(frozen=True, eq=False)
class Auto(Attack):
    """APGD on the margin, then APGD towards each of the strongest other classes by the targeted DLR.

        result = advfeat.Auto(advfeat.L2(0.5)).run(model, x, y)

    What AutoAttack's standard version does first, with the margin for the cross-entropy (the same direction, without
    its saturation) and starts inside the ball. Its FAB and Square attacks are not here, so what is left
    standing is an upper bound of what AutoAttack leaves. Fewer than four classes: the margin alone.

    threat: with a finite eps. steps: of each run. target_classes: at most this many targets, the strongest first at x.
    restarts: of the first attack. seed, autocast, graph: as for :class:`advfeat.APGD`. Every run attacks only samples
    that none before has broken, and none those that the model has wrong at x: they stay as they are, with
    ``first_success`` 0. Costs up to ``steps * (restarts + target_classes)`` gradients a sample.
    """

    threat: Threat
    steps: int = 100
    target_classes: int = 9
    restarts: int = 1
    seed: int = 0
    autocast: torch.dtype | None = None
    graph: bool = True

    random_start = True
    targeted = False
    takes_start = False

    def __post_init__(self) -> None:
        check_settings(self)
        take_integer(self, "target_classes", 0)

    def to_dict(self) -> dict:
        return {
            "attack": "Auto",
            **self.threat.to_dict(),
            "steps": self.steps,
            "objective": "Margin, TargetedDLR",
            "target_classes": self.target_classes,
            "restarts": self.restarts,
            "targeted": False,
            "seed": self.seed,
            "autocast": str(self.autocast).removeprefix("torch.") if self.autocast else None,
        }

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """As :meth:`advfeat.attacks.Attack.check`."""
        if start is not None:
            raise ValueError("start should be None: every run has random starts of its own")
        return self._look().check(x, target, start, sample_ids)

    def _run(self, run: Run) -> AttackResult:
        """``value`` is the margin's where that broke the sample, and the targeted DLR's elsewhere if that did."""
        common = {"steps": self.steps, "autocast": self.autocast, "graph": self.graph}
        found = self._look().part_of(run)
        rows = (~found.success).nonzero()[:, 0]
        if rows.numel() == 0:
            return found
        first = APGD(self.threat, restarts=self.restarts, seed=self.seed, **common)
        found.why_eager = None  # nothing to say of a look at x
        found.take_over(rows, first.part_of(run.rows(rows)), failures=True)
        classes = self._classes(run)
        for rank in range(classes.shape[1]):
            rows = (~found.success & (classes[:, rank] >= 0)).nonzero()[:, 0]
            if rows.numel() == 0:
                continue
            attack = APGD(self.threat, objective=TargetedDLR(), seed=self.seed + 1 + rank, **common)
            pairs = torch.stack([run.target[rows], classes[rows, rank]], dim=1)
            found.take_over(rows, attack.part_of(run.rows(rows, pairs)))
        return found

    def _look(self) -> PGD:
        """The attack that only looks at x."""
        return PGD(self.threat, steps=0, autocast=self.autocast)

    def _classes(self, run: Run) -> Tensor:
        """The other classes by their logits at x, the largest first: int64 [B, target_classes or fewer].

        -1 for classes that are out (-inf), and for samples with fewer than the four that the targeted DLR compares.
        """
        with torch.no_grad():
            logits = run.model(run.x0).float()
        if logits.shape[1] < 4:
            return torch.empty(len(run), 0, dtype=torch.int64, device=logits.device)
        others = logits.scatter(1, run.target[:, None], float("-inf"))
        values, classes = others.sort(dim=1, descending=True)
        out = (values == -torch.inf) | ((logits > -torch.inf).sum(dim=1, keepdim=True) < 4)
        return classes.masked_fill(out, -1)[:, : min(self.target_classes, logits.shape[1] - 1)]
