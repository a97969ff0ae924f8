"""What every attack is: settings that can be copied and written down, and a run over a batch or a data set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from advfeat.arguments import check_autocast, flag, whole_number
from advfeat.attacks.context import Run, undisturbed
from advfeat.attacks.inputs import check_inputs, check_tensor
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective
from advfeat.ops import Number
from advfeat.seeds import fresh_seed
from advfeat.threat import Threat


class Attack:
    """Base class of the attacks: frozen dataclasses with a ``threat``, ``targeted`` and an ``autocast``.

    A subclass writes :meth:`_run`, which gets its inputs checked and copied, and :meth:`to_dict`.

    takes_start: whether :meth:`run` goes from a ``start`` that it is given. objectives: those that a user may have
        written, which can hold modules of their own.
    """

    threat: Threat
    targeted: bool
    autocast: torch.dtype | None
    takes_start = True
    objectives: tuple[Objective, ...] = ()

    def to_dict(self) -> dict:
        """The settings as JSON values, as they are written beside every number."""
        raise NotImplementedError

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

    def _seeded(self, fresh: bool) -> Attack:
        """The attack of one call; with ``fresh``, random starts without a seed of their own get a new one."""
        return self

    def over(self, model: Callable, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[AttackResult]:
        """The results for each batch ``(x, target)`` or ``(x, target, sample_ids)`` of a data set, in order.

        Without ids samples are numbered through, so that the random starts do not depend on the batch size.
        """
        for x, target, sample_ids in numbered(batches):
            yield self.run(model, x, target, sample_ids=sample_ids)


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

    def _seeded(self, fresh: bool) -> GradientAttack:
        if self.seed is not None or not self.random_start or not fresh:
            return self
        return self.replace(seed=fresh_seed())


def numbered(batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches (x, target, sample_ids) from those that may lack ids: samples are numbered through."""
    seen = 0
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            what = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
            keys = f" with {', '.join(map(repr, batch))}" if isinstance(batch, dict) else ""
            raise TypeError(f"batches should be (x, target) or (x, target, sample_ids), got a {what}{keys}")
        x, target, *ids = batch
        check_tensor("x", x, "a floating-point batch [B, ...]")
        if ids and not isinstance(ids[0], Tensor):
            raise TypeError(
                f"the third of a batch should be sample_ids, an int64 tensor [B], got {type(ids[0]).__name__}: give "
                "(x, target) where there are none"
            )
        yield x, target, ids[0] if ids else torch.arange(seen, seen + x.shape[0], device=x.device)
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
