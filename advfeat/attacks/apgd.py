"""Auto-PGD (Croce and Hein 2020): projected gradient steps with momentum that choose their own length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.base import Attack, check_settings
from advfeat.attacks.engine import (
    into_box_,
    own_copies,
    random_start,
    strides_of,
    successes,
    value_and_grad,
    with_strides,
)
from advfeat.attacks.inputs import check_inputs
from advfeat.attacks.no_trace import Watched, no_trace
from advfeat.attacks.replay import Step
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Margin, Objective, as_objective
from advfeat.threat import Threat

# Section 3.1 of the paper: the share of the momentum, and of the steps that should gain something.
MOMENTUM, RHO = 0.75, 0.75


@dataclass(frozen=True, eq=False)
class APGD(Attack):
    """APGD: starts with steps of 2 eps, and halves a sample's step and goes back to its best iterate where it stalls.

        result = advfeat.APGD(advfeat.Linf(8 / 255), steps=100).run(model, x, y)

    Step k: ``z = P(x_k + eta g)``, ``x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1}))`` with g the sign or the
    L2 direction of the gradient and P the ball, then the box. At checkpoints, 22 % of the steps and then intervals that
    shrink by 3 % down to 6 %, eta is halved if no more than three quarters of the steps gained something, or if neither
    eta nor the best value changed since the last checkpoint (Algorithm 1; the "no more than" is the published code's).

    threat: with a finite eps. steps: gradient steps of each restart. objective: pushed up; the default gives the
    direction of the cross-entropy and does not saturate. restarts: from random points of the ball, each for the samples
    that are not broken yet. targeted: push the objective down, towards ``target``. seed: of the random starts;
    the same at every call, so that an evaluation can be repeated. autocast, graph: as for :class:`advfeat.PGD`, and it
    leaves as little trace.

    The result holds the best iterate of each sample, a success before a failure.
    """

    threat: Threat
    steps: int = 100
    objective: Objective | Callable = field(default_factory=Margin)
    random_start: bool = True
    restarts: int = 1
    targeted: bool = False
    seed: int = 0
    autocast: torch.dtype | None = None
    graph: bool = True

    step_size = None  # not a setting: the attack finds it

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_settings(self)
        if not isinstance(self.threat.eps, Tensor) and not math.isfinite(self.threat.eps):
            raise ValueError(f"eps should be finite, for the first steps are 2 eps long, got {self.threat.eps}")

    @property
    def step_length(self) -> float | Tensor:
        """The first step's, 2 eps."""
        return 2 * self.threat.eps

    def to_dict(self) -> dict:
        return {
            "attack": "APGD",
            **self.threat.to_dict(),
            "steps": self.steps,
            "objective": self.objective.name,
            "random_start": self.random_start,
            "restarts": self.restarts,
            "targeted": self.targeted,
            "seed": self.seed,
            "autocast": str(self.autocast).removeprefix("torch.") if self.autocast else None,
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
        """The adversarial examples with their statistics; arguments as for :meth:`advfeat.PGD.run`.

        start: the first iterate, projected, with ``random_start=False``.
        """
        return _run(self, model, x, target, start, sample_ids)


def checkpoints(steps: int) -> list[int]:
    """The steps after which APGD looks at its progress: 22, 41, 57, 70, 80, 87, 93, 99 of 100."""
    interval, found, at = max(int(0.22 * steps), 1), [], 0
    shrink, least = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    while at + interval <= steps:
        at += interval
        found.append(at)
        interval = max(interval - shrink, least)
    return found


def _run(
    attack: APGD, model: Callable, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None
) -> AttackResult:
    watched = Watched(model, check_inputs(attack, x, target, start, sample_ids))
    with no_trace(model, x.device, attack.objective), torch.autocast(x.device.type, enabled=False):
        x0, target = own_copies(model, x, target)
        threat = attack.threat.to(x.device)
        into_box_(x0, threat)
        ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids.clone()
        best = _Best(attack, x0)
        rows = torch.arange(x.shape[0], device=x.device)
        for restart in range(attack.restarts):
            if restart > 0:
                rows = (~best.success).nonzero()[:, 0]
            if rows.numel() == 0:
                break
            if attack.random_start:
                first = random_start(attack, threat.rows(rows), x0[rows], ids[rows], restart)
            else:
                first = (x0 if start is None else start.detach()).clone()
            _Start(attack, watched, threat.rows(rows), x0[rows], target[rows], first).run(best, rows)
        return AttackResult(
            x_adv=with_strides(best.x, strides_of(x)),
            value=best.sign * best.value,
            success=best.success if best.knows_success else None,
            distance=threat.distance(best.x, x0),
            first_success=best.first_success if best.knows_success else None,
            zero_grad_steps=best.status[:, 0],
            nonfinite_grad_steps=best.status[:, 1],
            samples_forwarded=best.forwarded,
            samples_backwarded=best.backwarded,
            why_eager=best.why_eager,
        )


class _Best:
    """What is kept of each sample over all starts. Values have the sign that makes more better; -inf is none yet."""

    def __init__(self, attack: APGD, x0: Tensor) -> None:
        n, device = x0.shape[0], x0.device
        self.sign = -1.0 if attack.targeted else 1.0
        self.x = x0.clone()
        self.value = torch.full((n,), float("-inf"), dtype=_wide(x0), device=device)
        self.success = torch.zeros(n, dtype=torch.bool, device=device)
        self.first_success = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.status = torch.zeros(n, 2, dtype=torch.int32, device=device)
        self.knows_success = True
        self.forwarded = self.backwarded = 0
        self.why_eager: str | None = None

    names = ("x", "value", "success", "first_success", "status")


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Start:
    """The iterates of one start. Everything is changed in place, so that a step can be replayed as a graph."""

    def __init__(self, attack: APGD, model: Watched, threat: Threat, x0: Tensor, target: Tensor, first: Tensor) -> None:
        self.attack, self.model, self.threat, self.x0, self.target = attack, model, threat, x0, target
        self.sign = -1.0 if attack.targeted else 1.0
        n, wide, device = x0.shape[0], _wide(x0), x0.device
        self.x = threat.project_(torch.empty_like(x0).copy_(first), x0)
        self.before, self.moved, self.grad = self.x.clone(), torch.empty_like(self.x), torch.zeros_like(self.x)
        self.eta = (2.0 * torch.as_tensor(threat.eps, dtype=torch.float64, device=device)).expand(n).clone()
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        # The best point of this start, to which a sample that stalls goes back.
        self.best_x, self.best_grad = self.x.clone(), torch.zeros_like(self.x)
        self.best = torch.full((n,), float("-inf"), dtype=wide, device=device)
        # Since the last checkpoint: how many steps gained something, and where it stood.
        self.gains, self.last_value = torch.zeros_like(self.best), self.best.clone()
        self.best_at_check, self.halved_at_check = self.best.clone(), torch.ones(n, dtype=torch.bool, device=device)
        self.knows_success = True

    def run(self, best: _Best, rows: Tensor) -> None:
        """All steps; ``best`` holds the whole batch's, of which these samples are the ``rows``."""
        self.kept = {name: getattr(best, name)[rows] for name in best.names}
        steps, checks, at, last_check = self.attack.steps, checkpoints(self.attack.steps), 0, 0
        self._look(grad=steps > 0)
        self.best_grad.copy_(self.grad)  # also of a value that is NaN, which is never the best
        self.best_at_check.copy_(self.best)
        self.gains.zero_()
        step = Step(self.x.device, self.attack.graph)
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
        for name in best.names:
            getattr(best, name)[rows] = self.kept[name]
        n = self.x.shape[0]
        best.forwarded += n * (steps + 1)
        best.backwarded += n * steps
        best.knows_success &= self.knows_success
        best.why_eager = step.why_eager

    def _step(self) -> None:
        self._move(momentum=True)
        self._look(grad=True)

    def _move(self, momentum: bool) -> None:
        x, moved = self.x, self.moved
        moved.copy_(x)
        self.threat.step_(moved, self.grad, self.x0, self.sign * self.eta, grad_status=self.kept["status"])
        if momentum:
            # x + 0.75 (moved - x) + 0.25 (x - before), in place
            moved.mul_(MOMENTUM).add_(x, alpha=2 * (1 - MOMENTUM)).sub_(self.before, alpha=1 - MOMENTUM)
            self.threat.project_(moved, self.x0)
        self.before.copy_(x)
        x.copy_(moved)
        self.step.add_(1)

    def _look(self, grad: bool) -> None:
        """The value at x, and (with ``grad``) the gradient; keeps what is better."""
        value, logits, gradient = value_and_grad(self.attack, self.model, self.x, self.target, grad)
        hit = successes(self.attack, logits, self.target)
        if hit is None:
            self.knows_success = False
            hit = torch.zeros_like(self.kept["success"])
        value = self.sign * value.to(self.best.dtype)
        self._keep(value, hit)
        self.gains.add_(value > self.last_value)
        self.last_value.copy_(value)
        if gradient is not None:
            self.grad.copy_(gradient)
            ops.update_best_(self.best_grad, self.best.clone(), self.grad, value)
        ops.update_best_(self.best_x, self.best, self.x, value)

    def _keep(self, value: Tensor, hit: Tensor) -> None:
        """A success before a failure, then the larger value."""
        k = self.kept
        better = hit & ~k["success"] | (hit == k["success"]) & ((value > k["value"]) | k["value"].isnan())
        ops.update_best_(k["x"], torch.zeros_like(value), self.x, better.to(value.dtype))
        k["value"].copy_(torch.where(better, value, k["value"]))
        k["success"].logical_or_(hit)
        k["first_success"].copy_(torch.where((k["first_success"] < 0) & hit, self.step, k["first_success"]))

    def _check(self, interval: int) -> None:
        """Halves the step of the samples that stall, and puts them back to their best point."""
        stalled = self.gains <= RHO * interval
        stalled |= ~self.halved_at_check & ~(self.best > self.best_at_check)
        self.gains.zero_()
        self.best_at_check.copy_(self.best)
        self.halved_at_check.copy_(stalled)
        self.eta.copy_(torch.where(stalled, self.eta / 2, self.eta))
        back = stalled.reshape(-1, *[1] * (self.x.dim() - 1))
        self.x.copy_(torch.where(back, self.best_x, self.x))
        self.grad.copy_(torch.where(back, self.best_grad, self.grad))
