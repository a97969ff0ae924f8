"""The loop behind the attacks: one forward and one backward pass a step, one fused update, and nothing that waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.inputs import check_inputs, memory_format_for
from advfeat.attacks.no_trace import Watched, no_trace
from advfeat.attacks.replay import Step
from advfeat.attacks.result import AttackResult
from advfeat.forward import predicted_classes
from advfeat.objectives import are_labels, wide
from advfeat.threat import Threat

if TYPE_CHECKING:
    from advfeat.attacks.base import Attack
    from advfeat.attacks.pgd import PGD


def random_start(attack: Attack, threat: Threat, x0: Tensor, sample_ids: Tensor, restart: int) -> Tensor:
    """The random point that a restart begins at. Restarts are streams of their own, far apart in the space of seeds."""
    return threat.random_start(x0, ((attack.seed or 0) + (restart << 40)) % 2**63, sample_ids)


def successes(attack: Attack, logits: Tensor | None, target: Tensor) -> Tensor | None:
    """Which predictions are what the attack wants, bool [B]; None where there are no logits or no labels."""
    labels = attack.objective.labels(target)
    if logits is None or labels is None:
        return None
    predicted = predicted_classes(logits)
    return predicted == labels if attack.targeted else (predicted != labels) & (predicted >= 0)


def value_and_grad(
    attack: Attack, model: Watched, x: Tensor, target: Tensor, grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The objective [B], the logits of x where it asked for them, and (with ``grad``) its gradient by x; one pass
    through the model."""
    objective, point = attack.objective, x.detach().requires_grad_(grad)
    model.look_at(point)
    autocast = contextlib.nullcontext()
    if attack.autocast is not None:
        # No cache of cast weights: it would outlive this pass, be read by a replayed graph after it is freed, and hold
        # a cast image batch for every step.
        autocast = torch.autocast(x.device.type, dtype=attack.autocast, cache_enabled=False)
    if not grad:
        with torch.no_grad(), autocast:
            value = objective.value(model, point, target)
        _check_value(value, point)
        return value, model.logits, None
    rule = objective.slope_rule()
    if rule is not None:
        with autocast:
            logits = model(point)
        with torch.no_grad():
            value, slope = rule(wide(logits), target)
        return value, model.logits, _gradient(logits, point, slope.to(logits.dtype))
    with autocast:
        value = objective.value(model, point, target)
    _check_value(value, point)
    return value.detach(), model.logits, _gradient(value, point, torch.ones_like(value))


