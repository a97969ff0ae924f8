"""Progress of long loops, reported to a caller's progress object; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]


class Reporter:
    """Reports the progress of a loop to a progress object.

    Args:
        progress: None; a function ``(done, total)``; or a ``rich.progress.Progress``, which gets its own task (columns
            for rate and remaining time are the caller's choice).
        title: the title of that task.
        total: the number of items.
        done: where a resumed loop starts.

    Raises:
        TypeError: ``progress`` is something else.
    """

    def __init__(self, progress: Any, title: str, total: int, done: int = 0) -> None:
        self._progress, self._title, self.total, self.done = progress, title, total, done
        self._rich = hasattr(progress, "add_task")
        if progress is not None and not self._rich and not callable(progress):
            raise TypeError(
                f"progress should be a function (done, total) or a rich Progress, got {type(progress).__name__}"
            )
        self._task = progress.add_task(title, total=total, completed=done) if self._rich else None
        if progress is not None and not self._rich:
            progress(done, total)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Reports that more items are done.

        Args:
            by: how many more.
            note: shown beside the title of a rich task.
        """
        self.done += by
        if self._rich:
            title = f"{self._title} {note}" if note else None
            self._progress.update(self._task, advance=by, **({"description": title} if title else {}))
        elif self._progress is not None:
            self._progress(self.done, self.total)
