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
    """

    # Properties, for nobody sets them: a tuple of names then serves as well as a list.
    @property
    def name(self) -> str:
        """What it is called in messages and results."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """The names of its classes, by label."""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [N], on the CPU."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

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


class Identified(LabelledImages, Protocol):
    """A data set that finished work is found by: trained on, or built from."""

    @property
    def fingerprint(self) -> str:
        """A text that differs where images or labels do."""
        ...


# What a function of this package takes for a data set: `as_source` makes the first of the others.
Data = LabelledImages | Dataset | DataLoader
