"""The per-sample record of an attack: its best iterate, and how it was reached."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from advfeat import ops


class Record:
    """The best iterate of each of n samples so far, with its value; the single definition of "better" for all attacks.

    A success is better than a failure. Among equals the objective decides: the larger value, or with ``targeted`` the
    smaller. A NaN is better than nothing, and any number is better than a NaN.

    All tensors are updated in place, so that a step which writes them can be replayed as a CUDA graph.

    Args:
        x: images [n, ...], the initial iterates.
        targeted: whether smaller values are better.
        image: whether to keep the images.

    Attributes:
        x: [n, ...]; None if images are not kept.
        value: [n], the objective at x: float64 for float64 images, otherwise float32; NaN for none yet.
        success: bool [n].
        first_success: int32 [n], the step at which a sample first succeeded, -1 for never.
        status: int32 [n, 2], the numbers of steps with a zero gradient and with a non-finite one.
        knows_success: False once the success of an iterate could not be determined.
    """

    _TENSORS = ("x", "value", "success", "first_success", "status")

    def __init__(self, x: Tensor, targeted: bool, image: bool = True) -> None:
        n, device = x.shape[0], x.device
        self._sign = -1.0 if targeted else 1.0
        self.x = x.clone() if image else None
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.value = torch.full((n,), float("nan"), dtype=wide, device=device)
        self.success = torch.zeros(n, dtype=torch.bool, device=device)
        self.first_success = torch.full((n,), -1, dtype=torch.int32, device=device)
        self.status = torch.zeros(n, 2, dtype=torch.int32, device=device)
        self.knows_success = True

    def as_successes(self, success: Tensor | None) -> Tensor:
        """The successes, or all False where they are unknown.

        Args:
            success: bool [n], or None for unknown, which sets ``knows_success`` to False.

        Returns:
            bool [n].
        """
        if success is None:
            self.knows_success = False
            return torch.zeros_like(self.success)
        return success

    def see(self, success: Tensor, step: Tensor) -> None:
        """Records the step of samples that succeed for the first time.

        Args:
            success: bool [n].
            step: int [] or [n].
        """
        first = self.first_success
        first.copy_(torch.where((first < 0) & success, step.to(first.dtype), first))

    def is_better(self, value: Tensor, success: Tensor) -> Tensor:
        """Whether iterates are better than those kept.

        Args:
            value: the objective at the iterates, [n].
            success: bool [n].

        Returns:
            bool [n].
        """
        rank, old = self._sign * value.to(self.value.dtype), self._sign * self.value
        higher = (rank > old) | (old.isnan() & ~rank.isnan())
        return (success & ~self.success) | ((success == self.success) & higher)

    def keep(self, which: Tensor, x: Tensor, value: Tensor, success: Tensor) -> None:
        """Stores some of the iterates.

        Args:
            which: bool [n], the samples to store.
            x: [n, ...].
            value: [n].
            success: bool [n].
        """
        value = value.to(self.value.dtype)
        if self.x is not None:
            ops.copy_rows_(self.x, x, which)
        ops.copy_rows_(self.value, value, which)
        ops.copy_rows_(self.success, success, which)

    def forget(self, x: Tensor, rows: Tensor | slice = slice(None)) -> None:
        """Resets the record of some of the samples.

        Args:
            x: their initial iterates.
            rows: the samples; all by default.
        """
        if self.x is not None:
            self.x[rows] = x
        self.value[rows], self.success[rows], self.first_success[rows] = float("nan"), False, -1
        self.status[rows] = 0

    def rows(self, rows: Tensor) -> Record:
        """A copy of the record of some of the samples.

        Args:
            rows: int64 indices.

        Returns:
            The copy.
        """
        part = object.__new__(Record)
        part._sign, part.knows_success = self._sign, self.knows_success
        for name in self._TENSORS:
            tensor = getattr(self, name)
            setattr(part, name, None if tensor is None else tensor[rows])
        return part

    def put(self, rows: Tensor, part: Record, but: Collection[str] = ()) -> None:
        """Writes the record of some of the samples back.

        Args:
            rows: int64 indices.
            part: their record.
            but: names of tensors that stay as they are.
        """
        for name in self._TENSORS:
            tensor = getattr(self, name)
            if tensor is not None and name not in but:
                tensor[rows] = getattr(part, name)
        self.knows_success &= part.knows_success
