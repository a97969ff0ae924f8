"""Types of data sets: what evaluation, training and builds require of one, and what a user may pass."""

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

    Training and builds also need a ``fingerprint``, a string that differs if images or labels differ, by which finished
    work is found. :class:`advfeat.datasets.Source` has all of these and is also a ``torch.utils.data.Dataset``.
    """

    # Read-only properties, so that a tuple of names matches as well as a list.
    @property
    def name(self) -> str:
        """The name of the data set in messages and results."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, by label."""
        ...

    @property
    def labels(self) -> Tensor:
        """The labels, int64 [N], on the CPU."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        ...

    def __len__(self) -> int:
        """The number of samples, N."""
        ...

    def images(self, indices: Indices = None) -> Tensor:
        """The images at some positions, or all of them.

        Args:
            indices: Positions in 0 .. N-1, int64 [k]; None for all.

        Returns:
            float32 [k, C, H, W] in [0, 1], on the CPU, in the order of ``indices``; the caller may change the tensor.
        """
        ...


class Identified(LabelledImages, Protocol):
    """A data set to train on or to build from, whose ``fingerprint`` identifies it in finished work."""

    @property
    def fingerprint(self) -> str:
        """A string that differs if images or labels differ."""
        ...


# What a function of this package takes for a data set: `as_source` makes the first of the others.
Data = LabelledImages | Dataset | DataLoader
