"""Prefetching: the next items are read while the last one is processed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3  # prefetched results


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """``read`` of each item, in order, by a thread that stays a few items ahead and ends with the iterator.

    The thread ends when the iterator is closed; a caller whose own code may raise should close it with
    ``contextlib.closing``.

    Args:
        read: reads one item.
        items: the items.

    Yields:
        The results.

    Raises:
        BaseException: an exception of ``read``, raised where its result would have come.
    """
    items = list(items)
    ready: queue.Queue = queue.Queue(maxsize=_AHEAD)
    stopped = threading.Event()

    def put(entry: tuple[Result | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                pass

    def work() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                put((read(item), None))
        except BaseException as error:  # passed to the consumer, which raises it
            put((None, error))

    thread = threading.Thread(target=work, name="advfeat-read-ahead", daemon=True)
    thread.start()
    try:
        for _ in items:
            result, error = ready.get()
            if error is not None:
                raise error
            yield result
    finally:
        stopped.set()
        thread.join()
