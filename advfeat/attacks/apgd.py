"""Auto-PGD (Croce and Hein 2020): projected gradient ascent with momentum and an adaptive step size."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from advfeat import ops
from advfeat._arguments import flag
from advfeat.attacks.base import GivenObjective, GradientAttack, check_settings
from advfeat.attacks.context import Run
from advfeat.attacks.gradient import successes, value_and_grad
from advfeat.attacks.record import Record
from advfeat.attacks.replay import ReplayedStep
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Margin, as_objective
from advfeat.settings import CHANGES_NO_RESULT, OMITTED_AT_DEFAULT
from advfeat.threat import L1, Threat

# Section 3.1 of the paper: the momentum coefficient, and the fraction of steps that should improve the objective.
MOMENTUM, RHO = 0.75, 0.75
# Section 4 of Croce and Hein 2021, for L1, and its code: the share of values in the first steps, the fraction of steps
# between two checkpoints, what the share and the step size are divided by, the fraction of changed values below which a
# sample returns to its best point, and the fraction of the steps in each of the two larger balls.
FIRST_SHARE, L1_INTERVAL, FEWER, MUCH_FEWER, LARGE_RADII_SHARE = 0.2, 0.04, 1.5, 0.95, 0.3
# Of inputs around 1 in float32.
ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class APGD(GradientAttack):
    """APGD: steps of 2 eps at first; where a sample stalls, halve its step and return to its best iterate.

    Step k computes ``z = P(x_k + eta g)`` and ``x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))``, where g is
    the sign or the L2 direction of the gradient and P projects onto the ball and then the box. Checkpoints come after
    22 % of the steps, then at intervals that shrink by 3 % of the steps down to 6 %. At a checkpoint, eta is halved if
    no more than three quarters of the steps improved the objective, or if neither eta nor the best value changed since
    the last checkpoint (Algorithm 1; "no more than" follows the published code).

    The result holds the best iterate of each sample; a success ranks above a failure. Like :class:`advfeat.PGD`, the
    attack leaves no trace on the model.

    For L1 the attack is that of Croce and Hein 2021 (Section 4): no momentum, and sparse steps that move only the
    values with the largest gradients: at first a fifth of the values, by steps of length eps. After every 4 % of the
    steps this share is set to 2/3 of the fraction of values in which the best iterate differs from x. If that fraction
    has shrunk by more than 5 %, eta is reset to eps and the sample returns to its best iterate; otherwise eta falls by
    a third, but not below eps / 10.

    Args:
        threat: :class:`advfeat.L2`, :class:`advfeat.Linf` or :class:`advfeat.L1` with a finite eps, in pixel scale
            [0, 1].
        steps: gradient steps per restart.
        objective: maximised, or minimised with ``targeted``. The default has the direction of the cross-entropy and
            does not saturate.
        random_start: start at a random point of the ball instead of at x.
        restarts: number of random starts, each for the samples that are not broken yet.
        targeted: minimise the objective, towards ``target``.
        seed: of the random starts; the same at every call, so that an evaluation can be repeated.
        autocast: as for :class:`advfeat.PGD`.
        graph: as for :class:`advfeat.PGD`.
        large_radii: for L1 only: take 30 % of the steps in the ball of radius 3 eps, 30 % in that of radius 2 eps and
            the rest in the ball itself, each stage from the best point of the previous one, as AutoAttack's L1 version
            does.

    Raises:
        ValueError: eps is infinite, ``large_radii`` is set for another norm, or a setting is out of range.
        TypeError: a setting has the wrong type.

    Example:
        result = advfeat.APGD(advfeat.Linf(8 / 255), steps=100).run(model, x, y)
    """

    threat: Threat
    steps: int = 100
    objective: GivenObjective = field(default_factory=cast("Any", Margin))
    random_start: bool = True
    restarts: int = 1
    targeted: bool = False
    seed: int = 0
    autocast: torch.dtype | None = None
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)
    large_radii: bool = field(default=False, metadata=OMITTED_AT_DEFAULT)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_settings(self)
        object.__setattr__(self, "large_radii", flag("large_radii", self.large_radii))
        if self.large_radii and not isinstance(self.threat, L1):
            raise ValueError(f"large_radii should be False for {self.threat.title}, it is for L1 alone, got True")
        if not isinstance(self.threat.eps, Tensor) and not math.isfinite(self.threat.eps):
            raise ValueError(f"eps should be finite, since the first steps are 2 eps long, got {self.threat.eps}")

    @property
    def step_length(self) -> float | Tensor:
        """The length of the first step: 2 eps, for L1 eps."""
        return self.threat.eps if isinstance(self.threat, L1) else 2 * self.threat.eps

    def _run(self, run: Run) -> AttackResult:
        """Runs the attack; a ``start`` is the first iterate of the single start, with ``random_start=False``."""
        best, rows = Record(run.x0, self.targeted), torch.arange(len(run), device=run.x0.device)
        passes, why_eager = [0, 0], None
        for restart in range(self.restarts):
            if restart > 0:
                rows = (~best.success).nonzero()[:, 0]
            if rows.numel() == 0:
                break
            start = self._started(run if restart == 0 else run.rows(rows), best.rows(rows), restart)
            best.put(rows, start.record)
            looks = self.steps + (3 if self.large_radii else 1)  # each stage looks at its start, too
            passes = [passes[0] + rows.numel() * looks, passes[1] + rows.numel() * self.steps]
            why_eager = start.why_eager
        return run.result(best, forwarded=passes[0], backwarded=passes[1], why_eager=why_eager)

    def _started(self, batch: Run, record: Record, restart: int) -> _Start:
        """One start, run to its end."""
        first = batch.first_iterate(self, restart)
        if not isinstance(batch.threat, L1):
            start = _Start(self, batch, record, first, self.steps)
            start.run()
            return start
        steps_left = self.steps
        for factor in (3, 2) if self.large_radii else ():
            steps = min(math.ceil(LARGE_RADII_SHARE * self.steps), steps_left)
            wider = batch.within(dataclasses.replace(batch.threat, eps=factor * batch.threat.eps))
            if factor == 3 and self.random_start and batch.start is None:
                first = wider.first_iterate(self, restart)
            first = wider.threat.project_(first, batch.x0)
            stage = _L1Start(self, wider, Record(batch.x0, self.targeted), first, steps)
            stage.run()
            first, steps_left = stage.best_x, steps_left - steps
        start = _L1Start(self, batch, record, batch.threat.project_(first, batch.x0), steps_left)
        start.run()
        return start


def checkpoints(steps: int) -> list[int]:
    """The steps after which APGD checks its progress: 22, 41, 57, 70, 80, 87, 93, 99 of 100.

    Args:
        steps: the number of gradient steps.

    Returns:
        The checkpoints in increasing order, each at most ``steps``.
    """
    interval, found, at = max(int(0.22 * steps), 1), [], 0
    shrink, least = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    while at + interval <= steps:
        at += interval
        found.append(at)
        interval = max(interval - shrink, least)
    return found


class _Start:
    """The iterates of one start; everything is updated in place, so that a step can be replayed as a CUDA graph.

    ``record`` holds the results of earlier starts. ``best_*`` is the best point of this start, to which a sample that
    stalls returns; its value is multiplied by ``sign``, so that larger is better.
    """

    def __init__(self, attack: APGD, batch: Run, record: Record, first: Tensor, steps: int) -> None:
        self.attack, self.batch, self.record, self.steps = attack, batch, record, steps
        self.sign = -1.0 if attack.targeted else 1.0
        n, device = len(batch), batch.x0.device
        self.x = first
        self.before, self.moved, self.grad = self.x.clone(), torch.empty_like(self.x), torch.zeros_like(self.x)
        self.eta = (2.0 * torch.as_tensor(batch.threat.eps, dtype=torch.float64, device=device)).expand(n).clone()
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        self.best_x, self.best_grad = self.x.clone(), torch.zeros_like(self.x)
        self.best = torch.full((n,), float("-inf"), dtype=record.value.dtype, device=device)
        # Since the last checkpoint: the number of steps that improved the objective, and its state there.
        self.gains, self.last_value = torch.zeros_like(self.best), self.best.clone()
        self.best_at_check, self.halved_at_check = self.best.clone(), torch.ones(n, dtype=torch.bool, device=device)
        self.why_eager: str | None = None

    def run(self) -> None:
        """Runs all steps."""
        steps, checks, at, last_check = self.steps, self._checkpoints(), 0, 0
        self._look(grad=steps > 0)
        self.best_grad.copy_(self.grad)  # also where the value is NaN, which never counts as the best
        self.best_at_check.copy_(self.best)
        self.gains.zero_()
        step = ReplayedStep(self.x.device, self.attack.graph)
        while at < steps:
            if at == 0:
                self._move(momentum=False)
                self._look(grad=steps > 1)
                at = 1
            elif at == steps - 1:
                self._move(momentum=True)
                self._look(grad=False)
                at = steps
            else:
                until = min(c for c in (*checks, steps - 1) if c > at)
                step(self._step, until - at)
                at = until
            if at in checks and at < steps:
                self._check(at - last_check)
                last_check = at
        self.why_eager = step.why_eager

    def _checkpoints(self) -> list[int]:
        return checkpoints(self.steps)

    def _step(self) -> None:
        self._move(momentum=True)
        self._look(grad=True)

    def _move(self, momentum: bool) -> None:
        x, moved, threat, x0 = self.x, self.moved, self.batch.threat, self.batch.x0
        moved.copy_(x)
        threat.step_(moved, self.grad, x0, self.sign * self.eta, grad_status=self.record.status)
        if momentum:
            # x + 0.75 (moved - x) + 0.25 (x - before), in place
            moved.mul_(MOMENTUM).add_(x, alpha=2 * (1 - MOMENTUM)).sub_(self.before, alpha=1 - MOMENTUM)
            threat.project_(moved, x0)
        self.before.copy_(x)
        x.copy_(moved)
        self.step.add_(1)

    def _look(self, grad: bool) -> None:
        """Evaluates the objective at x, and (with ``grad``) its gradient, and keeps what is better."""
        attack, batch, record = self.attack, self.batch, self.record
        value, logits, gradient = value_and_grad(attack, batch.model, self.x, batch.target, grad)
        success = record.as_successes(successes(attack, logits, batch.target))
        record.see(success, self.step)
        record.keep(record.is_better(value, success), self.x, value, success)
        value = self.sign * value.to(self.best.dtype)
        self.gains.add_(value > self.last_value)
        self.last_value.copy_(value)
        better = value > self.best
        if gradient is not None:
            self.grad.copy_(gradient)
            ops.copy_rows_(self.best_grad, self.grad, better)
        ops.copy_rows_(self.best_x, self.x, better)
        ops.copy_rows_(self.best, value, better)

    def _check(self, interval: int) -> None:
        """Halves the step of the samples that stall and returns them to their best point."""
        stalled = self.gains <= RHO * interval
        stalled |= ~self.halved_at_check & ~(self.best > self.best_at_check)
        self.gains.zero_()
        self.best_at_check.copy_(self.best)
        self.halved_at_check.copy_(stalled)
        self.eta.copy_(torch.where(stalled, self.eta / 2, self.eta))
        ops.copy_rows_(self.x, self.best_x, stalled)
        ops.copy_rows_(self.grad, self.best_grad, stalled)


class _L1Start(_Start):
    """A start in the L1 ball: sparse steps, whose number of values adapts to that of the best iterate's changes."""

    def __init__(self, attack: APGD, batch: Run, record: Record, first: Tensor, steps: int) -> None:
        super().__init__(attack, batch, record, first, steps)
        self.radius, self.dim = self.eta / 2, max(1, first[0].numel() if len(first) else 1)
        self.eta = self.radius.clone()
        given = batch.start is not None
        self.changed = self._changes(first) if given else torch.full_like(self.eta, self.dim)
        self.share = self.changed / (FEWER * self.dim) if given else torch.full_like(self.eta, FIRST_SHARE)
        self.share.clamp_(min=1 / self.dim)

    def _changes(self, x: Tensor) -> Tensor:
        """The number of values of each sample that differ from x0, float64 [B]."""
        moved = (x - self.batch.x0).abs()
        # In other units than the input's, rounding moves every value.
        least = ROUNDING if self.batch.threat.has_unit else 0.0
        return (moved > least).flatten(1).sum(dim=1).to(torch.float64)

    def _checkpoints(self) -> list[int]:
        interval = max(int(L1_INTERVAL * self.steps), 1)
        return list(range(interval, self.steps + 1, interval))

    def _move(self, momentum: bool) -> None:
        threat = dataclasses.replace(cast("L1", self.batch.threat), share=self.share)
        threat.step_(self.x, self.grad, self.batch.x0, self.sign * self.eta, grad_status=self.record.status)
        self.step.add_(1)

    def _check(self, interval: int) -> None:
        """Adapts the share, and returns the samples that changed in fewer values to their best point."""
        changed = self._changes(self.best_x)
        fewer = changed < MUCH_FEWER * self.changed
        self.share.copy_((changed / (FEWER * self.dim)).clamp(min=1 / self.dim, max=1))
        self.eta.copy_(torch.where(fewer, self.radius, (self.eta / FEWER).clamp(min=self.radius / 10)))
        self.changed.copy_(changed)
        ops.copy_rows_(self.x, self.best_x, fewer)
        ops.copy_rows_(self.grad, self.best_grad, fewer)
