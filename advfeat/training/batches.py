"""Training batches: from images held on the device if they fit, else read ahead by a thread, with the same result."""

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
    """Shuffled and augmented batches of a data set, epoch by epoch.

    The order of an epoch is a function of (seed, epoch). Batch sizes differ by at most one sample, instead of leaving a
    small last batch with noisy BatchNorm statistics.

    Args:
        source: Data set with ``images(indices) -> float32 [n, C, H, W]`` in [0, 1], ``labels`` int64 [N] and
            ``image_shape``.
        batch_size: Largest batch size.
        seed: Seed of the order.
        augmentation: Augmentation of the batches.
        device: Device of the batches.
        channels_last: Yield images in channels_last memory format.
        memory_limit: Keep all images on the device if they take at most this many bytes.

    Attributes:
        steps: Batches per epoch.

    Raises:
        ValueError: Naming the sample, if an image is not finite, leaves [0, 1] or does not have the shape that the
            source declares.
        TypeError: If the images have another dtype.
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
        """Iterate over the batches of an epoch.

        Args:
            epoch: Epoch, from 0.

        Yields:
            (images, labels, sample ids) of each step, on the device.
        """
        order = torch.randperm(len(self.source), generator=generator(self.seed, "order", epoch), device="cpu")
        chunks = torch.tensor_split(order, self.steps)
        there = torch.tensor_split(order.to(self.device), self.steps)  # one copy: a copy per step would synchronise
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
    """Compute mean and standard deviation per channel over evenly spaced images.

    Args:
        source: The data set.
        most: Largest number of images to read.

    Returns:
        (mean, std) per channel in pixel scale [0, 1], rounded to 6 digits. A constant channel gets a standard deviation
        of 1.
    """
    count = 0
    total, squares = torch.zeros(2, source.image_shape[0], dtype=torch.float64, device="cpu")
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
