"""Several attacks in turn, each on what those before it left standing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat.attacks.base import Attack, numbered
from advfeat.attacks.result import AttackResult
from advfeat.threat import Threat


@dataclass(frozen=True, eq=False)
class Ensemble(Attack):
    """The worst of several attacks, at little more than the cost of the first where that breaks most samples.

        threat = advfeat.L2(0.25)
        attack = advfeat.Ensemble((
            advfeat.PGD(threat, steps=20, keep="best"),
            advfeat.PGD(threat, steps=20, keep="best", objective=advfeat.CW()),
        ))

    One loss may find what another misses: two that lead in different directions say more than twice the steps of one.

    attacks: at least one, all with the same threat, and all targeted or none. A sample that one of them breaks is not
    attacked by the next. Of a sample that none breaks, the example and its ``value`` are the first attack's; else they
    are those of the attack that broke it, and ``value`` is in terms of that attack's objective.
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        attacks = tuple(self.attacks)
        object.__setattr__(self, "attacks", attacks)
        if not attacks:
            raise ValueError("attacks should be at least one")
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks should be attacks, such as advfeat.PGD(...), got {type(attack).__name__}")
            size = getattr(attack, "step_size", None)
            if isinstance(size, Tensor) and size.dim() > 0:
                raise ValueError("attacks should have one step_size for all samples: the later ones see only some")
        for name, seen in (("threat", _threat), ("targeted", _targeted)):
            if len({seen(attack) for attack in attacks}) > 1:
                raise ValueError(
                    f"attacks should all have the same {name}, got {', '.join(str(getattr(a, name)) for a in attacks)}"
                )

    @property
    def threat(self) -> Threat:
        """Of all the attacks."""
        return self.attacks[0].threat

    @property
    def targeted(self) -> bool:
        """Of all the attacks."""
        return self.attacks[0].targeted

    @property
    def autocast(self) -> torch.dtype | None:
        """Of the first attack that has one; successes in low precision are to be looked at again."""
        return next((attack.autocast for attack in self.attacks if attack.autocast is not None), None)

    def replace(self, **changes) -> Ensemble:
        """A copy with other ``attacks``, or with settings changed in each of them."""
        if "attacks" in changes:
            return dataclasses.replace(self, **changes)
        return Ensemble(tuple(attack.replace(**changes) for attack in self.attacks))

    def to_dict(self) -> dict:
        return {
            "attack": "Ensemble",
            **self.threat.to_dict(),
            "targeted": self.targeted,
            "attacks": [attack.to_dict() for attack in self.attacks],
        }

    def run(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        *,
        start: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> AttackResult:
        """The adversarial examples with their statistics; arguments as for :meth:`advfeat.PGD.run`, and a ``start`` is
        every attack's. Counts are of all attacks, ``first_success`` of the one that broke the sample.
        Errors: as those of the attacks; ValueError where the first cannot tell a success."""
        ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids
        found = self.attacks[0].run(model, x, target, start=start, sample_ids=ids)
        self._rest(model, [(x, target, ids, found)], start)
        return found

    def over(self, model: Callable, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[AttackResult]:
        """As :meth:`advfeat.PGD.over`. What the first attack leaves of several batches goes to the next together, so
        that their passes are full too."""
        if isinstance(self.threat.eps, Tensor) and self.threat.eps.dim() > 0:
            yield from super().over(model, batches)
            return
        under_attack: list[tuple[Tensor, Tensor, Tensor]] = []

        def first() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for batch in numbered(batches):
                # A copy: a loader may use its tensor again before the later attacks have seen it.
                under_attack.append(tuple(part.detach().clone() for part in batch))
                yield batch

        waiting: list[tuple[Tensor, Tensor, Tensor, AttackResult]] = []
        for found in self.attacks[0].over(model, first()):
            waiting.append((*under_attack.pop(0), found))
            left = sum(int((~_success(result)).sum()) for *_, result in waiting)
            if left >= waiting[0][0].shape[0]:
                self._rest(model, waiting)
                yield from (result for *_, result in waiting)
                waiting = []
        self._rest(model, waiting)
        yield from (result for *_, result in waiting)

    def _rest(
        self,
        model: Callable,
        batches: list[tuple[Tensor, Tensor, Tensor, AttackResult]],
        start: Tensor | None = None,
    ) -> None:
        """Runs the attacks after the first on what is left of some batches, and writes what they find into the
        batches' results. start: of the only batch."""
        for attack in self.attacks[1:]:
            rows = [(~_success(found)).nonzero()[:, 0] for *_, found in batches]
            counts = [part.numel() for part in rows]
            if not sum(counts):
                return
            x, target, ids = (
                torch.cat([batch[i][part] for batch, part in zip(batches, rows, strict=True)]) for i in range(3)
            )
            if isinstance(self.threat.eps, Tensor):
                attack = attack.replace(threat=self.threat.to(x.device).rows(rows[0]))
            more = attack.run(model, x, target, start=None if start is None else start[rows[0]], sample_ids=ids)
            _success(more)
            for (*_, found), part, new in zip(batches, rows, more.split(counts), strict=True):
                found.take_over(part, new)


def _threat(attack: Attack) -> str:
    return str(attack.threat.to_dict())


def _targeted(attack: Attack) -> bool:
    return attack.targeted


def _success(found: AttackResult) -> Tensor:
    """Whether each sample was broken, bool [B]."""
    if found.success is None:
        raise ValueError("attacks should tell successes: the target should be labels and the objective use the logits")
    return found.success
