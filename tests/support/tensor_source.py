"""A data set made of two tensors, for tests that need data of their own, or wrong data, which ArraySource refuses."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from advfeat.datasets.base import ArraySource, Source


class TensorSource(Source):
    """images [N, C, H, W] in [0, 1] and labels [N], taken as they are: unlike ArraySource, unchecked."""

    def __init__(self, images: Tensor, labels: Tensor, classes: tuple[str, ...], name: str = "tensors") -> None:
        self._images, self.labels, self.classes, self.name = images, labels, classes, name
        self.image_shape = tuple(images.shape[1:])

    def images(self, indices: Tensor | None = None) -> Tensor:
        return self._images if indices is None else self._images[indices]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._images.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


def blobs(n: int = 60, classes: int = 3, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> TensorSource:
    """Classes that differ by the brightness of a row each, with noise: learnt in a few steps."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = 0.4 * torch.rand(n, *shape, generator=random)
    for label in range(classes):
        images[labels == label, :, label * 2 : label * 2 + 2] += 0.5
    return TensorSource(images.clamp(0, 1), labels, tuple("abcdefghij"[:classes]), "blobs")


def striped(n: int) -> ArraySource:
    """n images of value 1/n, with labels that tell which of several exports they are of."""
    labels = torch.arange(n) * (1 if n % 2 else 3) % 10
    return ArraySource(torch.full((n, 3, 4, 4), 1 / n), labels, tuple("0123456789"), "striped", "train")
