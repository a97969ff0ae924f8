"""The types of data sets: what an evaluation, a training or a build needs of one, and what a user may pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Indices = Tensor | np.ndarray | Sequence[int] | range | slice | None


@runtime_checkable
class LabelledImages(Protocol):
    """A data set of this package, or anything that has the same attributes.

    Trainings and builds also need a ``fingerprint``, a text that differs where images or labels do: finished work is
    found by it. :class:`advfeat.datasets.Source` has both, and is a ``torch.utils.data.Dataset`` besides.

    Attributes:
        name: What it is called in messages and results.
        classes: The names of its classes, by label.
        labels: int64 [N], on the CPU.
        image_shape: (C, H, W).
    """

    name: str
    classes: Sequence[str]
    labels: Tensor
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        """The number of samples, N."""
        ...

    def images(self, indices: Indices = None) -> Tensor:
        """The images at some positions, or all of them.

        Args:
            indices: Positions in 0 .. N-1, int64 [k]; None for all.

        Returns:
            float32 [k, C, H, W] in [0, 1], on the CPU, the caller's own, in the order of ``indices``.
        """
        ...


# What a function of this package takes for a data set: `as_source` makes the first of the others.
Data = LabelledImages | Dataset | DataLoader
