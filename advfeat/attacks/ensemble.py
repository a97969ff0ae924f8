"""Several attacks in sequence, each run on the samples that survive those before it."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advfeat._stopwatch import Stopwatch
from advfeat.attacks.base import Attack, Batch
from advfeat.attacks.breakdown import Cost
from advfeat.attacks.context import Run, undisturbed
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective
from advfeat.threat import Threat

# Batches with few survivors wait for each other, so that the next attack runs full passes; each keeps its result.
_WAITING = 8


class InTurn(Attack):
    """Base class of attacks that run a list of attacks in sequence: :class:`Ensemble`, :class:`advfeat.Auto`.

    A sample that one attack breaks is not attacked by the next. If none breaks it, its example and ``value`` are those
    of the first attack that takes steps. A ``start`` is passed to every attack. Counts are summed over the attacks;
    ``first_success`` is that of the attack that broke the sample. :attr:`AttackResult.breakdown` says what each attack
    broke, and ``broken_by`` which of them broke a sample.

    Attributes:
        attacks: at least one, all with the same threat. Each must be able to report successes.
        names: the name of each of ``attacks`` in a breakdown, where consecutive attacks of one name count as one; ""
            for an evaluation at x, whose passes count with the attack that follows.
    """

    if TYPE_CHECKING:  # read-only: a field of a frozen dataclass or a property

        @property
        def attacks(self) -> tuple[Attack, ...]:
            """The attacks, in the order in which they run."""

        @property
        def names(self) -> tuple[str, ...]:
            """The name of each of ``attacks`` in a breakdown."""

    @property
    def turns(self) -> tuple[str, ...]:
        """The names in a breakdown, each once."""
        return tuple(dict.fromkeys(name for name in self.names if name))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives of all attacks, concatenated."""
        return tuple(objective for attack in self.attacks for objective in attack.objectives)

    @property
    def takes_start(self) -> bool:
        """Whether all attacks accept a ``start``."""
        return all(attack.takes_start for attack in self.attacks)

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """See :meth:`advfeat.attacks.Attack.check`."""
        if start is not None and not self.takes_start:
            raise ValueError("start should be None: one of the attacks has random starts of its own")
        if start is not None:
            for attack in self.attacks[1:]:
                attack.check(x, target, start, sample_ids)
        return self.attacks[0].check(x, target, start, sample_ids)

    def _run(self, run: Run) -> AttackResult:
        """Runs the attacks in sequence.

        Raises:
            ValueError: the first attack cannot report successes, or as for the attacks.
        """
        began = time.perf_counter()
        found = self.attacks[0].part_of(run)
        rows = (~_success(found)).nonzero()[:, 0]  # waits for the device, so that the time is that of the attack
        self._begin(found, time.perf_counter() - began)
        part = run.rows(rows)
        for turn, attack in enumerate(self.attacks[1:], start=1):
            if rows.numel() == 0:
                break
            began = time.perf_counter()
            more = attack.part_of(part)
            left = (~_success(more)).nonzero()[:, 0]
            self._merge(found, rows, more, turn, time.perf_counter() - began)
            # A part of the part: logits at x that an attack needs are computed for what is left, and kept for the next.
            rows, part = rows[left], part.rows(left)
        return found

    def _begin(self, found: AttackResult, seconds: float) -> None:
        """Starts the breakdown of a result, which is that of the first attack."""
        found.broken_by = torch.where(_success(found), self._position(0), -1).to(torch.int32)
        found.costs = dict.fromkeys(self.turns, Cost())
        self._charge(found, 0, Cost(found.samples_forwarded, found.samples_backwarded, seconds))

    def _merge(self, found: AttackResult, rows: Tensor, more: AttackResult, turn: int, seconds: float) -> None:
        """Merges the result of a further attack on some of the samples, in place."""
        found.take_over(rows, more, failures=_only_looks(self.attacks[turn - 1]))
        assert found.broken_by is not None
        new = torch.full_like(found.broken_by[rows], self._position(turn))
        found.broken_by[rows] = torch.where(_success(more), new, found.broken_by[rows])
        self._charge(found, turn, Cost(more.samples_forwarded, more.samples_backwarded, seconds))

    def _position(self, turn: int) -> int:
        """The position of one of the attacks in a breakdown; -1 for an evaluation at x."""
        return self.turns.index(self.names[turn]) if self.names[turn] else -1

    def _charge(self, found: AttackResult, turn: int, cost: Cost) -> None:
        name = next(name for name in self.names[turn:] if name)
        found.costs[name] += cost

    def _over(self, model: Callable, batches: Iterator[Batch]) -> Iterator[tuple[Any, AttackResult]]:
        """Pools the survivors of several batches for the next attack, so that its passes are full too.

        Up to eight batches wait for that.
        """
        if isinstance(self.threat.eps, Tensor) and self.threat.eps.dim() > 0:
            yield from super()._over(model, batches)
            return

        def first() -> Iterator[Batch]:
            for batch in batches:
                # A copy: a loader may reuse its tensor before the later attacks have seen it.
                x, target, ids = (part.detach().clone() for part in batch[:3])
                yield Batch(x, target, ids, True, (batch.given, x, target, ids))

        waiting: deque[_Left] = deque()
        size, watch, seen = 0, Stopwatch(), 0.0
        for (given, x, target, ids), found in watch.of(self.attacks[0]._over(model, watch.without(first()))):
            size = size or x.shape[0]
            if waiting and waiting[0].x.shape[1:] != x.shape[1:]:  # images of different sizes cannot share a batch
                self._go_on(model, waiting, 1, size)
            waiting.append(_Left.of(given, found, x, target, ids))
            self._begin(found, watch.seconds - seen)
            seen = watch.seconds
            self._go_on(model, waiting, size if len(waiting) < _WAITING else 1, size)
            while waiting and self._is_done(waiting[0]):
                left = waiting.popleft()
                yield left.given, left.found
        self._go_on(model, waiting, 1, size)
        yield from ((left.given, left.found) for left in waiting)

    def _go_on(self, model: Callable, batches: Collection[_Left], at_least: int, room: int) -> None:
        """Runs each attack after the first on its pooled survivors, if there are at least ``at_least``.

        Writes the findings into the results of the batches; ``room`` is the size of a batch.
        """
        for turn, attack in enumerate(self.attacks[1:], start=1):
            some = [left for left in batches if left.turn == turn and len(left.rows)]
            if sum(len(left.rows) for left in some) < max(at_least, 1):
                continue
            x, target, ids = (torch.cat([getattr(left, name) for left in some]) for name in ("x", "target", "ids"))
            counts = [len(left.rows) for left in some]
            began = time.perf_counter()
            with undisturbed(attack, model, x.device):
                run = Run(attack, model, x, target, None, ids, room=room)
                known = [left.logits for left in some if left.logits is not None]
                run.known_logits = torch.cat(known) if len(known) == len(some) else None
                more = attack.part_of(run)
            _success(more).any().item()  # waits for the device, so that the time is that of the attack
            seconds = (time.perf_counter() - began) / sum(counts)
            if run.known_logits is not None:  # for the attacks that follow
                for left, logits in zip(some, run.known_logits.split(counts), strict=True):
                    left.logits = logits
            for left, new in zip(some, more.split(counts), strict=True):
                self._merge(left.found, left.rows, new, turn, seconds * len(left.rows))
                left.keep(~_success(new))
                left.turn += 1

    def _is_done(self, left: _Left) -> bool:
        return not len(left.rows) or left.turn == len(self.attacks)


