"""Detection of iterates that return: from then on an attack of constant step size runs in circles.

"Stop Walking in Circles! Bailing Out Early in Projected Gradient Descent" (arXiv 2503.19347).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfeat import ops

if TYPE_CHECKING:
    from advfeat.attacks.pgd import PGD


class Cycles:
    """For each of n samples an earlier iterate, with which the later ones are compared.

    The iterate is that of the last step whose number is 0 or a power of two (Brent 1980), so that a cycle of any length
    is found in at most a few times the steps to its first return. The rows themselves are compared, at every step and
    without a synchronisation: a hash would spare half of the reads, but what it finds has to be confirmed on the rows.

    All tensors are updated in place, so that a step which writes them can be replayed as a CUDA graph.

    Args:
        attack: gives ``steps`` and ``keep``.
        x: images [n, ...].
    """

    _TENSORS = ("_saved", "_saved_step", "_last_step")

    def __init__(self, attack: PGD, x: Tensor) -> None:
        self._steps, self._keeps_last = attack.steps, attack.keep == "last"
        self._saved = torch.zeros_like(x)
        self._saved_step, self._last_step = torch.zeros((2, x.shape[0]), dtype=torch.int64, device=x.device)
        self.forget(slice(None))

    def end(self, x: Tensor, step: Tensor, live: Tensor) -> Tensor:
        """Whether the attack can end at these iterates with the result of all steps; to be called at every step.

        Where the best iterate is kept, that is as soon as one has returned: all that will come have been seen. The last
        iterate is one of the cycle, which the sample still has to reach.

        Args:
            x: the iterates [n, ...].
            step: their steps, int64 [n].
            live: the samples whose attack continues, bool [n].

        Returns:
            bool [n].
        """
        same = (x == self._saved).reshape(len(x), -1).all(dim=1)
        returned = same & (self._saved_step >= 0) & live
        length = (step - self._saved_step).clamp(min=1)
        last = step + (self._steps - step) % length if self._keeps_last else step
        self._last_step.copy_(torch.where(returned, torch.minimum(last, self._last_step), self._last_step))
        moves = (step & (step - 1) == 0) & live
        ops.copy_rows_(self._saved, x, moves)
        self._saved_step.copy_(torch.where(moves, step, self._saved_step))
        return step >= self._last_step

    def forget(self, rows: Tensor | slice) -> None:
        """Starts afresh for some of the samples.

        Args:
            rows: int64 indices or a slice.
        """
        self._saved_step[rows], self._last_step[rows] = -1, self._steps

    def rows(self, rows: Tensor) -> Cycles:
        """A copy for some of the samples.

        Args:
            rows: int64 indices.

        Returns:
            The copy.
        """
        part = copy.copy(self)
        for name in self._TENSORS:
            setattr(part, name, getattr(self, name)[rows])
        return part
