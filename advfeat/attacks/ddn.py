"""DDN (Rony et al. 2019): gradient steps on a sphere whose radius shrinks while the iterate is adversarial."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from advfeat._arguments import whole_number
from advfeat.attacks.base import GivenObjective, check_settings, take_number_below
from advfeat.attacks.context import Run
from advfeat.attacks.minimum_norm import MinimumNormAttack, Walk, distance, ends_of_box
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Margin, as_objective
from advfeat.settings import CHANGES_NO_RESULT
from advfeat.threat import L2, Threat

# The step size falls to it, as a share of the first one (Section 4 of the paper).
_LAST_STEP = 0.01


@dataclass(frozen=True, eq=False)
class DDN(MinimumNormAttack):
    """DDN, the decoupled direction and norm attack: the smallest L2 perturbation that changes the class.

    With d_k the perturbation and g_k the gradient at step k, ``d = d_k + alpha_k g_k / ||g_k||`` gives the direction of
    the next perturbation and a radius r, one per sample, its norm: ``d_{k+1} = r d / ||d||``, clipped to the box. r is
    multiplied by ``1 - gamma`` if the iterate is adversarial, else by ``1 + gamma``; alpha_k falls along a cosine from
    ``step_size`` to a hundredth of it (Algorithm 1 of Rony et al. 2019). Every iterate is a candidate, also the last.

    A gradient that is zero or not finite leaves the direction as it is, whereas the authors' code replaces it by random
    noise; the result counts such steps.

    Args:
        threat: :class:`advfeat.L2`; eps, which may be infinite, decides only which examples the result holds, not the
            search.
        steps: gradient steps.
        gamma: the relative change of the radius at each step, above 0 and below 1.
        init_norm: the radius before the first step, in units of eps (pixel scale [0, 1]).
        step_size: of the first step, likewise.
        levels: the number of equally spaced values of the box to which iterates are rounded, at least 2: 256 for those
            of 8-bit images; None for no rounding.
        objective: as for :class:`advfeat.PGD`. The default has the direction of the cross-entropy, which the authors
            take, and does not saturate.
        targeted: look for the nearest point that is classified as ``target``.
        autocast: as for :class:`advfeat.PGD`.
        graph: as for :class:`advfeat.PGD`.

    Raises:
        ValueError: the norm is not L2, a setting is out of range, or ``levels`` is given for a box without bounds.
        TypeError: a setting has the wrong type.

    Example:
        result = advfeat.DDN(advfeat.L2(float("inf")), steps=200).run(model, x, y)
        result.smallest_distance                         # [B], inf where no adversarial example was found
    """

    threat: Threat
    steps: int = 100
    gamma: float = 0.05
    init_norm: float = 1.0
    step_size: float = 1.0
    levels: int | None = None
    objective: GivenObjective = field(default_factory=cast("Any", lambda: Margin(1.0)))
    targeted: bool = False
    autocast: torch.dtype | None = None
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_settings(self)
        if not isinstance(self.threat, L2):
            raise ValueError(f"threat should be advfeat.L2 for DDN, got {self.threat!r}; advfeat.FMN takes other norms")
        for name, most in (("gamma", 1.0), ("init_norm", math.inf), ("step_size", math.inf)):
            take_number_below(self, name, most)
        if self.levels is not None:
            object.__setattr__(self, "levels", whole_number("levels", self.levels, 2))

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """See :meth:`advfeat.attacks.Attack.check`.

        Raises:
            ValueError: ``levels`` is given for a box without bounds, or as for the base class.
        """
        largest = super().check(x, target, start, sample_ids)
        if self.levels is not None and len(x):
            lo, hi = ends_of_box(self.threat, x[:1])
            if not bool((hi - lo).isfinite().all()):
                raise ValueError(f"levels should be None for a box without bounds, got {self.levels}")
        return largest

    def _run(self, run: Run) -> AttackResult:
        return _Walk(self, run).run()


class _Walk(Walk):
    """The iterates, each on a sphere around its image."""

    attack: DDN

    def __init__(self, attack: DDN, run: Run) -> None:
        super().__init__(attack, run)
        self.sizes = self.sign * self.cosine(attack.step_size, _LAST_STEP * attack.step_size)
        self.radius = torch.minimum(torch.full_like(self.nearest, attack.init_norm), self.largest)

    def move(self, value: Tensor, success: Tensor, grad: Tensor) -> None:
        """See :meth:`Walk.move`."""
        run, gamma = self.samples, self.attack.gamma
        self.free.step_(self.x, grad, run.x0, self.of_step(self.sizes), grad_status=self.record.status)
        radius = torch.where(success, self.radius * (1 - gamma), self.radius * (1 + gamma))
        self.radius.copy_(torch.minimum(radius, self.largest))
        length = distance(run.threat, self.x, run.x0)
        factor = torch.where(length > 0, self.radius / torch.where(length > 0, length, 1.0), 0.0)
        wide = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        moved = (self.x.to(wide) - run.x0.to(wide)) * factor.to(wide).reshape(-1, *[1] * (self.x.dim() - 1))
        run.threat.into_box_(self.x.copy_(run.x0 + moved))
        if self.attack.levels is not None:
            self._round_(self.attack.levels - 1)

    def _round_(self, steps: int) -> None:
        lo, hi = ends_of_box(self.samples.threat, self.x)
        width = torch.where(hi > lo, hi - lo, 1.0)
        self.x.copy_(lo + ((self.x - lo) / width * steps).round() / steps * width)
        self.samples.threat.into_box_(self.x)
