"""The table of ``advfeat evaluate --table``: one row per model and radius, as CSV, Markdown, LaTeX or JSON."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.text import Text

from advfeat.cli.console import table
from advfeat.evaluation import Evaluation, Robustness
from advfeat.intervals import Share
from advfeat.json_files import to_json
from advfeat.threat import NORMS

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


class ResultsTable:
    """Clean accuracy, robust accuracy after each attack in turn, and robust accuracy with its interval.

    Args:
        norm: Name of the norm.
        attack: The attack in words.
    """

    def __init__(self, norm: str, attack: str) -> None:
        self.norm, self.attack = norm, attack
        self._rows: list[tuple[str, Evaluation, Robustness | None]] = []

    def add(self, model: str, result: Evaluation) -> None:
        """Add the rows of a model: one for each radius, or one without.

        Args:
            model: What the model is called.
            result: Its evaluation.
        """
        radii: list[Robustness | None] = [*result.robustness] or [None]
        self._rows += [(model, result, r) for r in radii]

    @property
    def _attacks(self) -> list[str]:
        """The names of attacks in turn; a single attack has no column, since it is the last one."""
        rows = [r.breakdown for _, _, r in self._rows if r is not None and len(r.breakdown) > 1]
        return list(dict.fromkeys(after.name for breakdown in rows for after in breakdown))

    def _cells(self, percent: Callable[[Share], str], last: Callable[[Share], Sequence[str]]) -> list[list[str]]:
        rows = []
        for model, result, r in self._rows:
            after = {} if r is None else {a.name: percent(a.accuracy) for a in r.breakdown}
            shares = [percent(result.clean), *(after.get(name, "") for name in self._attacks)]
            robust = last(r.accuracy) if r is not None else ["" for _ in last(result.clean)]
            rows.append([model, self._threat(r), *shares, *robust])
        return rows

    def _threat(self, r: Robustness | None) -> str:
        return "" if r is None else f"{self.norm} {NORMS[self.norm].write_radius(r.eps)}"

    def show(self) -> None:
        """Print the table."""
        rows: list[list[str | Text]] = [list(row) for row in self._cells(_percent, lambda share: [_interval(share)])]
        names = ["", "threat", "clean", *self._attacks, "robust"]
        after = ": robust accuracy after each attack" if self._attacks else ""
        table(f"the models side by side{after}, in %", names, rows)

    def to_csv(self) -> bytes:
        """Return CSV with shares in [0, 1]; the samples are counted in ``n``."""
        file = io.StringIO()
        out = csv.writer(file, lineterminator="\n")
        after = [f"after {name}" for name in self._attacks]
        out.writerow(["model", "threat", "clean", *after, "robust", "robust low", "robust high", "n", "data"])
        for cells, (_, result, _) in zip(self._cells(_exact, _with_bounds), self._rows, strict=True):
            out.writerow([*cells, result.clean.n, result.data])
        return file.getvalue().encode()

    def to_markdown(self) -> bytes:
        """Return a Markdown table in per cent, and a line with the attack."""
        head = ["model", "threat", "clean", *(f"after {name}" for name in self._attacks), "robust"]
        lines = [head, ["---", "---", *("---:" for _ in head[2:])]]
        lines += self._cells(_percent, lambda share: [_interval(share)])
        text = "".join(f"| {' | '.join(map(_markdown, line))} |\n" for line in lines)
        return f"{text}\n{_markdown(self._caption)}\n".encode()

    def to_latex(self) -> bytes:
        """Return a ``tabular`` with the rules of the package booktabs, in per cent."""
        head = ["model", "threat", "clean", *(f"after {name}" for name in self._attacks), "robust"]
        rows = self._cells(_percent, lambda share: [_interval(share, "--")])
        # All but the last cell may hold what has a meaning in LaTeX; its dashes are meant.
        lines = [" & ".join([*map(latex, row[:-1]), row[-1]]) + r" \\" for row in [head, *rows]]
        return "\n".join(
            [
                f"% {' '.join(self._caption.split())}",
                r"% needs \usepackage{booktabs}",
                rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        ).encode()

    def to_json(self, **more: object) -> bytes:
        """Return all shares with their counts and intervals.

        Args:
            **more: Further JSON values, such as versions.
        """
        rows = []
        for model, result, r in self._rows:
            row: dict[str, object] = {
                "model": model,
                "model_fingerprint": result.model_fingerprint,
                "data": result.data,
                "data_fingerprint": result.data_fingerprint,
                "n": result.clean.n,
                "clean_accuracy": result.clean.to_dict(),
            }
            if r is not None:
                after = {a.name: a.accuracy.to_dict() for a in r.breakdown}
                row |= {"norm": self.norm, "eps": r.eps, "after": after, "robust_accuracy": r.accuracy.to_dict()}
            rows.append(row)
        return to_json({"rows": rows, "attack": self.attack, **more})

    @property
    def _caption(self) -> str:
        data = {f"{result.clean.n:,} samples of {result.data}" for _, result, _ in self._rows}
        return f"In %; {', '.join(sorted(data))}; 95 % Wilson intervals; {self.attack}"

    def to_bytes(self, path: Path, **more: object) -> bytes:
        """Return the file's contents, in the format of its suffix.

        Args:
            path: The file.
            **more: Further JSON values, for JSON alone.

        Raises:
            ValueError: As :func:`check_table`.
        """
        made = {".csv": self.to_csv, ".md": self.to_markdown, ".tex": self.to_latex}
        suffix = check_table(path)
        return self.to_json(**more) if suffix == ".json" else made[suffix]()


def check_table(path: Path) -> str:
    """Return the format of a table's file.

    Args:
        path: The file.

    Returns:
        Its suffix.

    Raises:
        ValueError: If it is none of .csv, .md, .tex and .json.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".md", ".tex", ".json"):
        raise ValueError(f"--table should end in .csv, .md, .tex or .json, the format, got {path}")
    return suffix


def latex(text: str) -> str:
    """Escape text for LaTeX.

    Args:
        text: The text.

    Returns:
        The same as LaTeX prints it; two hyphens do not become a dash.
    """
    text = "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\|`*_<])", r"\\\1", " ".join(text.split()))


def _percent(share: Share) -> str:
    return f"{100 * share.value:.1f}"


def _interval(share: Share, dash: str = "–") -> str:
    low, high = share.interval
    return f"{100 * share.value:.1f} ({100 * low:.1f}{dash}{100 * high:.1f})"


def _exact(share: Share) -> str:
    return repr(share.value)


def _with_bounds(share: Share) -> Sequence[str]:
    return [repr(share.value), *map(repr, share.interval)]
