"""Several attacks in turn, each on what those before it left standing."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat.attacks.base import Attack, numbered
from advfeat.attacks.context import Run
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective
from advfeat.seeds import fresh_seed
from advfeat.threat import Threat

# Batches of which little is left wait for each other, so that the next attack's passes are full; each holds its result.
_WAITING = 8


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
        if isinstance(self.attacks, Attack) or not hasattr(self.attacks, "__iter__"):
            raise TypeError(f"attacks should be a list of attacks, got {type(self.attacks).__name__}")
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
        # By what is written down of them: a threat may hold tensors.
        for name, values in (
            ("threat", [str(attack.threat.to_dict()) for attack in attacks]),
            ("targeted", [str(attack.targeted) for attack in attacks]),
        ):
            if len(set(values)) > 1:
                raise ValueError(f"attacks should all have the same {name}, got {', '.join(values)}")

    @property
    def threat(self) -> Threat:
        """Of all the attacks."""
        return self.attacks[0].threat

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Of all the attacks, one after the other."""
        return tuple(objective for attack in self.attacks for objective in attack.objectives)

    @property
    def targeted(self) -> bool:
        """Of all the attacks."""
        return self.attacks[0].targeted

    @property
    def autocast(self) -> torch.dtype | None:
        """Of the first attack that has one; successes in low precision are to be looked at again."""
        return next((attack.autocast for attack in self.attacks if attack.autocast is not None), None)

    @property
    def takes_start(self) -> bool:
        """Whether all of them do."""
        return all(attack.takes_start for attack in self.attacks)

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

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """As :meth:`advfeat.attacks.Attack.check`."""
        if start is not None and not self.takes_start:
            raise ValueError("start should be None: an attack of the ensemble has random starts of its own")
        if start is not None:
            for attack in self.attacks[1:]:
                attack.check(x, target, start, sample_ids)
        return self.attacks[0].check(x, target, start, sample_ids)

    def _run(self, run: Run) -> AttackResult:
        """A ``start`` is every attack's. Counts are of all attacks, ``first_success`` of the one that broke the sample.
        Errors: as those of the attacks; ValueError where the first cannot tell a success."""
        found = self.attacks[0].part_of(run)
        rows = (~_success(found)).nonzero()[:, 0]
        for attack in self.attacks[1:]:
            if rows.numel() == 0:
                break
            more = attack.part_of(run.rows(rows))
            found.take_over(rows, more)
            rows = rows[~_success(more)]
        return found

    def _seeded(self, fresh: bool) -> Ensemble:
        """The ensemble of one call without sample ids: attacks with random starts and no seed get new ones."""
        without = [getattr(a, "random_start", False) and a.seed is None for a in self.attacks]
        if not (fresh and any(without)):
            return self
        seed = fresh_seed()
        return self.replace(
            attacks=tuple(a.replace(seed=seed) if w else a for a, w in zip(self.attacks, without, strict=True))
        )

    def over(self, model: Callable, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[AttackResult]:
        """As :meth:`advfeat.PGD.over`. What the first attack leaves of several batches goes to the next together, so
        that their passes are full too; up to eight batches wait for that."""
        rest = iter(batches)
        for batch in rest:
            has_ids = isinstance(batch, (tuple, list)) and len(batch) > 2
            yield from self._seeded(not has_ids)._over(model, itertools.chain([batch], rest))

    def _over(self, model: Callable, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[AttackResult]:
        if isinstance(self.threat.eps, Tensor) and self.threat.eps.dim() > 0:
            yield from super().over(model, batches)
            return
        under_attack: deque[tuple[Tensor, ...]] = deque()

        def first() -> Iterator[tuple[Tensor, ...]]:
            for batch in numbered(batches):
                # A copy: a loader may use its tensor again before the later attacks have seen it.
                under_attack.append(tuple(part.detach().clone() for part in batch))
                yield batch

        waiting: deque[_Left] = deque()
        size = 0
        for found in self.attacks[0].over(model, first()):
            x, target, ids = under_attack.popleft()
            size = size or x.shape[0]
            if waiting and waiting[0].x.shape[1:] != x.shape[1:]:  # images of another size go on their own
                self._rest(model, waiting)
            waiting.append(_Left.of(found, x, target, ids))
            if len(waiting) == _WAITING or sum(len(left.rows) for left in waiting) >= size:
                self._rest(model, waiting)
            while waiting and not len(waiting[0].rows):
                yield waiting.popleft().found
        self._rest(model, waiting)
        yield from (left.found for left in waiting)

    def _rest(self, model: Callable, batches: Collection[_Left]) -> None:
        """Runs the attacks after the first on what is left of some batches, and writes what they find into the
        batches' results. Afterwards nothing is left of them."""
        for attack in self.attacks[1:]:
            some = [left for left in batches if len(left.rows)]
            if not some:
                return
            x, target, ids = (torch.cat([getattr(left, name) for left in some]) for name in ("x", "target", "ids"))
            more = attack.run(model, x, target, sample_ids=ids)
            _success(more)
            for left, new in zip(some, more.split([len(left.rows) for left in some]), strict=True):
                left.found.take_over(left.rows, new)
                left.keep(~new.success)
        for left in batches:
            left.keep(torch.zeros_like(left.rows, dtype=torch.bool))


@dataclass
class _Left:
    """What is left of a batch after some attacks: the rows of its result, and their samples."""

    found: AttackResult
    rows: Tensor
    x: Tensor
    target: Tensor
    ids: Tensor

    @classmethod
    def of(cls, found: AttackResult, x: Tensor, target: Tensor, ids: Tensor) -> _Left:
        every = torch.arange(x.shape[0], device=x.device)
        left = cls(found, every, x, target, ids)
        left.keep(~_success(found))
        return left

    def keep(self, mask: Tensor) -> None:
        """Goes on with some of the rows."""
        for name in ("rows", "x", "target", "ids"):
            setattr(self, name, getattr(self, name)[mask])


def _success(found: AttackResult) -> Tensor:
    """Whether each sample was broken, bool [B]."""
    if found.success is None:
        raise ValueError("attacks should tell successes: the target should be labels and the objective use the logits")
    return found.success
