"""The part that minimum-norm attacks share: a walk from each image that keeps the nearest adversarial iterate."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from advfeat.attacks.base import GradientAttack
from advfeat.attacks.context import Run
from advfeat.attacks.gradient import successes, value_and_grad
from advfeat.attacks.record import Record
from advfeat.attacks.replay import ReplayedStep
from advfeat.attacks.result import AttackResult
from advfeat.ops import Number
from advfeat.threat import L2, Threat


class MinimumNormAttack(GradientAttack):
    """Base class of attacks that look for the nearest adversarial example instead of one within a given radius.

    The search starts at x itself and does not depend on eps, which only decides what the result holds: the nearest
    adversarial example, if it lies within eps, else x. The smallest distance found, beyond eps too, is in
    :attr:`advfeat.attacks.AttackResult.smallest_distance`.

    Attributes:
        graph: whether a step may be captured into a CUDA graph.
    """

    graph: bool
    random_start = False
    restarts = 1
    seed = None
    takes_start = False

    @property
    def step_length(self) -> Number | None:
        """None: it does not depend on eps."""
        return None

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """See :meth:`advfeat.attacks.Attack.check`.

        Raises:
            ValueError: a ``start`` is given, or as for :class:`advfeat.PGD`.
        """
        if start is not None:
            raise ValueError(f"start should be None: {type(self).__name__} starts at x")
        return super().check(x, target, start, sample_ids)


class Walk:
    """The iterates of a batch, and the nearest adversarial one of each sample; all tensors are updated in place.

    A subclass moves the iterates.

    Args:
        attack: the attack.
        run: the samples, in their ball and box.

    Attributes:
        attack: the attack.
        samples: the samples.
        x: the iterate, like x0.
        record: the nearest adversarial iterates within eps, else x0.
        distance: float64 [n], of the iterate from x0.
        nearest: float64 [n], of the nearest adversarial iterate, within eps or not; inf for none.
        largest: float64 [n], of the farthest point of the box.
        step: int32 [], the number of steps taken.
    """

    def __init__(self, attack: MinimumNormAttack, run: Run) -> None:
        self.attack, self.samples = attack, run
        n, device = len(run), run.x0.device
        self.x, self.record = run.x0.clone(), Record(run.x0, attack.targeted)
        self.distance = torch.zeros(n, dtype=torch.float64, device=device)
        self.nearest = torch.full_like(self.distance, math.inf)
        self.largest = farthest(run.threat, run.x0)
        self.step = torch.zeros((), dtype=torch.int32, device=device)
        self.sign = -1.0 if attack.targeted else 1.0
        self._eps = torch.as_tensor(run.threat.eps, dtype=torch.float64, device=device).expand(n)
        # Steps along the L2 direction of the gradient; what follows takes care of ball and box.
        self.free = L2(math.inf, -math.inf, math.inf, unit=run.threat.unit)

    @abstractmethod
    def move(self, value: Tensor, success: Tensor, grad: Tensor) -> None:
        """Moves the iterates by one step, in place.

        Args:
            value: the objective at the iterates, [n].
            success: bool [n], whether they are adversarial.
            grad: the gradient of the objective, like x.
        """

    def run(self) -> AttackResult:
        """Takes all steps.

        Returns:
            The result.

        Raises:
            ValueError: the attack cannot tell whether an iterate is adversarial.
        """
        n, steps = len(self.samples), self.attack.steps
        replayed = ReplayedStep(self.x.device, self.attack.graph)
        if n > 0:
            replayed(self._one_step, steps)
            self._look(grad=False)
        found = self.samples.result(
            self.record, forwarded=n * (steps + 1), backwarded=n * steps, why_eager=replayed.why_eager
        )
        found.smallest_distance = self.nearest
        return found

    def cosine(self, first: float, last: float) -> Tensor:
        """The numbers ``last + (first - last) (1 + cos(pi k / steps)) / 2`` of all steps k.

        Args:
            first: the number of the first step.
            last: what the numbers fall towards.

        Returns:
            float64 [steps], at least one.
        """
        steps = max(self.attack.steps, 1)
        numbers = [last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
        return torch.tensor(numbers, dtype=torch.float64, device=self.x.device)

    def of_step(self, numbers: Tensor) -> Tensor:
        """The number of the current step.

        Args:
            numbers: one per step.

        Returns:
            The number, [].
        """
        return numbers.take(self.step.to(torch.int64))  # not an index, which would wait for the device

    def _one_step(self) -> None:
        value, success, grad = self._look(grad=True)
        assert grad is not None
        self.move(value, success, grad)
        self.step.add_(1)

    def _look(self, grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Evaluates the iterates and keeps the nearest adversarial ones; the objective, successes and gradient."""
        attack, run, record = self.attack, self.samples, self.record
        value, logits, gradient = value_and_grad(attack, run.model, self.x, run.target, grad)
        success = successes(attack, logits, run.target)
        if success is None:
            raise ValueError(
                f"{type(attack).__name__} should know which iterates are adversarial: the target should be labels and "
                "the objective use the logits"
            )
        self.distance.copy_(distance(run.threat, self.x, run.x0))
        nearer = success & (self.distance < self.nearest)
        self.nearest.copy_(torch.where(nearer, self.distance, self.nearest))
        within = nearer & (self.distance <= self._eps)
        record.see(within, self.step)
        record.keep(within | (self.step == 0), self.x, value, within)
        return value, success, gradient


def distance(threat: Threat, x: Tensor, x0: Tensor) -> Tensor:
    """The norm of x - x0 for each sample, in units of eps.

    Args:
        threat: gives norm and unit.
        x: [B, ...].
        x0: like x.

    Returns:
        float64 [B].
    """
    return threat.distance(x.to(torch.float64), x0.to(torch.float64))


def farthest(threat: Threat, x0: Tensor) -> Tensor:
    """The distance of the farthest point of the box from each sample, in units of eps.

    Args:
        threat: gives norm, box and unit.
        x0: [B, ...], in the box.

    Returns:
        float64 [B]; inf where the box is unbounded.
    """
    wide = x0.to(torch.float64)
    lo, hi = ends_of_box(threat, wide)
    return threat.distance(torch.where(wide - lo > hi - wide, lo, hi), wide)


def ends_of_box(threat: Threat, x: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds of the box as images.

    Args:
        threat: gives the box.
        x: [B, ...].

    Returns:
        The lower and the upper bounds, like x.
    """
    lo, hi = (threat.into_box_(torch.full_like(x, end)) for end in (-math.inf, math.inf))
    return lo, hi
