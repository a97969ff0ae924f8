"""The table of what each attack in turn broke."""

from __future__ import annotations

from rich.text import Text

from advfeat.cli.console import table
from advfeat.evaluation import Evaluation
from advfeat.intervals import Share
from advfeat.threat import NORMS


def show_breakdown(result: Evaluation, norm: str) -> None:
    """Print what each attack broke of what those before it left, if there are attacks that consist of several.

    Args:
        result: The evaluation.
        norm: Name of the norm.
    """
    for r in result.robustness:
        if len(r.breakdown) < 2 or r.eps == 0:
            continue
        rows: list[list[str | Text]] = []
        for after in r.breakdown:
            passes = f"{_short(after.forward_passes)} + {_short(after.backward_passes)}"
            rows.append([after.name, f"{after.broken:,}", percent(after.accuracy), passes, f"{after.seconds:.1f}"])
        if r.carried:
            rows.append(["smaller radius", f"{r.carried:,}", percent(r.accuracy), "-", "-"])
        title = f"{norm} {NORMS[norm].write_radius(r.eps)}: each attack, on what those before it left"
        caption = "passes: images through the model forward + backward"
        table(title, ["attack", "broken", "accuracy left", "passes", "seconds"], rows, caption)


def _short(count: int) -> str:
    """Format a large count with three digits, such as 1.25 M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def percent(share: Share) -> Text:
    """Format a share and its interval.

    Args:
        share: The share.

    Returns:
        Such as "53.4 % (50.7 – 56.7)".
    """
    low, high = share.interval
    return Text.assemble(f"{100 * share.value:.1f} % ", (f"({100 * low:.1f} – {100 * high:.1f})", "dim"))
