"""Projected gradient descent (Madry et al. 2018), for building data sets, for training and for evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.no_trace import Watched, no_trace
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Margin, Objective, as_objective
from advfeat.ops import Number
from advfeat.threat import Threat

# How often, in steps, finished samples leave the batch under stop="success". On the CPU looking costs nothing;
# elsewhere it waits for the device, so it is done rarely.
_LEAVE_EVERY = {"cpu": 1}
_LEAVE_EVERY_ELSEWHERE = 10


@dataclass(frozen=True, eq=False)
class PGD:
    """Projected gradient steps on any model that gives logits.

        attack = advfeat.PGD(advfeat.L2(0.5), steps=100, step_size=0.1, targeted=True)
        x_adv = attack(model, x, target)          # the tensor
        result = attack.run(model, x, target)     # with success, objective, distance and counts

    threat: :class:`advfeat.L2` or :class:`advfeat.Linf`, the ball and the box.
    steps: number of gradient steps; 0 evaluates the start.
    step_size: length of a step (L2) or per value (L-inf), a float or a tensor [B]; None is ``2.5 * eps / steps``
        (Madry et al. 2018).
    objective: what is pushed up, or with ``targeted`` down; see :mod:`advfeat.objectives`. The default never saturates.
    random_start: start at a random point of the ball instead of at x.
    restarts: that many random starts; the best iterate over all of them is kept, successes first.
    targeted: descend towards ``target`` instead of ascending away from it.
    keep: "last" returns the last iterate, "best" the best one, a success if there is any, then by the objective.
    stop: "success" freezes a sample at its first success and lets it leave the batch; the others go on.
    seed: of the random starts; with the sample ids it determines them.
    autocast: torch.bfloat16 or torch.float16 to run the model in; iterates and projections stay in the dtype of x.

    The attack leaves no trace: parameters' ``.grad``, every submodule's training flag, BatchNorm statistics, random
    state, grad mode and inputs are as before, also after an exception. It runs under ``no_grad`` and
    ``inference_mode``. The model is attacked in eval mode. Nothing in the loop waits for the device (but with ``stop``,
    which looks every 10 steps).
    """

    threat: Threat
    steps: int
    step_size: Number | None = None
    objective: Objective | Callable = field(default_factory=Margin)
    random_start: bool = False
    restarts: int = 1
    targeted: bool = False
    keep: Literal["last", "best"] = "last"
    stop: Literal["success"] | None = None
    seed: int = 0
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.threat, Threat):
            raise TypeError(f"threat should be advfeat.L2(eps) or advfeat.Linf(eps), got {self.threat!r}")
        if not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"steps should be an integer, at least 0, got {self.steps!r}")
        if self.step_size is None:
            if not isinstance(self.threat.eps, Tensor) and not math.isfinite(self.threat.eps):
                raise ValueError("step_size should be given when eps is infinite")
            object.__setattr__(self, "step_size", 2.5 * self.threat.eps / max(self.steps, 1))
        elif not isinstance(self.step_size, Tensor) and not (self.step_size >= 0 and math.isfinite(self.step_size)):
            raise ValueError(f"step_size should be finite and at least 0, got {self.step_size}")
        object.__setattr__(self, "objective", as_objective(self.objective))
        if not isinstance(self.restarts, int) or self.restarts < 1:
            raise ValueError(f"restarts should be an integer, at least 1, got {self.restarts!r}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"restarts={self.restarts} needs random_start=True: all restarts would be the same")
        if self.keep not in ("last", "best"):
            raise ValueError(f'keep should be "last" or "best", got {self.keep!r}')
        if self.stop not in (None, "success"):
            raise ValueError(f'stop should be None or "success", got {self.stop!r}')
        if self.random_start and not isinstance(self.threat.eps, Tensor) and not math.isfinite(self.threat.eps):
            raise ValueError("random_start needs a finite eps")

    def to_dict(self) -> dict:
        """The settings as JSON values, as they are written beside every number."""
        size = self.step_size
        return {
            "attack": "PGD",
            **self.threat.to_dict(),
            "steps": self.steps,
            "step_size": size.tolist() if isinstance(size, Tensor) else size,
            "objective": self.objective.name,
            "random_start": self.random_start,
            "restarts": self.restarts,
            "targeted": self.targeted,
            "keep": self.keep,
            "stop": self.stop,
            "seed": self.seed,
            "autocast": str(self.autocast).removeprefix("torch.") if self.autocast else None,
        }

    def replace(self, **changes) -> PGD:
        """A copy with some settings changed."""
        return dataclasses.replace(self, **changes)

    def __call__(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        *,
        start: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """The adversarial examples [B, ...]. Arguments as for :meth:`run`; without ``keep``, ``stop`` or ``restarts``
        this saves the last forward pass."""
        plain = self.keep == "last" and self.stop is None and self.restarts == 1
        return _run(self, model, x, target, start, sample_ids, track=not plain).x_adv

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
        x: [B, ...] floating, in the box; the centre of the ball.
        target: the labels to leave, or with ``targeted`` to reach, int64 [B]; what the objective makes of it otherwise.
        start: the first iterate, projected; x itself or a random point if None.
        sample_ids: int64 [B], who the samples are, for the random starts; 0 ... B-1 if None.

        Errors: ValueError naming the argument; TypeError for a model without logits.
        """
        return _run(self, model, x, target, start, sample_ids, track=True)

    def over(self, model: Callable, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[AttackResult]:
        """The results for each batch ``(x, target)`` or ``(x, target, sample_ids)`` of a data set, in order.

        Without ids samples are numbered through, so that the random starts do not depend on the batch size.
        """
        seen = 0
        for x, target, *ids in batches:
            sample_ids = ids[0] if ids else torch.arange(seen, seen + x.shape[0], device=x.device)
            seen += x.shape[0]
            yield self.run(model, x, target, sample_ids=sample_ids)


def _check_inputs(
    attack: PGD, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None
) -> int | None:
    """Refuses what cannot be attacked; returns the largest label. One look at the values, before the loop."""
    if not x.is_floating_point() or x.dim() < 1:
        raise ValueError(f"x should be a floating-point batch [B, ...], got {x.dtype} of shape {tuple(x.shape)}")
    if target.shape[:1] != x.shape[:1]:
        raise ValueError(f"target should have one entry a sample, {x.shape[0]}, got shape {tuple(target.shape)}")
    if start is not None and (start.shape != x.shape or start.dtype != x.dtype):
        raise ValueError(
            f"start should be like x, {x.dtype} of shape {tuple(x.shape)}, got {start.dtype} of shape
            {tuple(start.shape)}"
        )
    if sample_ids is not None and (sample_ids.shape != x.shape[:1] or sample_ids.dtype != torch.int64):
        raise ValueError(
            f"sample_ids should be int64 [B] = ({x.shape[0]},), got {sample_ids.dtype} of shape
            {tuple(sample_ids.shape)}"
        )
    if x.numel() == 0 or (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return None

    def bound(v: Number) -> Tensor:
        b = torch.as_tensor(v, dtype=torch.float32, device=x.device)
        return b if b.dim() == 0 else b.reshape(1, -1, *[1] * (x.dim() - 2))

    lo, hi = bound(attack.threat.lo), bound(attack.threat.hi)
    # Rounding in the user's own normalisation (-3e-8 for 0) is no error; the first projection clips it.
    slack = torch.where(torch.isfinite(hi - lo), 1e-4 * (hi - lo), torch.zeros_like(hi - lo))
    bad = [(~torch.isfinite(x)).any(), ((x < lo - slack) | (x > hi + slack)).any()]
    labels = target.dtype == torch.int64 and target.dim() == 1
    least, most = target.aminmax() if labels else (torch.zeros_like(bad[0]), torch.zeros_like(bad[0]))
    not_finite, outside, least, most = torch.stack([t.to(torch.int64) for t in (*bad, least, most)]).tolist()
    if not_finite:
        row = int((~torch.isfinite(x)).reshape(x.shape[0], -1).any(dim=1).nonzero()[0])
        raise ValueError(f"x should be finite, sample {row} of the batch holds NaN or inf")
    if outside:
        raise ValueError(
            f"x should lie in the box [{attack.threat.lo}, {attack.threat.hi}] of the threat, got values from "
            f"{x.min().item():.4g} to {x.max().item():.4g}; for normalised inputs give the threat lo and hi by channel"
        )
    if labels and least < 0:
        raise ValueError(f"target should hold labels of at least 0, got {least}")
    return most if labels else None


class _Batch:
    """The samples still being attacked, and what is known of each."""

    def __init__(self, attack: PGD, x0: Tensor, x: Tensor, target: Tensor) -> None:
        n, device = x0.shape[0], x0.device
        self.threat, self.step_size = attack.threat, attack.step_size
        if isinstance(self.threat.eps, Tensor):  # as the kernels take it, so that no step converts it again
            self.threat = dataclasses.replace(self.threat, eps=self.threat.eps.to(device, torch.float64).expand(n))
        if isinstance(self.step_size, Tensor):
            self.step_size = self.step_size.to(device, torch.float64).expand(n)
        self.x0, self.x, self.target = x0, x, target
        self.index: Tensor | None = None  # rows of the whole batch; None for all
        self.grad_status = torch.zeros(n, 2, dtype=torch.int32, device=device)

    def keep(self, rows: Tensor) -> None:
        self.threat = self.threat.rows(rows)
        if isinstance(self.step_size, Tensor):
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
        self.value = torch.full((n,), float("nan"), device=device)
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
        rows = batch.index
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
        ops.update_best_(x, torch.zeros_like(value), batch.x, better.float())
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


def _hit(logits: Tensor | None, target: Tensor, targeted: bool) -> Tensor | None:
    if logits is None or target.dtype != torch.int64 or target.dim() != 1:
        return None
    predicted = logits.argmax(dim=1)
    return predicted == target if targeted else predicted != target


def _run(
    attack: PGD,
    model: Callable,
    x: Tensor,
    target: Tensor,
    start: Tensor | None,
    sample_ids: Tensor | None,
    track: bool,
) -> AttackResult:
    watched = Watched(model, _check_inputs(attack, x, target, start, sample_ids))
    backwarded = 0
    with no_trace(model, x.device):
        # Clones: the inputs are not to change, and tensors made under inference_mode cannot take part in autograd.
        x0, target = x.detach().clone(), target.detach().clone()
        ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids.clone()
        best = _Best(attack, x0) if track else None
        sign = -1.0 if attack.targeted else 1.0
        status = torch.zeros(x.shape[0], 2, dtype=torch.int32, device=x.device)
        leave_every = _LEAVE_EVERY.get(x.device.type, _LEAVE_EVERY_ELSEWHERE)

        def forward(batch: _Batch, grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
            point = batch.x.detach().requires_grad_(grad)
            watched.last_logits = None
            with torch.set_grad_enabled(grad), _autocast(attack, x.device):
                value = attack.objective.value(watched, point, batch.target)
            if value.shape != point.shape[:1]:
                raise ValueError(
                    f"the objective should give one value a sample, ({point.shape[0]},), got {tuple(value.shape)}"
                )
            logits = watched.last_logits
            if not grad:
                return value, logits, None
            if not value.requires_grad:
                raise ValueError("the objective does not depend on x through anything differentiable")
            (g,) = torch.autograd.grad(value.sum(), point)
            return value.detach(), logits, g

        for restart in range(attack.restarts):
            if start is not None:
                first = start.detach().clone()
            elif attack.random_start:
                # Restarts are streams of their own, far apart in the space of seeds.
                first = attack.threat.random_start(x0, (attack.seed + (restart << 40)) % 2**63, ids)
            else:
                first = x0.clone()
            batch = _Batch(attack, x0, first, target)
            batch.threat.project_(batch.x, x0)
            if attack.stop and restart > 0:
                batch.keep((~best.success).nonzero()[:, 0])
            for step in range(attack.steps):
                if batch.x.shape[0] == 0:
                    break
                value, logits, grad = forward(batch, grad=True)
                backwarded += batch.x.shape[0]
                if track:
                    hit = _hit(logits, batch.target, attack.targeted)
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
                value, logits, _ = forward(batch, grad=False)
                hit = _hit(logits, batch.target, attack.targeted)
                best.note(batch, hit, attack.steps)
                best.update(batch, value, hit, "best" if attack.keep == "best" or restart > 0 else "last")

        x_adv = best.x if track else batch.x
        empty = torch.full((x.shape[0],), float("nan"), device=x.device)
        seen = track and best.seen_logits
        return AttackResult(
            x_adv=x_adv,
            value=best.value if track else empty,
            success=best.success if seen else None,
            distance=attack.threat.distance(x_adv, x0),
            first_success=best.first_success if seen else None,
            zero_grad_steps=status[:, 0],
            nonfinite_grad_steps=status[:, 1],
            samples_forwarded=watched.samples_forwarded,
            samples_backwarded=backwarded,
        )


def _autocast(attack: PGD, device: torch.device):
    return torch.autocast(device.type, dtype=attack.autocast, enabled=attack.autocast is not None)
