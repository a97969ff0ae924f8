"""Plots as PNG bytes: figures in the style of the paper, training curves and grids of sample images."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: needs no display and leaves a notebook's settings alone
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

# One colour per training set, the same in every picture; distinguishable for colour-blind readers.
COLOURS = {
    "standard": "#4d4d4d",
    "adversarial": "#000000",
    "robust": "#0072b2",
    "nonrobust": "#d55e00",
    "rand": "#009e73",
    "det": "#cc79a7",
}
T = TypeVar("T")
_INK = "#222222"
_PAPER = "#c44e00"
_MISSING = "\N{WHITE SQUARE}"


def own_style(draw: Callable[..., T]) -> Callable[..., T]:
    """Make a function draw with matplotlib's default settings.

    The settings of the user, or of a ``matplotlibrc`` in the current folder, could have LaTeX typeset the names of
    classes.

    Args:
        draw: Function that draws.

    Returns:
        The function with default settings.
    """

    @functools.wraps(draw)
    def drawn(*args, **options):
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            return draw(*args, **options)

    return drawn


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return buffer.getvalue()


def label(text: str, longest: int = 28) -> str:
    """Prepare user-provided text, such as a class name, for a picture.

    The text is put on one line, truncated if it is too long, and characters that the font lacks become boxes. Draw it
    with ``parse_math=False``: a class may be called ``$x$``.

    Args:
        text: The text.
        longest: Largest number of characters.

    Returns:
        The text to draw.
    """
    known = get_font(findfont(FontProperties())).get_charmap()
    text = "".join(c if ord(c) in known else _MISSING for c in " ".join(text.split()))
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return text


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, colors=_INK)
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    ax.set_axisbelow(True)


@own_style
def training_curves(curves: dict[str, list[dict]], labels: dict[str, str]) -> bytes:
    """Plot accuracy on the model's own training set and on the true test set against the epoch, one panel per model.

    Args:
        curves: For each model, the metrics of its epochs: ``epoch``, ``train_accuracy`` and ``test_accuracy`` (or
            None), accuracies in [0, 1].
        labels: Title for each model.

    Returns:
        The PNG file.
    """
    names = [name for name in curves if curves[name]]
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.2 * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax, name in zip(axes.flat, names, strict=False):
        history = curves[name]
        epochs = [h["epoch"] for h in history]
        colour = COLOURS.get(name, _INK)
        ax.plot(epochs, [100 * h["train_accuracy"] for h in history], color=colour, alpha=0.35, linewidth=1.5)
        tested = [(h["epoch"], 100 * h["test_accuracy"]) for h in history if h.get("test_accuracy") is not None]
        if tested:
            ax.plot(*zip(*tested, strict=True), color=colour, linewidth=2)
        ax.set_title(labels.get(name, name), fontsize=9, color=_INK, loc="left")
        ax.set_ylim(0, 102)
        _plain(ax)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy, %", fontsize=8, color=_INK)
    for ax in axes[-1]:
        ax.set_xlabel("epoch", fontsize=8, color=_INK)
    figure.tight_layout()
    return _png(figure)


def _picture(image: Tensor) -> np.ndarray:
    array = image.detach().cpu().float().clamp(0, 1)
    if len(array) not in (3, 4):  # not RGB or RGBA
        array = array.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return array.permute(1, 2, 0).numpy()


@own_style
def sample_grid(rows: list[tuple[str, Tensor]], captions: list[str], difference: tuple[str, Tensor]) -> bytes:
    """Draw sample images in columns: one row per title, then the amplified difference.

    Args:
        rows: Pairs (title, images [n, C, H, W] in [0, 1]).
        captions: One or two lines below each column.
        difference: (title, values [n, C, H, W]), shown around mid-grey and scaled so that the largest magnitude fills
            the range; the factor is added to the title.

    Returns:
        The PNG file.
    """
    title, values = difference
    largest = float(values.abs().max())
    factor = 0.5 / largest if largest > 0 else 1.0
    return image_grid([*rows, (f"{title}\n(x {factor:.2g})", 0.5 + factor * values)], captions)


@own_style
def image_grid(shown: list[tuple[str, Tensor]], captions: list[str]) -> bytes:
    """Draw images in columns: one row per title, and a caption below each column.

    Args:
        shown: Pairs (title, images [n, C, H, W] in [0, 1]).
        captions: One or two lines below each column.

    Returns:
        The PNG file.
    """
    n = len(captions)
    height, width = shown[0][1].shape[2:]
    # Cells follow the aspect ratio of wide and tall images, up to a limit; square ones keep their size.
    wide, tall = min(max(1.0, width / height), 3.0), min(max(1.0, height / width), 3.0)
    figure = Figure(figsize=(1.05 * n * wide + 1.2, 1.12 * len(shown) * tall + 0.3))
    axes = figure.subplots(len(shown), n, squeeze=False)
    for r, (name, images) in enumerate(shown):
        for c in range(n):
            ax = axes[r, c]
            ax.imshow(_picture(images[c]), interpolation="nearest", vmin=0, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_color("#cccccc")
            if c == 0:
                ax.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=6, color=_INK)
            if r == len(shown) - 1:
                lines = "\n".join(map(label, captions[c].split("\n")))
                ax.set_xlabel(lines, fontsize=8, color=_INK, parse_math=False)
    figure.subplots_adjust(wspace=0.06, hspace=0.06)
    return _png(figure)


@own_style
def paired_bars(
    groups: list[tuple[str, tuple[float, float, float], tuple[float, float, float], tuple[float, float]]], second: str
) -> bytes:
    """Plot accuracy and robust accuracy as two bars per group, with the paper's values as marks (Figure 2b).

    Args:
        groups: (name, (mean, low, high), (mean, low, high), the paper's two values), in per cent.
        second: Legend of the second bar.

    Returns:
        The PNG file.
    """
    figure = Figure(figsize=(6.4, 3.4))
    ax = figure.subplots()
    place = np.arange(len(groups))
    for side, offset, colour, name in ((1, -0.2, "#9ecae1", "accuracy"), (2, 0.2, "#0072b2", second)):
        mean, low, high = np.array([group[side] for group in groups]).T
        error = np.maximum(0, np.stack([mean - low, high - mean]))
        ax.bar(
            place + offset,
            mean,
            0.38,
            yerr=error,
            capsize=2.5,
            color=colour,
            label=name,
            ecolor=_INK,
            error_kw={"elinewidth": 0.9},
        )
    for i, group in enumerate(groups):
        label = "paper" if i == 0 else None
        ax.plot([i - 0.2, i + 0.2], group[3], "D", color=_PAPER, markersize=4.5, label=label, linestyle="none")
    ax.set_xticks(place, [group[0] for group in groups])
    ax.set_ylim(0, 104)
    ax.set_ylabel("%", fontsize=8, color=_INK)
    _plain(ax)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _png(figure)


@own_style
def scatter_fit(series: list[tuple[str, list[tuple[str, float, float]], str]], x_label: str, y_label: str) -> bytes:
    """Plot named points, and a least-squares line through each series of at least three (Figure 3).

    Args:
        series: (name, [(name of the point, x, y)], colour).
        x_label: Label of the x axis.
        y_label: Label of the y axis.

    Returns:
        The PNG file.
    """
    figure = Figure(figsize=(6.0, 3.8))
    ax = figure.subplots()
    for name, points, colour in series:
        x, y = np.array([p[1] for p in points]), np.array([p[2] for p in points])
        ax.plot(x, y, "o", color=colour, markersize=5, label=name)
        if len(points) > 2 and np.ptp(x) > 0:
            slope, offset = np.polyfit(x, y, 1)
            ends = np.array([x.min(), x.max()])
            ax.plot(ends, slope * ends + offset, color=colour, alpha=0.4, linewidth=1.2)
    ax.margins(0.14)
    _name_points(ax, [point for _, points, _ in series for point in points])
    ax.set_xlabel(x_label, fontsize=8, color=_INK)
    ax.set_ylabel(y_label, fontsize=8, color=_INK)
    _plain(ax)
    ax.legend(fontsize=8, frameon=False)
    return _png(figure)


def _name_points(ax: Axes, points: list[tuple[str, float, float]]) -> None:
    """Write names beside points, each on the side that is furthest from the other points and names."""
    ax.figure.canvas.draw()  # sets the final axis limits
    to_points = 72 / ax.figure.dpi
    taken: list[tuple[float, float]] = []
    for _, at_x, at_y in points:
        x, y = to_points * ax.transData.transform((at_x, at_y))
        taken.append((float(x), float(y)))
    for i, (name, at_x, at_y) in enumerate(points):
        x, y = taken[i]
        width = 1.9 * len(name)  # half of it
        # Offset of the text's centre from the point, then the arguments of annotate for it.
        sides = [
            (side * (6 + width), up + 3, side * 5, up, anchor)
            for side, anchor in ((1, "left"), (-1, "right"))
            for up in (4, -9)
        ]
        others = taken[:i] + taken[i + 1 :]
        room = [min((_gap(x + s[0] - ox, y + s[1] - oy, width) for ox, oy in others), default=0) for s in sides]
        best = sides[max(range(4), key=lambda k: (min(room[k], 8), -k))]
        ax.annotate(
            name, (at_x, at_y), xytext=best[2:4], textcoords="offset points", fontsize=7, color=_INK, ha=best[4]
        )
        taken += [(x + best[0] + part * width, y + best[1]) for part in (-1, 0, 1)]


def _gap(dx: float, dy: float, width: float) -> float:
    """Return the horizontal or vertical distance of a text of this half width from a point, whichever is larger."""
    return max(abs(dx) - width, abs(dy) - 4)


@own_style
def lines_over_steps(series: list[tuple[str, list[int], list[float], str, str]], x_label: str, y_label: str) -> bytes:
    """Plot accuracy against the number of steps, on a logarithmic axis (Figure 8).

    Args:
        series: (name, steps, values, colour, line style).
        x_label: Label of the x axis.
        y_label: Label of the y axis.

    Returns:
        The PNG file.
    """
    figure = Figure(figsize=(6.0, 3.4))
    ax = figure.subplots()
    for name, steps, values, colour, style in series:
        ax.plot(steps, values, style, color=colour, linewidth=1.8, markersize=4, label=name)
    ax.set_xscale("log", base=2)
    ticks = sorted({step for line in series for step in line[1]})
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xlabel(x_label, fontsize=8, color=_INK)
    ax.set_ylabel(y_label, fontsize=8, color=_INK)
    ax.set_ylim(bottom=0)
    _plain(ax)
    ax.legend(fontsize=8, frameon=False)
    return _png(figure)


@own_style
def accuracy_against_radius(
    radii: list[float],
    accuracy: list[float],
    intervals: list[tuple[float, float]],
    *,
    marks: list[tuple[float, float]],
    median: float | None,
    x_label: str,
    title: str = "",
) -> bytes:
    """Plot robust accuracy against the radius as a falling step function with its interval.

    Args:
        radii: Radii at which the function falls, in increasing order, 0 first.
        accuracy: Value from each radius up to the next, in [0, 1].
        intervals: Lower and upper bound of each value.
        marks: Pairs (radius, accuracy) to mark with a point.
        median: Median smallest distance, drawn as a dotted line; None for none.
        x_label: Label of the x axis.
        title: Title of the picture.

    Returns:
        The PNG file.
    """
    # The last value holds beyond the last radius too.
    end = radii[-1] * 1.06 if radii[-1] > 0 else 1.0
    x = np.array([*radii, end])
    y, low, high = (100 * np.array([*v, v[-1]]) for v in (accuracy, *zip(*intervals, strict=True)))
    figure = Figure(figsize=(6.0, 3.6))
    ax = figure.subplots()
    colour = COLOURS["robust"]
    ax.fill_between(x, low, high, step="post", color=colour, alpha=0.18, linewidth=0, label="95 % interval")
    ax.step(x, y, where="post", color=colour, linewidth=1.8, label="robust accuracy, an upper bound")
    if marks:
        at, value = zip(*marks, strict=True)
        ax.plot(at, 100 * np.array(value), "o", color=_INK, markersize=4, linestyle="none", label="radii of the table")
    if median is not None:
        ax.axvline(median, color=_INK, linestyle=":", linewidth=1, label=f"median distance, {median:.3g}")
    ax.set_xlim(0, end)
    ax.set_ylim(0, 102)
    ax.set_xlabel(x_label, fontsize=8, color=_INK)
    ax.set_ylabel("accuracy, %", fontsize=8, color=_INK)
    ax.set_title(title, fontsize=9, color=_INK, loc="left", parse_math=False)
    _plain(ax)
    ax.legend(fontsize=8, frameon=False)
    return _png(figure)
