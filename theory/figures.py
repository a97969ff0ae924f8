"""The figures of the theory: Figures 4 and 14 of the paper, and plots of the closed forms against measurements.

Every function writes one PNG and returns its path. They draw on ``matplotlib.figure.Figure`` alone, so they need no
display, global state or backend setting.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from PIL import Image
from scipy.stats import gaussian_kde

from .exact import relaxation_gap
from .gaussian import GaussianTask
from .separable import DEFAULT_EPS, EllipsePair, Linear, standard_classifiers, train_logistic
from .theorem2 import prior_bounds, robust_parameters
from .theorem3 import cosine, worst_cosine

BLUE, ORANGE, GREY, GREEN, RED = "#3b6fb6", "#d9772b", "#8a8a8a", "#2f8f5b", "#b8333a"
DPI = 110

# The paper does not give the parameters of Figure 4. These match its means, first boundary (slope 0.2) and first metric
# ball.
FIGURE4_TASK = {"mean": (-10.0, 1.0), "covariance": (25.0, 0.5)}


def figure4(path: Path, *, epsilons: tuple[float, float, float] = (0.0, 1.0, 10.0), seed: int = 0) -> Path:
    """Figure 4: the data's metric and the L2 metric, then densities and boundaries of the learned pair for three eps.

    Densities are kernel estimates from samples, as in the paper; boundaries are exact. The match is qualitative
    (docs/theory.md): the paper does not print its parameters, and no scale of them gives both of its slopes.

    Args:
        path: the PNG.
        epsilons: the three L2 radii.
        seed: of the samples.

    Returns:
        The path.
    """
    task = GaussianTask(np.array(FIGURE4_TASK["mean"]), np.array(FIGURE4_TASK["covariance"]))
    figure = Figure(figsize=(11, 6.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
    rng = np.random.default_rng(seed)

    first = axes[0]
    x = rng.standard_normal((3000, 2)) * np.sqrt(task.variances)
    _density(first, x, GREEN)
    first.add_patch(Ellipse((0, 0), 6, 6, fill=False, lw=2, color=BLUE, label=r"$\ell_2$ ball, radius 3"))
    half = 1.5 * np.sqrt(task.variances)
    first.add_patch(
        Ellipse((0, 0), *(2 * half), fill=False, lw=2, color=RED, label=r"$\Sigma^{-1}$ metric ball, radius 1.5")
    )
    first.set_title(r"Maximum likelihood: samples from $\mathcal{N}(0, \Sigma)$")

    for axis, eps in zip(axes[1:], epsilons, strict=True):
        learned = robust_parameters(task, eps).learned
        for sign, colours in ((1, BLUE), (-1, ORANGE)):
            draw = sign * task.mean + rng.standard_normal((3000, 2)) * np.sqrt(learned.variances)
            _density(axis, draw, colours)
        if eps > 0:
            _boundary(axis, task.direction(), color=GREY, lw=1.5, ls="--", label=r"boundary at $\varepsilon = 0$")
        slope = _boundary(axis, learned.direction(), color="black", lw=2, label="decision boundary")
        axis.plot(*np.stack([task.mean, -task.mean], axis=1), "k+", ms=9, mew=2, label=r"means $\pm\mu$")
        name = r"True parameters ($\varepsilon = 0$)" if eps == 0 else rf"Robust parameters, $\varepsilon = {eps:g}$"
        axis.set_title(f"{name}: slope {slope:.2f}")
    for axis in axes:
        axis.set(xlim=(-20, 20), ylim=(-10, 10), aspect="equal")
        axis.legend(loc="lower left", fontsize=8, framealpha=0.9)
    for axis in axes[2:]:
        axis.set_xlabel("feature $x_1$")
    for axis in axes[::2]:
        axis.set_ylabel("feature $x_2$")
    return save_png(figure, path)


def figure14(
    path: Path, *, pair: EllipsePair | None = None, eps: float = DEFAULT_EPS, n: int = 1000, seed: int = 0
) -> Path:
    """Figure 14: two separable ellipses with the boundaries that standard and robust training find, trained here.

    The right panel shows the margin of every direction against both adversaries: why the L-inf adversary makes x2
    worthless and the L2 adversary does not.

    Args:
        path: the PNG.
        pair: the ellipses; by default those of the figure.
        eps: the radius, for both the L-inf and the L2 adversary.
        n: the number of samples.
        seed: of the samples.

    Returns:
        The path.
    """
    pair = EllipsePair() if pair is None else pair
    x, y = pair.sample(n, seed)
    robust = train_logistic(x, y, eps=eps)
    robust_l2 = train_logistic(x, y, eps=eps, norm="l2")
    standard = standard_classifiers(x, y)
    figure = Figure(figsize=(11, 4.6), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))

    for sign, colour in ((1, BLUE), (-1, ORANGE)):
        centre, axes = sign * np.asarray(pair.centre), np.asarray(pair.semi_axes)
        left.add_patch(Ellipse((centre[0], centre[1]), *(2 * axes), color=colour, alpha=0.3, lw=0))
        inside = x[y == sign][:150]
        left.plot(inside[:, 0], inside[:, 1], ".", ms=3, color=colour)
    colours = {"logistic": GREEN, "least squares": RED, "Gaussian likelihood": RED, robust.name: "black"}
    for found in (*standard[:2], robust):
        style = {"ls": "-", "lw": 2.2} if found is robust else {"ls": "--", "lw": 1.6}
        margin = pair.margin(found.w, found.b)
        verdict = "robust" if margin >= eps else "not robust"
        _boundary(left, found.w, found.b, color=colours[found.name], label=f"{found.name}: {verdict}", **style)
    gap1, gap2 = (c - a for c, a in zip(pair.centre, pair.semi_axes, strict=True))
    _gap(left, (0, pair.centre[1]), (gap1, pair.centre[1]), r"$> \varepsilon$", (0, 4))
    _gap(left, (pair.centre[0], 0), (pair.centre[0], gap2), r"$\varepsilon/2$", (14, -4))
    left.axhline(0, color=GREY, lw=0.6)
    left.axvline(0, color=GREY, lw=0.6)
    left.set(xlim=(-0.85, 0.85), ylim=(-0.62, 0.62), aspect="equal", xlabel="feature $x_1$", ylabel="feature $x_2$")
    left.set_title(rf"Boundaries after training ($\ell_\infty$, $\varepsilon = {eps:g}$)")
    left.legend(loc="lower center", fontsize=8, framealpha=0.95)

    degrees = np.linspace(0, 90, 361)
    for norm, colour, label in (("linf", "black", r"$\ell_\infty$ margin"), ("l2", BLUE, r"$\ell_2$ margin")):
        angles = np.radians(degrees)
        margins = [pair.margin(np.array([math.cos(a), math.sin(a)]), norm=norm) for a in angles]
        right.plot(degrees, margins, color=colour, lw=1.8, label=label)
    right.axhline(eps, color=GREY, ls=":", lw=1.5, label=rf"$\varepsilon = {eps:g}$")
    marks = [(standard[0], "s", GREEN), (standard[1], "o", RED), (robust, "D", "black"), (robust_l2, "^", BLUE)]
    for found, marker, colour in marks:
        angle = _angle(found)
        for norm in ("linf", "l2"):
            value = pair.margin(found.w, norm=norm)
            right.plot(angle, value, marker, ms=7, color=colour, label=found.name if norm == "linf" else None)
    right.set(xlabel=r"angle of the normal $w$ from the $x_1$ axis (degrees)", ylabel="margin of the whole support")
    right.set(xlim=(-3, 93), ylim=(0.1, None))
    right.set_title("Largest perturbation without an error")
    right.legend(fontsize=8, loc="lower left")
    return save_png(figure, path)


def robust_spectrum(path: Path, task: GaussianTask) -> Path:
    """Theorem 2 over eps: lambda between its bounds, including the printed order, and the spectrum of S_r.

    Args:
        path: the PNG.
        task: the task.

    Returns:
        The path.
    """
    figure = Figure(figsize=(11, 4.2), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    unit = math.sqrt(task.variances.mean())
    epsilons = unit * np.geomspace(1e-3, 1e3, 121)
    solved = [robust_parameters(task, eps) for eps in epsilons]
    bounds = [prior_bounds(task, eps) for eps in epsilons]
    left.fill_between(
        epsilons,
        [b.lower for b in bounds],
        [b.upper for b in bounds],
        color=BLUE,
        alpha=0.15,
        lw=0,
        label="bounds from $\\Sigma_*$",
    )
    left.plot(epsilons, [p.lam for p in solved], color=BLUE, lw=2, label=r"$\lambda(\varepsilon)$")
    middle = solved[len(solved) // 2]
    printed = (1 + np.sqrt(epsilons)) / np.sqrt(epsilons)
    printed *= middle.lam / printed[len(printed) // 2]
    left.plot(
        epsilons,
        printed,
        color=RED,
        ls="--",
        lw=1.5,
        label=r"printed $O((1+\varepsilon^{1/2})/\varepsilon^{1/2})$, scaled to meet",
    )
    left.set(xscale="log", yscale="log", xlabel=r"radius $\varepsilon$", ylabel=r"$\lambda$")
    left.set_title(r"$\lambda \sim 1/\varepsilon$, then $d/\varepsilon^2$: the printed order needs $\varepsilon^2$")
    left.legend(fontsize=8)
    order = np.argsort(task.variances)
    shown = order[np.unique(np.linspace(0, task.dim - 1, min(task.dim, 6)).round().astype(int))]
    for rank, index in enumerate(shown):
        share = rank / max(len(shown) - 1, 1)
        colour = (0.85 - 0.65 * share, 0.45 * (1 - share) + 0.25, 0.2 + 0.5 * share)
        label = rf"$s_*$ = {task.variances[index]:.3g}"
        right.plot(epsilons, [p.variances[index] for p in solved], lw=2, color=colour, label=label)
    right.plot(epsilons, epsilons**2 / task.dim, color=GREY, ls=":", lw=1.5, label=r"$\varepsilon^2/d$")
    right.set(xscale="log", yscale="log", xlabel=r"radius $\varepsilon$", ylabel=r"eigenvalues of $\Sigma_r$")
    right.set_ylim(task.variances.min() / 4, None)
    right.set_title(r"$\Sigma_r$ goes from $\Sigma_*$ to a multiple of the identity")
    right.legend(fontsize=8)
    return save_png(figure, path)


def relaxation(path: Path) -> Path:
    """The solution of the exact problem approaching the relaxed one as d grows, beside 1/d and an exponential.

    Args:
        path: the PNG.

    Returns:
        The path.
    """
    gap = relaxation_gap(np.array([4.0, 0.25]), 0.4, [1, 2, 4, 8, 16, 32, 64, 128, 256], nodes=64)
    figure = Figure(figsize=(6.4, 4.4), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    labels = (r"entries with $s_* = 4$", r"entries with $s_* = 1/4$")
    for column, (label, colour) in enumerate(zip(labels, (BLUE, ORANGE), strict=True)):
        axis.plot(gap.dims, gap.gap[:, column], "o-", color=colour, label=f"{label}: slope {gap.rate[column]:.3f}")
    top = gap.gap[-1, 1] * gap.dims[-1]
    axis.plot(gap.dims, top / gap.dims, color=GREY, ls=":", label="$1/d$")
    start = gap.gap[0, 1]
    smooth = np.geomspace(gap.dims[0], 80, 100)
    axis.plot(
        smooth,
        start * np.exp(-(smooth - smooth[0]) / 6),
        color=RED,
        ls="--",
        label='an exponential ("exponentially fast")',
    )
    axis.set(xscale="log", yscale="log", xlabel="dimension $d$", ylim=(1e-5, 0.3))
    axis.set_ylabel(r"$|\Sigma_{exact} / \Sigma_{relaxed} - 1|$")
    axis.set_title(r"Relaxed against exact problem, $\varepsilon = 0.4\sqrt{d}$")
    axis.legend(fontsize=8, loc="lower left")
    return save_png(figure, path)


def alignment(path: Path, task: GaussianTask, *, means: int | None = None, seed: int = 0) -> Path:
    """Theorem 3 over eps: the cosine of the worst mean, and of random fixed means (each of which improves).

    Args:
        path: the PNG.
        task: the task.
        means: the number of random means, 30 by default (fewer in high dimensions).
        seed: of the random means.

    Returns:
        The path.
    """
    means = max(3, min(30, 100_000 // task.dim)) if means is None else means
    rng = np.random.default_rng(seed)
    epsilons = math.sqrt(task.variances.mean()) * np.geomspace(1e-2, 30, 60)
    learned = [robust_parameters(task, eps).learned for eps in epsilons]
    figure = Figure(figsize=(6.4, 4.4), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    for index in range(means):
        mean = task.from_eigenbasis(rng.standard_normal(task.dim) * np.sqrt(task.variances))
        cosines = [cosine(mean, model) for model in learned]
        axis.plot(epsilons, cosines, color=GREY, lw=0.7, label="random means, each fixed" if index == 0 else None)
    axis.plot(
        epsilons,
        [worst_cosine(model) for model in learned],
        color="black",
        lw=2.2,
        label="worst mean at each $\\varepsilon$",
    )
    axis.axhline(
        worst_cosine(task), color=RED, ls="--", lw=1.3, label=r"standard parameters, $2\sqrt{\kappa}/(1+\kappa)$"
    )
    axis.set(xscale="log", xlabel=r"radius $\varepsilon$", ylabel=r"$\cos(\mu, \nabla f)$", ylim=(0, 1.03))
    axis.set_title("Gradient alignment")
    axis.legend(fontsize=8, loc="lower right")
    return save_png(figure, path)


def _density(axis: Axes, x: np.ndarray, colour: str) -> None:
    """Contours of a kernel density estimate, filled in one colour of increasing opacity, so that two may overlap."""
    grid_x, grid_y = np.meshgrid(np.linspace(-20, 20, 121), np.linspace(-10, 10, 81))
    density = gaussian_kde(x.T)(np.stack([grid_x.ravel(), grid_y.ravel()])).reshape(grid_x.shape)
    levels = density.max() * np.array([0.03, 0.1, 0.25, 0.45, 0.7, 1.0])
    fills = [to_rgba(colour, alpha) for alpha in (0.06, 0.15, 0.28, 0.42, 0.58)]
    axis.contourf(grid_x, grid_y, density, levels=levels, colors=fills)
    axis.contour(grid_x, grid_y, density, levels=levels[:-1], colors=colour, linewidths=0.6, alpha=0.6)


def _boundary(axis: Axes, w: np.ndarray, b: float = 0.0, **style) -> float:
    """Draws w^T x + b = 0; returns its slope dx2/dx1 (infinity if vertical)."""
    foot = -b * w / (w @ w)
    along = np.array([-w[1], w[0]]) / np.linalg.norm(w)
    axis.axline(foot, foot + along, **style)
    return math.inf if w[1] == 0 else float(-w[0] / w[1])


def _gap(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str, offset: tuple[int, int]) -> None:
    """A double arrow with a label beside its middle."""
    axis.annotate("", end, start, arrowprops={"arrowstyle": "<->", "lw": 1.2, "shrinkA": 0, "shrinkB": 0})
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    axis.annotate(text, middle, xytext=offset, textcoords="offset points", ha="center", fontsize=11)


def _angle(found: Linear) -> float:
    return math.degrees(math.atan2(found.w[1], found.w[0]))


def save_png(figure: Figure, path: Path) -> Path:
    """Saves a figure as a PNG with 256 colours, a third of the size of a full-colour one and visually identical.

    Args:
        figure: the figure.
        path: the PNG.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
