"""Auto-PGD (Croce and Hein 2020): projected gradient steps with momentum that choose their own length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.base import Attack, check_settings
from advfeat.attacks.engine import random_start, successes, value_and_grad
from advfeat.attacks.inputs import check_inputs
from advfeat.attacks.no_trace import Watched, no_trace
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Margin, Objective, are_labels, as_objective
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
    that are not broken yet. targeted: push the objective down, towards ``target``. seed, autocast: as for
    :class:`advfeat.PGD`, and it leaves as little trace.

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

    step_size = None  # not a setting: the attack finds it

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_settings(self)

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


class _Progress:
    """What decides about each sample's step size, [B] each."""

    def __init__(self, value: Tensor) -> None:
        self.gains = torch.zeros_like(value)  # steps since the checkpoint that gained something
        self.last_value = value
        self.best_at_check = value.clone()
        self.halved_at_check = torch.ones_like(value, dtype=torch.bool)

    def note(self, value: Tensor) -> None:
        self.gains += value > self.last_value
        self.last_value = value

    def stalls(self, best: Tensor, interval: int) -> Tensor:
        """Which samples halve their step, bool [B]; starts the next interval."""
        stalled = self.gains <= RHO * interval
        stalled |= ~self.halved_at_check & ~(best > self.best_at_check)
        self.gains = torch.zeros_like(self.gains)
        self.best_at_check, self.halved_at_check = best.clone(), stalled
        return stalled


def _run(
    attack: APGD, model: Callable, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None
) -> AttackResult:
    watched = Watched(model, check_inputs(attack, x, target, start, sample_ids))
    with no_trace(model, x.device), torch.autocast(x.device.type, enabled=False):
        x0, target = x.detach().clone(), target.detach().clone()
        if are_labels(target):
            target = target.to(torch.int64)
        ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids.clone()
        loop = _Loop(attack, watched, x0, target)
        for restart in range(attack.restarts):
            rows = torch.arange(x.shape[0], device=x.device) if restart == 0 else (~loop.success).nonzero()[:, 0]
            if attack.random_start:
                first = random_start(attack, loop.threat.rows(rows), x0[rows], ids[rows], restart)
            else:
                first = (x0 if start is None else start.detach()).clone()
            loop.restart(first, rows)
        return loop.result()


class _Loop:
    """The iterates of a batch, restart by restart, and the best of each sample over all of them."""

    def __init__(self, attack: APGD, model: Watched, x0: Tensor, target: Tensor) -> None:
        self.attack, self.model, self.x0, self.target = attack, model, x0, target
        self.threat = attack.threat.to(x0.device)
        n, device = x0.shape[0], x0.device
        wide = torch.float64 if x0.dtype == torch.float64 else torch.float32
        self.x_adv = x0.clone()
        # Values are kept with the sign that makes more better; -inf for none yet.
        self.value = torch.full((n,), float("-inf"), dtype=wide, device=device)
        self.success = torch.zeros(n, dtype=torch.bool, device=device)
        self.first_success = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.status = torch.zeros(n, 2, dtype=torch.int32, device=device)
        self.sign = -1.0 if attack.targeted else 1.0
        self.knows_success = True
        self.forwarded = self.backwarded = 0

    def restart(self, first: Tensor, rows: Tensor) -> None:
        """The steps from one start, for the samples ``rows``."""
        threat = self.threat.rows(rows)
        x0, target, status = self.x0[rows], self.target[rows], self.status[rows]
        if x0.shape[0] == 0:
            return
        x = threat.project_(first, x0)
        value, hit, grad = self._evaluate(x, target, grad=self.attack.steps > 0)
        self._keep(rows, x, value, hit, 0)
        best_x, best_grad, best = x.clone(), grad, value.clone()
        progress, before = _Progress(value), x
        eta = (2.0 * torch.as_tensor(threat.eps, dtype=torch.float64, device=x.device)).expand(x.shape[0]).clone()
        checks, last_check = set(checkpoints(self.attack.steps)), 0
        for step in range(1, self.attack.steps + 1):
            moved = x.clone()
            threat.step_(moved, grad, x0, self.sign * eta, grad_status=status)
            if step > 1:
                # x + 0.75 (moved - x) + 0.25 (x - before), in place
                moved.mul_(MOMENTUM).add_(x, alpha=2 * (1 - MOMENTUM)).sub_(before, alpha=1 - MOMENTUM)
                threat.project_(moved, x0)
            before, x = x, moved
            value, hit, grad = self._evaluate(x, target, grad=step < self.attack.steps)
            self._keep(rows, x, value, hit, step)
            progress.note(value)
            if grad is not None:
                ops.update_best_(best_grad, best.clone(), grad, value)
            ops.update_best_(best_x, best, x, value)
            if step in checks and grad is not None:
                stalled = progress.stalls(best, step - last_check)
                last_check = step
                eta = torch.where(stalled, eta / 2, eta)
                back = stalled.reshape(-1, *[1] * (x.dim() - 1))
                x, grad = torch.where(back, best_x, x), torch.where(back, best_grad, grad)
        self.status[rows] = status

    def _evaluate(self, x: Tensor, target: Tensor, grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The value with the sign that makes more better, who is broken, and the gradient of the objective itself."""
        self.forwarded += x.shape[0]
        self.backwarded += x.shape[0] if grad else 0
        value, logits, gradient = value_and_grad(self.attack, self.model, x, target, grad)
        hit = successes(self.attack, logits, target)
        return self.sign * value.to(self.value.dtype), hit, gradient

    def _keep(self, rows: Tensor, x: Tensor, value: Tensor, hit: Tensor | None, step: int) -> None:
        """A success before a failure, then the larger value."""
        if hit is None:
            self.knows_success = False
            hit = torch.zeros_like(value, dtype=torch.bool)
        success, old = self.success[rows], self.value[rows]
        better = hit & ~success | (hit == success) & ((value > old) | old.isnan())
        kept = self.x_adv[rows]
        ops.update_best_(kept, torch.zeros_like(value), x, better.to(value.dtype))
        self.x_adv[rows] = kept
        self.value[rows] = torch.where(better, value, old)
        self.success[rows] = success | hit
        first = self.first_success[rows]
        self.first_success[rows] = torch.where((first < 0) & hit, step, first)

    def result(self) -> AttackResult:
        known = self.knows_success
        return AttackResult(
            x_adv=self.x_adv,
            value=self.sign * self.value,
            success=self.success if known else None,
            distance=self.threat.distance(self.x_adv, self.x0),
            first_success=self.first_success if known else None,
            zero_grad_steps=self.status[:, 0],
            nonfinite_grad_steps=self.status[:, 1],
            samples_forwarded=self.forwarded,
            samples_backwarded=self.backwarded,
        )
