"""FMN (Pintor et al. 2021): gradient steps in a ball whose radius adapts until it touches the decision boundary."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from advfeat._arguments import flag, number
from advfeat.attacks.apgd import ROUNDING
from advfeat.attacks.base import GivenObjective, check_settings, take_number_below
from advfeat.attacks.context import Run
from advfeat.attacks.minimum_norm import MinimumNormAttack, Walk, ends_of_box
from advfeat.attacks.result import AttackResult
from advfeat.objectives import CW, as_objective
from advfeat.settings import CHANGES_NO_RESULT
from advfeat.threat import L2, Threat


@dataclass(frozen=True, eq=False)
class FMN(MinimumNormAttack):
    """FMN, the fast minimum-norm attack: the smallest L-inf, L2 or L1 perturbation that changes the class.

    A step of length alpha along ``g / ||g||_2`` is projected onto a ball, whose radius r differs between samples, and
    onto the box. After an adversarial iterate the radius is ``min(r (1 - gamma), ||d*||)``, with d* the smallest
    perturbation found so far; after any other iterate it is ``r (1 + gamma)``, or, as long as no adversarial iterate
    has been found, ``||d|| + |L| / ||g||_q``, the distance at which the linearised margin L reaches 0, with q the dual
    norm. alpha and gamma fall along a cosine from the first step to the last (Algorithm 1 of Pintor et al. 2021). Every
    iterate is a candidate, also the last.

    Unless ``as_published``, two things are added. First, as long as nothing has been found, the radius is at least
    ``(1 + gamma) ||d||``: where the margin is linear, the estimate above ends exactly on the boundary, and half of the
    samples never cross it. Second, the components of a gradient that point out of the box at its edge are set to zero:
    a step along them goes nowhere, but the estimate counts on them. In L2 the published algorithm finds no adversarial
    example for a fifth of the digits.

    Args:
        threat: the ball and the box; eps, which may be infinite, decides only which examples the result holds, not the
            search.
        steps: gradient steps.
        step_size: alpha at the first step, in units of eps (pixel scale [0, 1]).
        last_step_size: alpha towards the last step; None for a hundredth of ``step_size``.
        gamma: the relative change of the radius at the first step, above 0 and below 1.
        last_gamma: the same towards the last step.
        as_published: leave out both additions. With them, a gradient of which every component points out of the box
            counts as zero.
        targeted: look for the nearest point that is classified as ``target``.
        autocast: as for :class:`advfeat.PGD`.
        graph: as for :class:`advfeat.PGD`.

    Attributes:
        objective: the margin of the logits, ``max_{j != y} z_j - z_y``.

    Raises:
        ValueError: a setting is out of range.
        TypeError: a setting has the wrong type.

    Example:
        result = advfeat.FMN(advfeat.Linf(float("inf")), steps=200).run(model, x, y)
        result.smallest_distance                         # [B], inf where no adversarial example was found
    """

    threat: Threat
    steps: int = 100
    step_size: float = 1.0
    last_step_size: float | None = None
    gamma: float = 0.05
    last_gamma: float = 0.001
    as_published: bool = False
    objective: GivenObjective = field(default_factory=cast("Any", CW), init=False)
    targeted: bool = False
    autocast: torch.dtype | None = None
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_settings(self)
        object.__setattr__(self, "as_published", flag("as_published", self.as_published))
        if self.last_step_size is None:
            object.__setattr__(self, "last_step_size", number("step_size", self.step_size) / 100)
        for name, most in (("step_size", math.inf), ("last_step_size", math.inf), ("gamma", 1.0), ("last_gamma", 1.0)):
            take_number_below(self, name, most)

    def _run(self, run: Run) -> AttackResult:
        return _Walk(self, run).run()


class _Walk(Walk):
    """The iterates, each in a ball around its image."""

    attack: FMN

    def __init__(self, attack: FMN, run: Run) -> None:
        super().__init__(attack, run)
        self.sizes = self.sign * self.cosine(attack.step_size, cast("float", attack.last_step_size))
        self.gammas = self.cosine(attack.gamma, attack.last_gamma)
        self.radius = self.largest.clone()
        lo, hi = ends_of_box(run.threat, self.x)
        # Of normalised images, even a value at the bound can lie a rounding beside it.
        slack = torch.where((hi - lo).isfinite(), ROUNDING * (hi - lo), 0.0)
        self.low, self.high = lo + slack, hi - slack

    def move(self, value: Tensor, success: Tensor, grad: Tensor) -> None:
        """See :meth:`Walk.move`."""
        run, gamma, size, status = self.samples, self.of_step(self.gammas), self.of_step(self.sizes), self.record.status
        if not self.attack.as_published:
            up = grad * self.sign
            leaves = (self.x >= self.high) & (up > 0) | (self.x <= self.low) & (up < 0)
            grad = torch.where(leaves & grad.isfinite(), 0.0, grad)
        # The first order's distance to the boundary; without a gradient there is none, and the whole box is the ball.
        slope = run.threat.dual_norm(grad)
        boundary = self.distance + value.to(torch.float64).abs() / slope
        boundary = torch.where(boundary.isfinite(), boundary, self.largest)
        if not self.attack.as_published:
            boundary = torch.maximum(boundary, self.distance * (1 + gamma))
        outside = torch.where(self.nearest < math.inf, self.radius * (1 + gamma), boundary)
        inside = torch.minimum(self.radius * (1 - gamma), self.nearest)
        self.radius.copy_(torch.minimum(torch.where(success, inside, outside), self.largest))
        ball = dataclasses.replace(run.threat, eps=self.radius)
        if isinstance(ball, L2):  # step, ball and box in one pass
            ball.step_(self.x, grad, run.x0, size, grad_status=status)
        else:
            self.free.step_(self.x, grad, run.x0, size, grad_status=status)
            ball.project_(self.x, run.x0)
