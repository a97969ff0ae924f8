"""Batches for training: the data on the device where it fits, else read ahead by a thread; either way the same batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from advfeat.augment import Augmentation
from advfeat.seeds import generator

_READ_AHEAD = 3  # batches


class Batches:
    """The shuffled and augmented batches of a data set, epoch by epoch.

    source: ``images(indices) -> float32 [n, C, H, W] in [0, 1]``, ``labels`` int64 [N], ``image_shape``. The order of an
    epoch is a function of (seed, epoch). Batches differ in size by at most one sample instead of leaving a small last
    one, whose BatchNorm statistics would be noise.
    memory_limit: bytes of images up to which all of them are kept on the device.
    Errors: ValueError naming the sample whose image is not finite or leaves [0, 1].
    """

    def __init__(
        self,
        source: Any,
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
            self.resident = self._read(torch.arange(len(source))).to(device)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images, labels, sample ids) of each step, on the device but for the ids, which stay on the CPU."""
        order = torch.randperm(len(self.source), generator=generator(self.seed, "order", epoch))
        chunks = torch.tensor_split(order, self.steps)
        if self.resident is None:
            images = _read_ahead(self._read, chunks)
        else:
            images = (self.resident[ids.to(self.device)] for ids in chunks)
        for x, ids in zip(images, chunks, strict=True):
            x = self.augmentation(x.to(self.device, non_blocking=True), epoch, ids)
            yield x.contiguous(memory_format=self.format), self.labels[ids.to(self.device)], ids

    def _read(self, ids: Tensor) -> Tensor:
        images = self.source.images(ids)
        check_images(images, ids, getattr(self.source, "name", "the data"))
        return images


def check_images(images: Tensor, ids: Tensor, name: str) -> None:
    """Raises ValueError naming the first sample whose image holds NaN, infinity or a value outside [0, 1]."""
    flat = images.reshape(len(images), -1)
    good = ((flat >= 0) & (flat <= 1)).all(dim=1)  # False for NaN too
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        low, high = flat[row].aminmax()
        what = f"values from {low:.4g} to {high:.4g}" if bool(torch.isfinite(flat[row]).all()) else "NaN or infinity"
        raise ValueError(f"images of {name!r} should lie in [0, 1]: sample {int(ids[row])} holds {what}")


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Raises ValueError naming the first sample whose label is not in 0 .. num_classes - 1."""
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"labels of {name!r} should be in 0 .. {num_classes - 1} for {num_classes} classes: sample {first} has "
            f"label {int(labels[first])} ({len(wrong)} of {len(labels)} samples are out of range)"
        )


def _read_ahead(read: Any, chunks: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """``read`` of each chunk, in order, by a thread that stays a few batches ahead and ends with the iterator."""
    ready: queue.Queue = queue.Queue(maxsize=_READ_AHEAD)
    stopped = threading.Event()

    def put(item: tuple[Tensor | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work() -> None:
        try:
            for ids in chunks:
                if stopped.is_set():
                    return
                put((read(ids), None))
        except BaseException as error:  # handed to the reader, who raises it
            put((None, error))

    thread = threading.Thread(target=work, name="advfeat-read-ahead", daemon=True)
    thread.start()
    try:
        for _ in chunks:
            images, error = ready.get()
            if error is not None:
                raise error
            yield images
    finally:
        stopped.set()
        thread.join()
