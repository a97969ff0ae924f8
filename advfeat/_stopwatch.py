"""The time spent in a generator, without that of the generator it draws on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Stopwatch:
    """Adds up the time that passes while a generator works: in ``of``, less that in ``without``.

    Args:
        device: a CUDA device to wait for before the time is taken.

    Attributes:
        seconds: the time so far.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds, self._device = 0.0, device

    def of(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time taken to produce each counts.

        Args:
            items: the generator whose time is measured.

        Returns:
            An iterator.
        """
        return self._timed(items, 1)

    def without(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time taken to produce each does not count.

        Args:
            items: what the measured generator draws on, such as batches that are read from a disk.

        Returns:
            An iterator.
        """
        return self._timed(items, -1)

    def _timed(self, items: Iterable[T], sign: int) -> Iterator[T]:
        iterator = iter(items)
        while True:
            began = time.perf_counter()
            try:
                item = next(iterator)
                if sign > 0 and self._device is not None and self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)
            except StopIteration:
                return
            finally:
                self.seconds += sign * (time.perf_counter() - began)
            yield item
