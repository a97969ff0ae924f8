"""The benchmarks' pictures: every bar with its spread and its number, every panel with what it was measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, THEIRS = "#d9822b", "#3b6fb6"
CURVES = ("#555555", OURS, THEIRS, "#7a9a3b", "#a04a8c")


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: its name, its length, the ends of its whisker, and what is written at its end."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    ours: bool = False


def bars(
    panels: dict[str, list[Bar]], title: str, xlabel: str, *, columns: int = 1, lines: dict[float, str] | None = None
) -> Figure:
    """A panel of bars for each group. lines: vertical ones, with what they stand for."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    tallest = max(len(group) for group in panels.values())
    figure = Figure(figsize=(8.5 * columns, rows * (0.36 * tallest + 1.1) + 0.7), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (name, group) in zip(axes, panels.items(), strict=False):
        places = range(len(group))
        colours = [OURS if bar.ours else THEIRS for bar in group]
        axis.barh(places, [bar.value for bar in group], 0.7, color=colours)
        longest = max([bar.value for bar in group] + [bar.high for bar in group if not math.isnan(bar.high)] + [1e-12])
        for place, bar in zip(places, group, strict=True):
            ends = (bar.low, bar.high) if not math.isnan(bar.high) else (bar.value, bar.value)
            axis.plot(ends, (place, place), color="black", lw=1.2)
            axis.text(max(bar.value, ends[1]) + 0.01 * longest, place, bar.note, va="center", fontsize=8)
        for style, (at, meaning) in zip(("--", ":"), (lines or {}).items(), strict=False):
            axis.axvline(at, color="black", lw=1, ls=style, label=meaning)
        axis.set_xlim(min([0.0] + [bar.value for bar in group]), 1.85 * longest)
        axis.set_yticks(list(places), [bar.name for bar in group], fontsize=9)
        axis.invert_yaxis()
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(xlabel, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    if lines:
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(lines))
    return figure


def curves(
    panels: dict[str, dict[str, tuple[list[float], list[float]]]],
    title: str,
    labels: dict[str, tuple[str, str]],
    *,
    columns: int = 3,
    limits: dict[str, tuple[float, str]] | None = None,
    log_y: bool = False,
) -> Figure:
    """Lines over logarithmic x. labels: (x, y) by panel; limits: a horizontal line by panel, with its meaning."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(line for lines in panels.values() for line in lines))  # one colour each, in all panels
    figure = Figure(figsize=(5.2 * columns, 3.7 * rows + 0.5), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axis, (name, lines) in zip(figure.subplots(rows, columns, squeeze=False).ravel(), panels.items(), strict=False):
        for line, (x, y) in lines.items():
            number = names.index(line)
            look = {"marker": "osv^D"[number % 5], "ls": ("-", "--", ":")[number // 5 % 3], "color": CURVES[number % 5]}
            axis.plot(x, y, ms=5, lw=1.4, label=line, **look)
        if name in (limits or {}):
            at, meaning = limits[name]
            axis.axhline(at, color="black", lw=0.9, ls=":", label=meaning)
        axis.set_xscale("log", base=2)
        places = sorted({value for x, _ in lines.values() for value in x})
        axis.set_xticks(places, [f"{value:g}" for value in places], fontsize=8)
        axis.minorticks_off()
        if log_y:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(labels[name][0], fontsize=9)
        axis.set_ylabel(labels[name][1], fontsize=9)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8 if len(names) <= 6 else 6)
    return figure


def about(machine: dict) -> str:
    """What stands over a picture: where and when it was measured."""
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} thread(s)"
    return f"{where}; torch {machine['torch']}; {machine['date']}"