@dataclass(frozen=True, eq=False)
class Ensemble(InTurn):
    """The worst case over several attacks, at little more than the cost of the first if that breaks most samples.

    One loss may find what another misses: two losses with different directions reveal more than one loss with twice the
    steps.

    A sample that one attack breaks is not attacked by the next; its example and ``value`` are those of the attack that
    broke it, and ``value`` is in terms of that attack's objective. If none breaks it, they are those of the first
    attack that takes steps.

    Args:
        attacks: at least one, all with the same threat, and either all targeted or none.

    Raises:
        TypeError: ``attacks`` is not a list of attacks.
        ValueError: ``attacks`` is empty, its threats or ``targeted`` flags differ, or a ``step_size`` is per sample.

    Example:
        threat = advfeat.L2(0.25)
        attack = advfeat.Ensemble((
            advfeat.PGD(threat, steps=20, keep="best"),
            advfeat.PGD(threat, steps=20, keep="best", objective=advfeat.CW()),
        ))
    """

    attacks: tuple[Attack, ...]

    def __post_init__(self) -> None:
        if isinstance(self.attacks, Attack) or not hasattr(self.attacks, "__iter__"):
            raise TypeError(f"attacks should be a list of attacks, got {type(self.attacks).__name__}")
        attacks = tuple(self.attacks)
        object.__setattr__(self, "attacks", attacks)
        if not attacks:
            raise ValueError("attacks should hold at least one attack")
        for attack in attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks should be attacks, such as advfeat.PGD(...), got {type(attack).__name__}")
            size = getattr(attack, "step_size", None)
            if isinstance(size, Tensor) and size.dim() > 0:
                raise ValueError("attacks should have one step_size for all samples: the later ones see only some")
        # Compared in serialised form: a threat may hold tensors.
        for name, values in (
            ("threat", [str(attack.threat.to_dict()) for attack in attacks]),
            ("targeted", [str(attack.targeted) for attack in attacks]),
        ):
            if len(set(values)) > 1:
                raise ValueError(f"attacks should all have the same {name}, got {', '.join(values)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes of the attacks, numbered where several are of one class: ("PGD 1", "PGD 2", "Auto")."""
        kinds = [type(attack).__name__ for attack in self.attacks]
        many, seen, names = Counter(kinds), Counter[str](), []
        for kind in kinds:
            seen[kind] += 1
            names.append(f"{kind} {seen[kind]}" if many[kind] > 1 else kind)
        return tuple(names)

    @property
    def threat(self) -> Threat:
        """The threat that all attacks share."""
        return self.attacks[0].threat

    @property
    def targeted(self) -> bool:
        """Whether the attacks are targeted."""
        return self.attacks[0].targeted

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast dtype of the first attack that has one; successes in low precision must be checked again."""
        return next((attack.autocast for attack in self.attacks if attack.autocast is not None), None)

    def replace(self, **changes) -> Ensemble:
        """A copy with other ``attacks``, or with settings changed in each of them.

        Args:
            **changes: ``attacks``, or new values by setting name for each attack.

        Returns:
            The copy.
        """
        if "attacks" in changes:
            return dataclasses.replace(self, **changes)
        return Ensemble(tuple(attack.replace(**changes) for attack in self.attacks))

    def to_dict(self) -> dict:
        """See :meth:`advfeat.attacks.Attack.to_dict`; also holds the settings that all attacks share."""
        own = super().to_dict()
        return {"attack": own.pop("attack"), **self.threat.to_dict(), "targeted": self.targeted, **own}

    @property
    def lacks_seed(self) -> bool:
        """See :attr:`advfeat.attacks.Attack.lacks_seed`; true if any of the attacks lacks one."""
        return any(attack.lacks_seed for attack in self.attacks)

    def with_seed(self, seed: int) -> Ensemble:
        """See :meth:`advfeat.attacks.Attack.with_seed`."""
        return dataclasses.replace(self, attacks=tuple(attack.with_seed(seed) for attack in self.attacks))


@dataclass
class _Left:
    """The survivors of a batch after some attacks: rows of its result, and their samples.

    ``turn`` is the index of the next attack; ``logits`` are those at x, once an attack has computed them.
    """

    given: Any
    found: AttackResult
    rows: Tensor
    x: Tensor
    target: Tensor
    ids: Tensor
    turn: int = 1
    logits: Tensor | None = None

    @classmethod
    def of(cls, given: Any, found: AttackResult, x: Tensor, target: Tensor, ids: Tensor) -> _Left:
        """The survivors of a batch after the first attack."""
        every = torch.arange(x.shape[0], device=x.device)
        left = cls(given, found, every, x, target, ids)
        left.keep(~_success(found))
        return left

    def keep(self, mask: Tensor) -> None:
        """Keeps only the rows where ``mask``, bool [rows], is true."""
        for name in ("rows", "x", "target", "ids", "logits"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[mask])


def _success(found: AttackResult) -> Tensor:
    """Whether each sample was broken, bool [B]."""
    if found.success is None:
        raise ValueError(
            "attacks should report successes: the target should be labels and the objective use the logits"
        )
    return found.success


def _only_looks(attack: Attack) -> bool:
    """Whether the attack takes no step, so that the next one has the better example."""
    return getattr(attack, "steps", 1) == 0
