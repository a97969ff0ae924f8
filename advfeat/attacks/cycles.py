"""Iterates that return: the proof that constant steps will bring nothing new, found while the attack runs.

Without momentum and with a constant step size, the next iterate depends on this one alone. L-inf steps move on a finite
lattice, so sooner or later an iterate is one that was there before, and from then on the attack walks in a circle
("Stop Walking in Circles! Bailing Out Early in Projected Gradient Descent", arXiv 2503.19347).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from advfeat import ops

# How many hashes are remembered, and so the longest cycle that is found: 64 take the memory of 256 float32 values.
# The longest cycle of 1,024 runs of up to 1,000 steps on digits had ten iterates, and nine in ten had two.
HISTORY = 64
_NEVER = -(2**40)  # a step so long ago that no cycle reaches back to it


class Cycles:
    """Finds out, for each of n samples, when its iterate is bit for bit one that it has been before.

    The hash of every iterate is compared with those of the last ``HISTORY``. Where one is there again, its distance is
    taken for the length of a cycle and the iterate itself is kept; if it comes back that much later, the cycle is
    proven. Equal hashes of different iterates cost nothing but the copy. Hence a cycle is known two lengths after its
    first iterate, with one image in memory for each sample.

    All tensors are updated in place and the host never waits, so that a step can be replayed as a CUDA graph. For that,
    the comparison with the iterate kept is made at every step, whether it is due or not: two reads of the images, where
    a choice by value would have to wait for the device.

    Args:
        x: images [n, ...], of the shape, dtype and layout of the iterates.
    """

    _TENSORS = ("_hashes", "_seen_at", "_kept", "_kept_at", "_length", "_counts")

    def __init__(self, x: Tensor) -> None:
        n, device = x.shape[0], x.device
        # A ring: the hash of step k, and k, are in column k modulo HISTORY.
        self._hashes = torch.zeros(n, HISTORY, dtype=torch.int64, device=device)
        self._seen_at = torch.full_like(self._hashes, _NEVER)
        self._kept = torch.empty_like(x)
        self._kept_at, self._length = torch.zeros(2, n, dtype=torch.int64, device=device)
        self._counts = torch.zeros(n, 2, dtype=torch.int32, device=device)

    def forget(self, rows: Tensor) -> None:
        """Begins anew for some of the samples, which are at step 0.

        Args:
            rows: int64 indices.
        """
        self._seen_at[rows], self._kept_at[rows], self._length[rows] = _NEVER, 0, 0

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

    def closed(self, x: Tensor, step: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Which cycles the iterates have proven; to be called once per step.

        Args:
            x: the iterates [n, ...].
            step: int64 [n], their steps, of which a sample's first is 0.
            counts: int32 [n, 2], numbers that grow from step to step.

        Returns:
            int64 [n], the length of the cycle that has just been gone through from this iterate to itself, 0 for none;
            and int32 [n, 2], by how much ``counts`` has grown meanwhile.
        """
        hashes = ops.hash_rows(x)[:, None]
        due = self._kept_at + self._length
        proven = (self._length > 0) & (step == due) & _same_bits(x, self._kept)
        length, grown = torch.where(proven, self._length, 0), counts - self._counts

        distance = step - torch.where(self._hashes == hashes, self._seen_at, _NEVER).amax(dim=1)
        fresh = (distance <= HISTORY) & (step >= due)
        ops.copy_rows_(self._kept, x, fresh)
        ops.copy_rows_(self._kept_at, step, fresh)
        ops.copy_rows_(self._length, distance, fresh)
        ops.copy_rows_(self._counts, counts, fresh)
        column = step[:, None] % HISTORY
        self._hashes.scatter_(1, column, hashes)
        self._seen_at.scatter_(1, column, step[:, None])
        return length, grown


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Which rows are equal as bit patterns, bool [n].

    As numbers, 0.0 and -0.0 are equal, which a model may tell apart, and a NaN does not equal itself.
    """
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    same = a.view(words) == b.view(words)
    return same.reshape(len(a), math.prod(a.shape[1:])).all(dim=1)
