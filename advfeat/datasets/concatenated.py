"""The concatenation of several data sets."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from advfeat.datasets.base import Indices, Source, as_indices, read_images

_Value = TypeVar("_Value", str, str | None)


class Concatenated(Source):
    """The samples of several data sets, each read when its images are asked for.

    ``ConcatDataset`` over sources becomes one, so that images are read many at once. Name, split and ``built_from`` are
    those of the parts where these agree.

    Args:
        parts: Data sets of the same classes, in one order, and of one shape.

    Raises:
        ValueError: If the parts differ in classes or image shape, or there are none.
    """

    def __init__(self, parts: Sequence[Source]) -> None:
        if not parts:
            raise ValueError("parts should be at least one data set, got none")
        if len({tuple(part.classes) for part in parts}) > 1:
            raise ValueError("the parts of a ConcatDataset should have the same classes in one order, got several")
        shapes = {tuple(part.image_shape) for part in parts}
        if len(shapes) > 1:
            found = ", ".join(map(str, sorted(shapes)))
            raise ValueError(f"the parts of a ConcatDataset should have images of one shape, got {found}")
        self.parts = tuple(parts)
        self.name = " + ".join(dict.fromkeys(part.name for part in parts))
        self.split = _common([part.split for part in parts]) or ""
        self.built_from = _common([part.built_from for part in parts])
        channels, height, width = shapes.pop()
        self.classes, self.image_shape = tuple(parts[0].classes), (channels, height, width)
        self.labels = torch.cat([part.labels for part in parts])
        self._ends = list(itertools.accumulate(map(len, parts)))

    def images(self, indices: Indices = None) -> Tensor:
        """See :meth:`advfeat.datasets.Source.images`."""
        index = as_indices(indices, len(self), self.name)
        images = torch.empty((len(index), *self.image_shape), dtype=torch.float32, device="cpu")
        part_of = torch.searchsorted(torch.tensor(self._ends, device="cpu"), index, right=True)
        for part in part_of.unique().tolist():
            rows = (part_of == part).nonzero()[:, 0]
            begin = self._ends[part - 1] if part else 0
            images[rows] = read_images(self.parts[part], index[rows] - begin)
        return images

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the lengths and fingerprints of the parts."""
        content = [f"{len(part)} {part.fingerprint}" for part in self.parts]
        return hashlib.sha256(" ".join(["concatenated", *content]).encode()).hexdigest()


def _common(values: Sequence[_Value]) -> _Value | None:
    return values[0] if len(set(values)) == 1 else None
