"""What a person sees while something runs: progress bars with rate and time left, and tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console()


class _Rate(ProgressColumn):
    """Units a second, over the recent past."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        if not speed:
            return Text(f"- {unit}/s", style="dim")
        return Text(f"{speed:.3g} {unit}/s" if speed < 1000 else f"{speed:,.0f} {unit}/s", style="dim")


@contextmanager
def bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields ``report(done, total)``. Ends as one line with the time it took, also without a
    terminal."""
    began = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    total_seen = 0
    # Into a file or a pipe goes the last line alone; a bar that is not drawn would leave an empty one.
    drawn = console.is_terminal or console.is_jupyter
    with Progress(*columns, console=console, transient=True, disable=not drawn) as progress:
        task = progress.add_task(title, total=None, unit=unit)

        def report(done: int, total: int) -> None:
            nonlocal total_seen
            total_seen = total
            progress.update(task, completed=done, total=total)

        yield report
    seconds = time.monotonic() - began
    amount = f"{total_seen:,} {unit}, " if total_seen else ""
    console.print(f"[green]done[/green]  {title}  [dim]{amount}{seconds:.1f} s[/dim]", highlight=False)


def table(title: str, columns: list[str], rows: list[list[str]], caption: str | None = None) -> None:
    """A table on the terminal: the first column left, the others right."""
    t = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for i, name in enumerate(columns):
        t.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        t.add_row(*row)
    console.print(t)
