"""Batches for training: from images on the device where they fit, else read ahead by a thread; the same either way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from advfeat._checks import check_images, evenly_spaced
from advfeat._read_ahead import read_ahead
from advfeat.datasets.base import read_images
from advfeat.datasets.protocol import LabelledImages
from advfeat.random import generator
from advfeat.training.augment import Augmentation


class Batches:
    """The shuffled and augmented batches of a data set, epoch by epoch.

    source: ``images(indices) -> float32 [n, C, H, W] in [0, 1]``, ``labels`` int64 [N], ``image_shape``. The order of
    an epoch is a function of (seed, epoch). Batches differ in size by at most one sample instead of leaving a small
    last one, whose BatchNorm statistics would be noise.
    memory_limit: bytes of images up to which all of them are kept on the device.
    Errors: ValueError naming the sample whose image is not finite or leaves [0, 1], or for images of another shape
    than the source says; TypeError for another dtype.
    """

    def __init__(
        self,
        source: LabelledImages,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        device: torch.device,
        channels_last: bool = False,
        memory_limit: int = 4 << 30,
    ) -> None:
        self.source, self.seed, self.augmentation, self.device = source, seed, augmentation, device
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.steps = -(-len(source) // batch_size)
        self.labels = source.labels.to(device)
        channels, height, width = source.image_shape
        self.resident: Tensor | None = None
        if 4 * len(source) * channels * height * width <= memory_limit:
            self.resident = self._read(torch.arange(len(source), device="cpu")).to(device)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, labels, sample ids) of each step, on the device."""
        order = torch.randperm(len(self.source), generator=generator(self.seed, "order", epoch), device="cpu")
        chunks = torch.tensor_split(order, self.steps)
        there = torch.tensor_split(order.to(self.device), self.steps)  # at once: a copy for each step would wait for it
        if self.resident is None:
            images = read_ahead(self._read, chunks)
        else:
            images = (self.resident[ids] for ids in there)
        for x, ids in zip(images, there, strict=True):
            x = self.augmentation(x.to(self.device, non_blocking=True), epoch, ids)
            yield x.contiguous(memory_format=self.format), self.labels[ids], ids

    def _read(self, ids: Tensor) -> Tensor:
        images = read_images(self.source, ids)
        check_images(images, ids, getattr(self.source, "name", "the data"))
        return images


def channel_statistics(source: LabelledImages, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in pixel scale, of at most so many evenly spaced images.

    A channel that never varies gets 1 for its standard deviation.
    """
    count, total, squares = 0, 0.0, 0.0
    for part in evenly_spaced(len(source), most).split(1000):
        images = read_images(source, part)
        check_images(images, part, source.name)
        images = images.double()
        count += images[:, 0].numel()
        total, squares = total + images.sum((0, 2, 3)), squares + images.square().sum((0, 2, 3))
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6, std, 1.0)
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())
