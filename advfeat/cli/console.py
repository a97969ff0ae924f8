"""Terminal output while a command runs: progress bars with rate and time left, sentences and tables.

Strings are printed literally: a path or a class may be called ``[bold]``. Styled text is a :class:`rich.text.Text`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from advfeat.cli.output import stdout

console = Console(file=cast("IO[str]", stdout))  # it has what rich asks of a file


class _Rate(ProgressColumn):
    """Units per second, over the recent past."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        if not speed:
            return Text(f"- {unit}/s", style="dim")
        return Text(f"{speed:.3g} {unit}/s" if speed < 1000 else f"{speed:,.0f} {unit}/s", style="dim")


def say(*parts: str | tuple[str, str]) -> None:
    """Print one line without wrapping it, so that a path in it can be copied.

    Args:
        *parts: Texts, or pairs (text, style).
    """
    console.print(Text.assemble(*(_shown(part) for part in parts)), soft_wrap=True)


@contextmanager
def bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar, and one line with the time taken once it is finished.

    The final line is printed even without a terminal.

    Args:
        title: Text before the bar.
        unit: Plural name of what is counted, such as ``"images"``.

    Yields:
        A function ``report(done, total)`` that updates the bar.
    """
    began = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    total_seen = 0
    # A file or a pipe gets the final line alone; a transient bar would leave an empty line there.
    drawn = console.is_terminal or console.is_jupyter
    with Progress(*columns, console=console, transient=True, disable=not drawn) as progress:
        task = progress.add_task(_one_line(title), total=None, unit=unit)

        def report(done: int, total: int) -> None:
            nonlocal total_seen
            total_seen = total
            progress.update(task, completed=done, total=total)

        yield report
    seconds = time.monotonic() - began
    amount = f"{total_seen:,} {unit}, " if total_seen else ""
    say(("done", "green"), f"  {title}  ", (f"{amount}{seconds:.1f} s", "dim"))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], caption: str | None = None) -> None:
    """Print a table: first column aligned left, the others right.

    Args:
        title: Title above the table.
        columns: Headings.
        rows: Cells of each row; plain strings are printed literally.
        caption: Text below the table, as wide as the terminal; None for none.
    """
    t = Table(title=Text(title, "table.title"), title_justify="left")
    for i, name in enumerate(columns):
        t.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        t.add_row(*(Text(_one_line(cell)) if isinstance(cell, str) else cell for cell in row))
    console.print(t)
    if caption is not None:
        console.print(Text(caption, "table.caption"))


def _shown(part: str | tuple[str, str]) -> str | tuple[str, str]:
    return _one_line(part) if isinstance(part, str) else (_one_line(part[0]), part[1])


def _one_line(text: str) -> str:
    # Escapes what would move the cursor or change colours; bytes that are not UTF-8 become \udcNN.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
