"""AutoAttack (Croce and Hein 2020): four attacks in turn, each on the samples that survive those before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch

from advfeat._arguments import flag
from advfeat.attacks.apgd import APGD
from advfeat.attacks.auto import ranked
from advfeat.attacks.base import Attack, check_settings
from advfeat.attacks.ensemble import InTurn
from advfeat.attacks.fab import FAB
from advfeat.attacks.pgd import PGD
from advfeat.attacks.square import Square
from advfeat.objectives import DLR, CrossEntropy
from advfeat.settings import CHANGES_NO_RESULT
from advfeat.threat import L1, Threat

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
}
_TARGETS, _QUERIES, _STEPS = 9, 5000, 100


@dataclass(frozen=True, eq=False)
class AutoAttack(InTurn):
    """AutoAttack: Auto-PGD on the cross-entropy, targeted Auto-PGD, FAB-T and Square, with its published settings.

    Samples that the model misclassifies at x stay unchanged. The standard version runs, for 100 steps each,

    * ``apgd-ce``: Auto-PGD on the cross-entropy, one start (L1: five starts, each through larger radii first, Croce and
      Hein 2021);
    * ``apgd-t``: Auto-PGD on the targeted DLR loss, towards each of the nine other classes with the largest logits at x
      (L1: five classes, through larger radii first);
    * ``fab-t``: FAB towards each of nine classes;
    * ``square``: 5,000 queries, without gradients.

    ``plus`` runs apgd-ce, apgd-dlr and FAB towards all classes with five starts each, Square, apgd-t and fab-t. The
    numbers agree with those of the authors' code up to its spread over seeds; the random numbers differ from theirs,
    since they are keyed by sample and do not depend on the batch. Starts are uniform in the ball, where the authors'
    lie on its surface. With fewer than four classes the DLR losses are left out, since their denominators need more
    logits.

    Args:
        threat: :class:`advfeat.Linf`, :class:`advfeat.L2` or :class:`advfeat.L1` with a finite eps.
        version: "standard" or "plus".
        seed: of all random numbers.
        autocast: as for :class:`advfeat.PGD`.
        bf16_queries: for Square: run its queries in bfloat16 where the device computes that natively, and confirm each
            success without bfloat16; see :class:`advfeat.Square`.
        graph: as for :class:`advfeat.PGD`.

    Attributes:
        objective: the names of the attacks, as recorded beside a result.
        targeted: always False.

    Raises:
        ValueError: ``version`` is neither "standard" nor "plus", or eps is infinite.

    Example:
        result = advfeat.AutoAttack(advfeat.Linf(8 / 255)).run(model, x, y)
    """

    threat: Threat
    version: Literal["standard", "plus"] = "standard"
    objective: str = field(default="", init=False)  # recorded beside a result
    targeted: bool = field(default=False, init=False)
    seed: int = 0
    autocast: torch.dtype | None = None
    bf16_queries: bool = True
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)

    random_start = True
    restarts = 1
    steps = _STEPS
    objectives = ()  # none written by a user
    takes_start = False

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ValueError(f'version should be "standard" or "plus", got {self.version!r}')
        check_settings(self)
        object.__setattr__(self, "bf16_queries", flag("bf16_queries", self.bf16_queries))
        object.__setattr__(self, "objective", ", ".join(name for name, _ in self.parts))

    @cached_property
    def parts(self) -> tuple[tuple[str, tuple[Attack, ...]], ...]:
        """The attacks of each name, in the order in which they run."""
        threat, in_l1 = self.threat, isinstance(self.threat, L1)
        more: dict[str, Any] = {"autocast": self.autocast, "graph": self.graph}
        many = 5 if self.version == "plus" else 1
        restarts = 5 if in_l1 else many

        def untargeted(objective: CrossEntropy | DLR, seed: int) -> Attack:
            own: dict[str, Any] = {"restarts": restarts, "large_radii": in_l1, "seed": seed}
            return APGD(threat, steps=_STEPS, objective=objective, **own, **more)

        found: dict[str, tuple[Attack, ...]] = {
            "apgd-ce": (untargeted(CrossEntropy(), self.seed),),
            "apgd-dlr": (untargeted(DLR(), self.seed + 1),),
            "apgd-t": ranked(
                5 if in_l1 else _TARGETS, threat, steps=_STEPS, large_radii=in_l1, seed=self.seed + 2, **more
            ),
            "fab": (FAB(threat, steps=_STEPS, restarts=many, seed=self.seed, **more),),
            "fab-t": (FAB(threat, steps=_STEPS, targets=_TARGETS, seed=self.seed, **more),),
            "square": (Square(threat, steps=_QUERIES, seed=self.seed, bf16_queries=self.bf16_queries, **more),),
        }
        return tuple((name, found[name]) for name in VERSIONS[self.version])

    @cached_property
    def attacks(self) -> tuple[Attack, ...]:
        """An evaluation at x, then the attacks of :attr:`parts` in turn."""
        look = PGD(self.threat, steps=0, autocast=self.autocast)
        return (look, *(attack for _, attacks in self.parts for attack in attacks))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """See :class:`InTurn`: the names of :attr:`parts`, each once for each of its attacks."""
        return ("", *(name for name, attacks in self.parts for _ in attacks))