def _check_value(value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape[:1]:
        raise ValueError(f"the objective should give one value a sample, ({x.shape[0]},), got {tuple(value.shape)}")


def _gradient(output: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """The gradient by x of an output whose own is ``slope``."""
    gradient = None
    if output.requires_grad:  # which may come from the parameters alone
        (gradient,) = torch.autograd.grad(output, x, slope, allow_unused=True)
    if gradient is None:
        raise ValueError("the objective does not depend on x through anything differentiable")
    return gradient


def own_copies(model: Callable, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """x0 in the layout that suits the model, and the target, both apart from the caller's tensors.

    Clones: the inputs are not to change, and tensors made under inference_mode cannot take part in autograd.
    """
    x0 = x.detach().clone(memory_format=memory_format_for(model, x))
    target = target.detach().clone()
    return x0, target.to(torch.int64) if are_labels(target) else target


def into_box_(x0: Tensor, threat: Threat) -> Tensor:
    """The centre of the ball, which rounding may have left a little outside the box; in place. An iterate that is put
    back into the box around another centre would leave the ball."""
    return threat.project_(x0, x0.clone())


def strides_of(x: Tensor) -> tuple[int, ...]:
    """The strides of a new tensor like x."""
    return torch.empty_like(x, device="meta").stride()


def with_strides(x_adv: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x_adv in the layout that the caller gave x in."""
    if x_adv.stride() == strides:
        return x_adv
    return torch.empty_strided(x_adv.shape, strides, dtype=x_adv.dtype, device=x_adv.device).copy_(x_adv)


class _Best:
    """What is kept of each sample over steps and restarts, [B]: all in place, as a captured step needs it.

    A success is better than a failure; among equals the objective decides. The image is kept only where it can be
    another than the iterate itself.
    """

    def __init__(self, attack: PGD, x: Tensor) -> None:
        n, device = x.shape[0], x.device
        self.x = torch.empty_like(x) if attack.keep == "best" or attack.restarts > 1 else None
        self.sign = -1.0 if attack.targeted else 1.0
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.value = torch.empty((n,), dtype=dtype, device=device)
        self.success = torch.empty(n, dtype=torch.bool, device=device)
        self.first_success = torch.empty((n,), dtype=torch.int32, device=device)
        self.step = torch.empty((), dtype=torch.int32, device=device)
        self.seen_logits = n == 0
        self.forget(x)

    def forget(self, x: Tensor) -> None:
        """Nothing is known yet; where nothing ever will be (NaN everywhere) x stays."""
        if self.x is not None:
            self.x.copy_(x)
        self.value.fill_(float("nan"))
        self.success.fill_(False)
        self.first_success.fill_(-1)
        self.step.zero_()

    def note(self, success: Tensor | None) -> None:
        """Remembers when a sample was first seen to succeed."""
        if success is not None:
            self.seen_logits = True
            first = self.first_success
            first.copy_(torch.where((first < 0) & success, self.step, first))

    def update(self, x: Tensor, value: Tensor, success: Tensor | None, always: bool) -> None:
        """Takes the iterates that are better than what was kept, or with ``always`` all of them."""
        value = value.to(self.value.dtype)
        success = torch.zeros_like(self.success) if success is None else success
        if always:
            better = torch.ones_like(self.success)
        else:
            rank, old_rank = self.sign * value, self.sign * self.value
            higher = (rank > old_rank) | (old_rank.isnan() & ~rank.isnan())
            better = (success & ~self.success) | ((success == self.success) & higher)
        if self.x is not None:
            ops.update_best_(self.x, torch.zeros_like(value), x, better.to(value.dtype))
        self.value.copy_(torch.where(better, value, self.value))
        self.success.copy_(torch.where(better, success, self.success))


def run(
    attack: PGD,
    model: Callable,
    x: Tensor,
    target: Tensor,
    start: Tensor | None,
    sample_ids: Tensor | None,
    track: bool,
) -> AttackResult:
    """All steps for all samples, in step with each other; ``track`` looks at the last iterate too. For ``stop=None``:
    :mod:`advfeat.attacks.pool` has the other case."""
    return _Lockstep(attack, model, track).run(x, target, start, sample_ids)


def over(attack: PGD, model: Callable, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Iterator[AttackResult]:
    """The results of :func:`run` for each batch ``(x, target, sample_ids)``; batches of one shape share their buffers,
    and so one captured graph."""
    lockstep = _Lockstep(attack, model, True, again=True)
    for x, target, sample_ids in batches:
        yield lockstep.run(x, target, None, sample_ids)


class _Lockstep:
    """The tensors of a batch under attack; with ``again`` kept for the next batch, if that is of the same kind."""

    def __init__(self, attack: PGD, model: Callable, track: bool, again: bool = False) -> None:
        self.attack, self.model, self.track, self.again = attack, model, track, again
        self.watched = Watched(model)
        self.kind: tuple | None = None

    def run(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> AttackResult:
        attack = self.attack
        self.watched.expect_label(check_inputs(attack, x, target, start, sample_ids))
        n = x.shape[0]
        # The caller's autocast would also cast the backward pass, which PyTorch advises against.
        with no_trace(self.model, x.device, attack.objective), torch.autocast(x.device.type, enabled=False):
            self._take(x, target)
            ids = torch.arange(n, device=x.device) if sample_ids is None else sample_ids.clone()
            for restart in range(attack.restarts):
                if start is not None:
                    self.at.copy_(start.detach())
                elif attack.random_start:
                    self.at.copy_(random_start(attack, self.threat, self.x0, ids, restart))
                else:
                    self.at.copy_(self.x0)
                self.threat.project_(self.at, self.x0)
                if n > 0:
                    self.step(self._one_step, attack.steps)
                    if self.best is not None:
                        self._last_look(restart)
            return self._result(x)

    def _take(self, x: Tensor, target: Tensor) -> None:
        kind = (x.shape, x.dtype, x.device, target.shape, target.dtype)
        if self.kind == kind:
            into_box_(self.x0.copy_(x.detach()), self.threat)
            self.target.copy_(target.detach())
            self.status.zero_()
            if self.best is not None:
                self.best.forget(self.x0)
            return
        self.kind = kind
        self.x0, self.target = own_copies(self.model, x, target)
        self.threat, size = self.attack.threat.to(x.device), self.attack.step_length
        into_box_(self.x0, self.threat)
        self.at = self.x0.clone()  # the iterate; every step moves it in place
        if isinstance(size, Tensor):  # as the kernels take it, so that no step converts it again
            size = size.detach().to(x.device, torch.float64)
        self.size = -size if self.attack.targeted else size
        self.best = _Best(self.attack, self.x0) if self.track else None
        self.status = torch.zeros(x.shape[0], 2, dtype=torch.int32, device=x.device)
        self.step = Step(x.device, self.attack.graph, again=self.again)

    def _one_step(self) -> None:
        best, target = self.best, self.target
        value, logits, grad = value_and_grad(self.attack, self.watched, self.at, target, True)
        if best is not None:
            hit = successes(self.attack, logits, target)
            best.note(hit)
            if self.attack.keep == "best":
                best.update(self.at, value, hit, always=False)
            best.step.add_(1)
        self.threat.step_(self.at, grad, self.x0, self.size, grad_status=self.status)

    def _last_look(self, restart: int) -> None:
        value, logits, _ = value_and_grad(self.attack, self.watched, self.at, self.target, False)
        hit = successes(self.attack, logits, self.target)
        self.best.note(hit)
        self.best.update(self.at, value, hit, always=self.attack.keep == "last" and restart == 0)
        self.best.step.zero_()

    def _result(self, x: Tensor) -> AttackResult:
        best, n, attack = self.best, x.shape[0], self.attack
        x_adv = self.at if best is None or best.x is None else best.x
        seen = best is not None and best.seen_logits

        def given(tensor: Tensor) -> Tensor:
            return tensor.clone() if self.again else tensor

        return AttackResult(
            x_adv=with_strides(given(x_adv), strides_of(x)),
            value=given(best.value) if best is not None else torch.full((n,), float("nan"), device=x.device),
            success=given(best.success) if seen else None,
            distance=self.threat.distance(x_adv, self.x0),
            first_success=given(best.first_success) if seen else None,
            zero_grad_steps=given(self.status[:, 0]),
            nonfinite_grad_steps=given(self.status[:, 1]),
            samples_forwarded=n * attack.restarts * (attack.steps + self.track),
            samples_backwarded=n * attack.restarts * attack.steps,
            why_eager=self.step.why_eager,
        )
