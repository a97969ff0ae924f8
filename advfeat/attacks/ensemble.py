"""Several attacks in turn, each on what those before it left standing."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advfeat.attacks.base import Attack, Batch
from advfeat.attacks.context import Run
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective
from advfeat.threat import Threat

# Batches of which little is left wait for each other, so that the next attack's passes are full; each holds its result.
_WAITING = 8


class InTurn(Attack):
    """Base class of what is a list of attacks, run one after the other: :class:`Ensemble`, :class:`advfeat.Auto`.

    A sample that one of them breaks is not attacked by the next. Of a sample that none breaks, the example and its
    ``value`` are those of the first attack that takes steps. A ``start`` is every attack's. Counts are of all attacks,
    ``first_success`` of the one that broke the sample.

    attacks: at least one, all with one threat. Each has to tell its successes.
    """

    attacks: tuple[Attack, ...]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Of all the attacks, one after the other."""
        return tuple(objective for attack in self.attacks for objective in attack.objectives)

    @property
    def takes_start(self) -> bool:
        """Whether all of them do."""
        return all(attack.takes_start for attack in self.attacks)

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """As :meth:`advfeat.attacks.Attack.check`."""
        if start is not None and not self.takes_start:
            raise ValueError("start should be None: one of the attacks has random starts of its own")
        if start is not None:
            for attack in self.attacks[1:]:
                attack.check(x, target, start, sample_ids)
        return self.attacks[0].check(x, target, start, sample_ids)

    def _run(self, run: Run) -> AttackResult:
        """Errors: as those of the attacks; ValueError where the first cannot tell a success."""
        found = self.attacks[0].part_of(run)
        rows = (~_success(found)).nonzero()[:, 0]
        for before, attack in zip(self.attacks, self.attacks[1:], strict=False):
            if rows.numel() == 0:
                break
            more = attack.part_of(run.rows(rows))
            found.take_over(rows, more, failures=_only_looks(before))
            rows = rows[~_success(more)]
        return found

    def _over(self, model: Callable, batches: Iterator[Batch]) -> Iterator[tuple[Any, AttackResult]]:
        """What an attack leaves of several batches goes to the next together, so that its passes are full too; up to
        eight batches wait for that."""
        if isinstance(self.threat.eps, Tensor) and self.threat.eps.dim() > 0:
            yield from super()._over(model, batches)
            return

        def first() -> Iterator[Batch]:
            for batch in batches:
                # A copy: a loader may use its tensor again before the later attacks have seen it.
                x, target, ids = (part.detach().clone() for part in batch[:3])
                yield Batch(x, target, ids, True, (batch.given, x, target, ids))

        waiting: deque[_Left] = deque()
        size = 0
        for (given, x, target, ids), found in self.attacks[0]._over(model, first()):
            size = size or x.shape[0]
            if waiting and waiting[0].x.shape[1:] != x.shape[1:]:  # images of another size go on their own
                self._go_on(model, waiting, at_least=1)
            waiting.append(_Left.of(given, found, x, target, ids))
            self._go_on(model, waiting, at_least=size if len(waiting) < _WAITING else 1)
            while waiting and self._is_done(waiting[0]):
                left = waiting.popleft()
                yield left.given, left.found
        self._go_on(model, waiting, at_least=1)
        yield from ((left.given, left.found) for left in waiting)

    def _go_on(self, model: Callable, batches: Collection[_Left], at_least: int) -> None:
        """Runs each attack after the first on what is left for it of all batches together, where that is so many
        samples at least, and writes what it finds into the batches' results."""
        for turn, attack in enumerate(self.attacks[1:], start=1):
            some = [left for left in batches if left.turn == turn and len(left.rows)]
            if sum(len(left.rows) for left in some) < max(at_least, 1):
                continue
            x, target, ids = (torch.cat([getattr(left, name) for left in some]) for name in ("x", "target", "ids"))
            more = attack.run(model, x, target, sample_ids=ids)
            _success(more)
            for left, new in zip(some, more.split([len(left.rows) for left in some]), strict=True):
                left.found.take_over(left.rows, new, failures=_only_looks(self.attacks[turn - 1]))
                left.keep(~new.success)
                left.turn += 1

    def _is_done(self, left: _Left) -> bool:
        return not len(left.rows) or left.turn == len(self.attacks)


@dataclass(frozen=True, eq=False)
class Ensemble(InTurn):
    """The worst of several attacks, at little more than the cost of the first where that breaks most samples.

        threat = advfeat.L2(0.25)
        attack = advfeat.Ensemble((
            advfeat.PGD(threat, steps=20, keep="best"),
            advfeat.PGD(threat, steps=20, keep="best", objective=advfeat.CW()),
        ))

    One loss may find what another misses: two that lead in different directions say more than twice the steps of one.

    attacks: at least one, all with the same threat, and all targeted or none. A sample that one of them breaks is not
    attacked by the next. Of a sample that none breaks, the example and its ``value`` are those of the first attack that
    takes steps; else they are those of the attack that broke it, and ``value`` is in terms of that attack's objective.
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
        """As :meth:`advfeat.attacks.Attack.to_dict`, with what all of its attacks have in common."""
        own = super().to_dict()
        return {"attack": own.pop("attack"), **self.threat.to_dict(), "targeted": self.targeted, **own}

    @property
    def lacks_seed(self) -> bool:
        """As :attr:`advfeat.attacks.Attack.lacks_seed`: whether one of the attacks does."""
        return any(attack.lacks_seed for attack in self.attacks)

    def with_seed(self, seed: int) -> Ensemble:
        """As :meth:`advfeat.attacks.Attack.with_seed`."""
        return dataclasses.replace(self, attacks=tuple(attack.with_seed(seed) for attack in self.attacks))


@dataclass
class _Left:
    """What is left of a batch after some attacks: the rows of its result, and their samples.

    turn: the number of the attack that is next.
    """

    given: Any
    found: AttackResult
    rows: Tensor
    x: Tensor
    target: Tensor
    ids: Tensor
    turn: int = 1

    @classmethod
    def of(cls, given: Any, found: AttackResult, x: Tensor, target: Tensor, ids: Tensor) -> _Left:
        every = torch.arange(x.shape[0], device=x.device)
        left = cls(given, found, every, x, target, ids)
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


def _only_looks(attack: Attack) -> bool:
    """Whether it takes no step, so that what comes next has the better example."""
    return getattr(attack, "steps", 1) == 0
