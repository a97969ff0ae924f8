"""What every attack is: settings that can be copied and written down, and a run over a batch or a data set."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advfeat._arguments import check_autocast, flag, whole_number
from advfeat.attacks.context import Run, undisturbed
from advfeat.attacks.inputs import check_inputs, check_tensor
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective
from advfeat.ops import Number
from advfeat.random import fresh_seed
from advfeat.settings import as_json, settings_of
from advfeat.threat import Threat


class Attack:
    """Base class of the attacks: frozen dataclasses with a ``threat``, ``targeted`` and an ``autocast``.

    A subclass writes :meth:`_run`, which gets its inputs checked and copied. Its settings are the fields of the
    dataclass; one that changes no result is ``field(metadata=advfeat.settings.CHANGES_NO_RESULT)``.

    takes_start: whether :meth:`run` goes from a ``start`` that it is given. objectives: those that a user may have
        written, which can hold modules of their own.
    """

    threat: Threat
    targeted: bool
    autocast: torch.dtype | None
    takes_start = True
    objectives: tuple[Objective, ...] = ()

    def to_dict(self) -> dict:
        """The settings as JSON values, as they are written beside every number and results are found by."""
        found: dict = {"attack": type(self).__name__}
        for name, value in settings_of(self).items():
            if isinstance(value, Threat):
                found |= value.to_dict()
            else:
                found[name] = value.name if isinstance(value, Objective) else as_json(value)
        return found

    def _run(self, run: Run) -> AttackResult:
        """The attack itself, on a batch whose tensors may not be changed; the model is in eval mode."""
        raise NotImplementedError

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """Raises ValueError or TypeError for what cannot be attacked; returns the largest label, None for no labels."""
        raise NotImplementedError

    def replace(self, **changes):
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def run(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        *,
        start: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> AttackResult:
        """The adversarial examples with their statistics.

        model: gives logits [B, classes], as a tensor or as an output with ``.logits``; any callable.
        x: [B, ...] floating, in the box but for rounding, which is clipped; the centre of the ball.
        target: the labels to leave, or with ``targeted`` to reach, int64 [B]; what the objective makes of it otherwise.
        start: the first iterate, projected; x itself or a random point if None.
        sample_ids: int64 [B], who the samples are, for the random starts; 0 ... B-1 if None.

        Errors: ValueError naming the argument; TypeError for a model without logits.
        """
        return self._call(model, x, target, start, sample_ids, statistics=True)

    def __call__(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        *,
        start: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """The adversarial examples [B, ...]. Arguments as for :meth:`run`, whose last forward pass this saves where
        nothing depends on it."""
        return self._call(model, x, target, start, sample_ids, statistics=False).x_adv

    def _call(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        start: Tensor | None,
        sample_ids: Tensor | None,
        statistics: bool,
    ) -> AttackResult:
        check_tensor("x", x, "a floating-point batch [B, ...]")
        attack = self._seeded(fresh=sample_ids is None)
        with undisturbed(attack, model, x.device):
            return attack._run(Run(attack, model, x, target, start, sample_ids, statistics=statistics))

    def part_of(self, run: Run) -> AttackResult:
        """The result as a part of another attack, with statistics: of a run, or of some rows of one."""
        run.statistics = True
        per_sample = isinstance(self.threat.eps, Tensor) and self.threat.eps.dim() > 0
        return (self.replace(threat=run.threat) if per_sample else self)._run(run)

    @property
    def lacks_seed(self) -> bool:
        """Whether it has random starts without a seed of their own."""
        return False

    def with_seed(self, seed: int) -> Attack:
        """A copy whose random starts without a seed of their own have this one."""
        return self

    def _seeded(self, fresh: bool) -> Attack:
        """The attack of one call; with ``fresh``, random starts without a seed of their own get a new one."""
        return self.with_seed(fresh_seed()) if fresh and self.lacks_seed else self

    def over(self, model: Callable, batches: Iterable[Any]) -> Iterator[tuple[Any, AttackResult]]:
        """Attacks a whole data set; yields each batch, as it was given, with its result, in order.

            for (x, y), result in attack.over(model, loader):
                ...

        model: as for :meth:`run`; it should not change before the last result. batches: tuples or lists
        ``(x, target)``, ``(x, target, sample_ids)`` or ``(x, target, sample_ids, ...)``; what follows the ids is only
        handed back. ``sample_ids`` may be None: samples are then numbered through, so that random starts do not depend
        on the batch size. Some attacks begin several batches before the first result comes.

        Errors: TypeError for a batch of another form; else as for :meth:`run`.
        """
        queued = _numbered(batches)
        for first in queued:
            attack = self._seeded(fresh=not first.has_ids)
            yield from attack._over(model, itertools.chain([first], queued))

    def _over(self, model: Callable, batches: Iterator[Batch]) -> Iterator[tuple[Any, AttackResult]]:
        """:meth:`over`, of an attack that has its seeds."""
        for batch in batches:
            yield batch.given, self.run(model, batch.x, batch.target, sample_ids=batch.ids)


class GradientAttack(Attack):
    """An attack that follows the gradient of one objective from one start or several.

    objective: what is pushed up, or with ``targeted`` down. steps, restarts: at least 0 and 1. random_start: whether
    starts are random points of the ball; seed: of them, None for a new one at every call without sample ids.
    """

    steps: int
    objective: Objective
    random_start: bool
    restarts: int
    seed: int | None
    step_size: Number | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return (self.objective,)

    @property
    def step_length(self) -> Number:
        """The length of the first step, a float or a tensor [B]."""
        raise NotImplementedError

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """As :meth:`Attack.check`."""
        return check_inputs(self, x, target, start, sample_ids)

    @property
    def lacks_seed(self) -> bool:
        """As :attr:`Attack.lacks_seed`."""
        return self.random_start and self.seed is None

    def with_seed(self, seed: int) -> GradientAttack:
        """As :meth:`Attack.with_seed`."""
        return self.replace(seed=seed) if self.lacks_seed else self


class Batch(NamedTuple):
    """A batch of a data set under attack. has_ids: whether the ids are the caller's. given: what the caller gave."""

    x: Tensor
    target: Tensor
    ids: Tensor
    has_ids: bool
    given: Any


