"""Progress of long loops, told to whoever wants to show it; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int], None]


class Reporter:
    """Tells a progress object how far a loop is.

    progress: None; a function ``(done, total)``; or a ``rich.progress.Progress``, which gets a task of its own (columns
    for rate and time left are its owner's choice). title: of that task. done: where a resumed loop starts.
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
        """``by`` more are done; note: shown beside the title of a rich task."""
        self.done += by
        if self._rich:
            title = f"{self._title} {note}" if note else None
            self._progress.update(self._task, advance=by, **({"description": title} if title else {}))
        elif self._progress is not None:
            self._progress(self.done, self.total)
