"""The step sizes of PGD: constant, falling along a schedule, or Polyak's, as numbers that live on the device."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfeat.threat import Threat

if TYPE_CHECKING:
    from advfeat.attacks.pgd import PGD
    from advfeat.ops import Number

# What the step size is multiplied by at a fraction t of the steps, 0 <= t < 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


class StepSizes:
    """The signed step size of every step of an attack: negative for a targeted attack, which descends.

    Args:
        attack: gives the step size, its schedule, the number of steps, the objective and the direction.
        threat: the threat model on the device of the samples; Polyak's step measures gradients in its dual norm.
        device: the device of the samples.
    """

    def __init__(self, attack: PGD, threat: Threat, device: torch.device) -> None:
        self._sign, self._steps = -1.0 if attack.targeted else 1.0, max(attack.steps, 1)
        self._threat, self._share = threat, 1 - attack.momentum  # the heavy ball's: Polyak's step has no other
        self._optimum = attack.objective.optimum or 0.0  # PGD refuses Polyak's step where it is unknown
        size = attack.step_length
        if isinstance(size, Tensor):  # as the kernels take it, so that no step converts it again
            size = size.detach().to(device, torch.float64)
        self._size: Number | None = None if size is None else self._sign * size
        self._factors: Tensor | None = None
        if attack.schedule != "constant":
            rule = SCHEDULES[attack.schedule]
            factors = [rule(step / self._steps) for step in range(self._steps)]
            self._factors = torch.tensor(factors, dtype=torch.float64, device=device)

    def of(self, step: Tensor, value: Tensor, grad: Tensor) -> Number:
        """The size of a step, to be called once per step.

        Args:
            step: the number of the step, an integer tensor [] or [n]; numbers after the last step count as the last.
            value: the objective [n] at the iterates.
            grad: its gradient [n, ...].

        Returns:
            A float, or a float64 tensor [] or [n].
        """
        size = self._polyak(value, grad) if self._size is None else self._size
        if self._factors is None:
            return size
        # take, not an index: indexing by a tensor without dimensions reads it on the host, which waits for the device.
        return self._factors.take(step.clamp(max=self._steps - 1).to(torch.int64)) * size

    def _polyak(self, value: Tensor, grad: Tensor) -> Tensor:
        """The distance to the optimum over the dual norm of the gradient: where the linear model is at the optimum."""
        # Not beyond the largest finite step of the kernels: a gradient of 1e-38 has a step of 1e38.
        least = torch.finfo(torch.float32).tiny
        gap = (value.to(torch.float64) - self._optimum).clamp(min=0)
        slope = self._threat.dual_norm(grad)
        size = torch.where(slope > least * gap, gap / slope, 0.0)  # NaN compares as false
        return self._sign * self._share * size

    def rows(self, rows: Tensor) -> StepSizes:
        """The step sizes of some of the samples.

        Args:
            rows: int64 indices.

        Returns:
            The step sizes.
        """
        part = copy.copy(self)
        if isinstance(self._size, Tensor) and self._size.dim() == 1:
            part._size = self._size[rows]
        part._threat = self._threat.rows(rows)
        return part