def _numbered(batches: Iterable[Any]) -> Iterator[Batch]:
    """The batches with ids, from those that may lack them: samples are numbered through."""
    seen = 0
    for given in batches:
        if not isinstance(given, (tuple, list)) or len(given) < 2:
            what = f"{type(given).__name__}" + (f" of {len(given)}" if isinstance(given, (tuple, list)) else "")
            keys = f" with {', '.join(map(repr, given))}" if isinstance(given, dict) else ""
            raise TypeError(f"batches should be (x, target) or (x, target, sample_ids, ...), got a {what}{keys}")
        x, target, ids = given[0], given[1], given[2] if len(given) > 2 else None
        check_tensor("x", x, "a floating-point batch [B, ...]")
        if ids is not None and not isinstance(ids, Tensor):
            raise TypeError(
                f"the third of a batch should be sample_ids, an int64 tensor [B], got {type(ids).__name__}: give "
                "(x, target) where there are none, or (x, target, None, ...)"
            )
        numbers = torch.arange(seen, seen + x.shape[0], device=x.device) if ids is None else ids
        yield Batch(x, target, numbers, ids is not None, given)
        seen += x.shape[0]


def take_integer(attack: Attack, name: str, least: int | None) -> None:
    """Makes a setting a Python integer, as JSON has them, or refuses it."""
    object.__setattr__(attack, name, whole_number(name, getattr(attack, name), least))


def check_settings(attack: Attack) -> None:
    """Refuses what no attack can take: threat, flags, steps, restarts, seed, autocast, a random start without a ball,
    and an objective that would lead a targeted attack away from its target. Integers and flags of any kind, numpy's
    too, become Python's."""
    if not isinstance(attack.threat, Threat) or type(attack.threat) is Threat:
        raise TypeError(f"threat should be advfeat.L2(eps) or advfeat.Linf(eps), got {attack.threat!r}")
    for name in ("targeted", "random_start", "graph"):
        object.__setattr__(attack, name, flag(name, getattr(attack, name)))
    check_autocast(attack.autocast)
    take_integer(attack, "steps", 0)
    take_integer(attack, "restarts", 1)
    if attack.restarts > 1 and not attack.random_start:
        raise ValueError(f"restarts={attack.restarts} needs random_start=True: all restarts would be the same")
    if attack.seed is not None:
        take_integer(attack, "seed", None)
    for objective in attack.objectives:
        if attack.targeted and objective.untargeted_only:
            raise ValueError(
                f"targeted should be False for {objective.name}, which an untargeted attack pushes up, got True"
            )
    if attack.random_start and not isinstance(attack.threat.eps, Tensor) and not math.isfinite(attack.threat.eps):
        raise ValueError("random_start needs a finite eps")
