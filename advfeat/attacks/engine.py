"""The loop behind the attacks: one forward and one backward pass a step, one fused update, and nothing that waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.inputs import check_inputs
from advfeat.attacks.no_trace import Watched, no_trace
from advfeat.attacks.result import AttackResult
from advfeat.objectives import are_labels
from advfeat.ops import Number
from advfeat.threat import Threat

if TYPE_CHECKING:
    from advfeat.attacks.base import Attack
    from advfeat.attacks.pgd import PGD


def look_every(device: torch.device) -> int:
    """How often, in steps, finished samples leave the batch under stop="success". On the CPU looking costs nothing;
    elsewhere it waits for the device, so it is done rarely."""
    return 1 if device.type == "cpu" else 10


def random_start(attack: Attack, threat: Threat, x0: Tensor, sample_ids: Tensor, restart: int) -> Tensor:
    """The random point that a restart begins at. Restarts are streams of their own, far apart in the space of seeds."""
    return threat.random_start(x0, (attack.seed + (restart << 40)) % 2**63, sample_ids)


class _Batch:
    """The samples still being attacked, and what is known of each."""

    def __init__(self, threat: Threat, step_size: Number, x0: Tensor, x: Tensor, target: Tensor) -> None:
        self.threat, self.step_size = threat, step_size
        self.x0, self.x, self.target = x0, x, target
        self.index: Tensor | None = None  # rows of the whole batch; None for all

    def keep(self, rows: Tensor) -> None:
        self.threat = self.threat.rows(rows)
        if isinstance(self.step_size, Tensor) and self.step_size.dim() == 1:
            self.step_size = self.step_size[rows]
        self.x0, self.x, self.target = self.x0[rows], self.x[rows], self.target[rows]
        self.index = rows if self.index is None else self.index[rows]


class _Best:
    """The best iterate of each sample over steps and restarts: a success before a failure, then by the objective."""

    def __init__(self, attack: PGD, x: Tensor) -> None:
        n, device = x.shape[0], x.device
        self.x = x.clone()
        self.sign = -1.0 if attack.targeted else 1.0
        self.frozen_after_success = attack.stop is not None
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.value = torch.full((n,), float("nan"), dtype=wide, device=device)
        self.success = torch.zeros(n, dtype=torch.bool, device=device)
        self.first_success = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.seen_logits = False

    def note(self, batch: _Batch, success: Tensor | None, step: int) -> None:
        """Remembers when a sample was first seen to succeed."""
        if success is None:
            return
        self.seen_logits = True
        first = _at(self.first_success, batch.index)
        _put(self, "first_success", batch.index, torch.where((first < 0) & success, step, first))

    def update(self, batch: _Batch, value: Tensor, success: Tensor | None, keep: str) -> None:
        """keep: "best" takes what is better; "success" a first success only; "last" all that have not succeeded yet."""
        rows, value = batch.index, value.to(self.value.dtype)
        old_value, old_success = _at(self.value, rows), _at(self.success, rows)
        new_success = torch.zeros_like(old_success) if success is None else success
        if keep == "last":
            better = ~old_success
        else:
            better = new_success & ~old_success
            if keep == "best":
                rank, old_rank = self.sign * value, self.sign * old_value
                higher = (rank > old_rank) | (old_rank.isnan() & ~rank.isnan())
                better |= (new_success == old_success) & higher
        if self.frozen_after_success:
            better &= ~old_success
        x = _at(self.x, rows)
        ops.update_best_(x, torch.zeros_like(value), batch.x, better.to(value.dtype))
        _put(self, "x", rows, x)
        _put(self, "value", rows, torch.where(better, value, old_value))
        _put(self, "success", rows, torch.where(better, new_success, old_success))


def _at(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor[rows]


def _put(best: _Best, name: str, rows: Tensor | None, values: Tensor) -> None:
    # A batch that has shrunk puts its rows back; indices, not masks, so that nothing waits for the device.
    if rows is None:
        setattr(best, name, values)
    else:
        getattr(best, name)[rows] = values


def successes(attack: Attack, logits: Tensor | None, target: Tensor) -> Tensor | None:
    """Which predictions are what the attack wants, bool [B]; None where there are no logits or no labels."""
    labels = attack.objective.labels(target)
    if logits is None or labels is None:
        return None
    predicted = logits.argmax(dim=1)
    hit = predicted == labels if attack.targeted else predicted != labels
    return hit & ~logits.isnan().any(dim=1)  # no prediction is no success


def run(
    attack: PGD,
    model: Callable,
    x: Tensor,
    target: Tensor,
    start: Tensor | None,
    sample_ids: Tensor | None,
    track: bool,
) -> AttackResult:
    watched = Watched(model, check_inputs(attack, x, target, start, sample_ids))
    forwarded = backwarded = 0
    # The caller's autocast would also cast the backward pass, which PyTorch advises against.
    with no_trace(model, x.device), torch.autocast(x.device.type, enabled=False):
        # Clones: the inputs are not to change, and tensors made under inference_mode cannot take part in autograd.
        x0, target = x.detach().clone(), target.detach().clone()
        if are_labels(target):
            target = target.to(torch.int64)
        threat, step_size = attack.threat.to(x.device), attack.step_length
        if isinstance(step_size, Tensor):  # as the kernels take it, so that no step converts it again
            step_size = step_size.detach().to(x.device, torch.float64)
        ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids.clone()
        best = _Best(attack, x0) if track else None
        sign = -1.0 if attack.targeted else 1.0
        status = torch.zeros(x.shape[0], 2, dtype=torch.int32, device=x.device)
        leave_every = look_every(x.device)

        def look(batch: _Batch, grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
            nonlocal forwarded, backwarded
            forwarded += batch.x.shape[0]
            backwarded += batch.x.shape[0] if grad else 0
            return value_and_grad(attack, watched, batch.x, batch.target, grad)

        for restart in range(attack.restarts):
            if start is not None:
                first = start.detach().clone()
            elif attack.random_start:
                first = random_start(attack, threat, x0, ids, restart)
            else:
                first = x0.clone()
            batch = _Batch(threat, step_size, x0, first, target)
            batch.threat.project_(batch.x, x0)
            if attack.stop and restart > 0:
                batch.keep((~best.success).nonzero()[:, 0])
            for step in range(attack.steps):
                if batch.x.shape[0] == 0:
                    break
                value, logits, grad = look(batch, grad=True)
                if track:
                    hit = successes(attack, logits, batch.target)
                    best.note(batch, hit, step)
                    if attack.keep == "best" or attack.stop:
                        best.update(batch, value, hit, "best" if attack.keep == "best" else "success")
                    if attack.stop and hit is not None and step % leave_every == 0:
                        rows = (~_at(best.success, batch.index)).nonzero()[:, 0]
                        if rows.numel() < batch.x.shape[0]:
                            batch.keep(rows)
                            grad = grad[rows]
                counts = _at(status, batch.index)
                size = batch.step_size
                batch.threat.step_(batch.x, grad, batch.x0, sign * size, grad_status=counts)
                if batch.index is not None:
                    status[batch.index] = counts
            if track and batch.x.shape[0] > 0:
                value, logits, _ = look(batch, grad=False)
                hit = successes(attack, logits, batch.target)
                best.note(batch, hit, attack.steps)
                best.update(batch, value, hit, "best" if attack.keep == "best" or restart > 0 else "last")

        x_adv = best.x if track else batch.x
        unknown = torch.full((x.shape[0],), float("nan"), device=x.device)
        seen = track and (best.seen_logits or x.shape[0] == 0)
        return AttackResult(
            x_adv=x_adv,
            value=best.value if track else unknown,
            success=best.success if seen else None,
            distance=attack.threat.distance(x_adv, x0),
            first_success=best.first_success if seen else None,
            zero_grad_steps=status[:, 0],
            nonfinite_grad_steps=status[:, 1],
            samples_forwarded=forwarded,
            samples_backwarded=backwarded,
        )


def value_and_grad(
    attack: Attack, model: Watched, x: Tensor, target: Tensor, grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The objective [B], the logits that it saw, and (with ``grad``) its gradient by x; one pass through the model."""
    point = x.detach().requires_grad_(grad)
    model.last_logits = None
    autocast = torch.autocast(x.device.type, dtype=attack.autocast, enabled=attack.autocast is not None)
    with torch.set_grad_enabled(grad), autocast:
        value = attack.objective.value(model, point, target)
    if value.shape != point.shape[:1]:
        raise ValueError(f"the objective should give one value a sample, ({point.shape[0]},), got {tuple(value.shape)}")
    if not grad:
        return value, model.last_logits, None
    if not value.requires_grad:
        raise ValueError("the objective does not depend on x through anything differentiable")
    (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), model.last_logits, gradient
