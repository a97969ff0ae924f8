"""Usefulness of features, and how much of it remains under attack (Section 2; Goh 2019, "Two Examples").

A feature f, shifted and scaled to mean 0 and variance 1 on the data, is rho-useful for a label y in {-1, +1} with

    rho   = E[y f(x)]                                       (1)
    gamma = E[min over allowed delta of y f(x + delta)]     (2)

It is robust if gamma > 0, and useful but non-robust if rho > 0 and gamma <= 0. With more than two classes, y is one
class against the rest. The sign of f is free, so every rho here is >= 0: an anti-correlated feature is replaced by -f.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advfeat import _model_checks
from advfeat._arguments import number, whole_number
from advfeat._names import printable
from advfeat.attacks import PGD
from advfeat.attacks.inputs import check_tensor
from advfeat.files import write_bytes
from advfeat.forward import taken_by
from advfeat.objectives import Objective
from advfeat.threat import NORMS, check_norm

ROBUST, INCONCLUSIVE, NON_ROBUST, USELESS = "robust", "inconclusive", "non-robust", "useless"
_SHOWN_TWICE = 32  # samples that are passed twice, to detect random features
KINDS = (ROBUST, INCONCLUSIVE, NON_ROBUST, USELESS)


@dataclass(frozen=True, eq=False)
class Ranges:
    """Value of each feature at each sample, and the smallest and largest value within the adversary's reach.

    Attributes:
        value: float64 [N, k].
        low: float64 [N, k].
        high: float64 [N, k].
        stuck: float64 [k], share of attacks that never saw a non-zero gradient (a dead ReLU), whose results cannot be
            trusted; None for closed forms.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    stuck: Tensor | None = None


def linear_ranges(
    weights: Tensor, x: Tensor, eps: float, norm: str = "l2", *, box: tuple[float, float] | None = None
) -> Ranges:
    """Compute the ranges of linear features w_j^T x in closed form: w_j^T x -+ eps ||w_j||_* (Goh's R3).

    Args:
        weights: [k, D].
        x: [N, ...] with D values per sample.
        eps: Radius >= 0, in the units of x.
        norm: A name in :data:`advfeat.threat.NORMS`.
        box: (lo, hi) that x + delta must stay in, handled exactly, for "linf" only: other balls cut by a box have no
            closed form.

    Returns:
        The ranges.

    Raises:
        TypeError: If ``box`` is not a pair.
        ValueError: If shapes do not match, eps is negative or not finite, the norm is unknown, ``box`` is given with
            another norm than "linf", or x is outside the box.
    """
    check_tensor("weights", weights, "[k, D]")
    check_tensor("x", x, "[N, ...]")
    if x.dim() < 1:
        raise ValueError("x should be [N, ...], got a tensor without dimensions")
    eps = number("eps", eps)
    weights, x = weights.to(torch.float64), x.to(torch.float64).reshape(len(x), math.prod(x.shape[1:]))
    if weights.dim() != 2 or weights.shape[1] != x.shape[1]:
        raise ValueError(f"weights should be [k, {x.shape[1]}] for x of that size, got shape {tuple(weights.shape)}")
    if not (eps >= 0 and math.isfinite(eps)):
        raise ValueError(f"eps should be finite and at least 0, got {eps}")
    check_norm(norm)
    value = x @ weights.T
    if box is None:
        reach = eps * torch.linalg.vector_norm(weights, NORMS[norm].dual_order, dim=1)
        return Ranges(value, value - reach, value + reach)
    if norm != "linf":  # whose ball is itself a box
        raise ValueError(f"box should be None with norm={norm!r}: no closed form there; use attacked_ranges")
    if not isinstance(box, (tuple, list)) or len(box) != 2:
        raise TypeError(f"box should be (lo, hi), got {box!r}")
    lo, hi = (number("box", bound) for bound in box)
    if not lo <= hi:
        raise ValueError(f"box should be (lo, hi) with lo at most hi, got {box!r}")
    if not bool(((x >= lo) & (x <= hi)).all()):
        raise ValueError(f"x should lie in the box [{lo}, {hi}], got values from {x.min():.4g} to {x.max():.4g}")
    down, up = (x - eps).clamp(min=lo), (x + eps).clamp(max=hi)
    positive, negative = weights.clamp(min=0).T, weights.clamp(max=0).T
    return Ranges(value, down @ positive + up @ negative, up @ positive + down @ negative)


@dataclass(frozen=True)
class SignedFeature(Objective):
    """Objective sign * f_j(x) for targets (j, sign).

    Maximised or minimised, it lets one attack serve every feature and both ends of its range.

    Attributes:
        features: Function [B, ...] -> [B, k].
    """

    features: Callable[[Tensor], Tensor]

    def value(self, model, x, target):
        """Return sign * f_j(x) of each sample.

        Args:
            model: Ignored.
            x: [B, ...].
            target: Floating point [B, 2] of (j, sign).

        Returns:
            [B].
        """
        f = taken_by(self.features, x).flatten(1)
        return target[:, 1].to(f.dtype) * f.gather(1, target[:, :1].to(torch.int64))[:, 0]


def attacked_ranges(
    features: Callable[[Tensor], Tensor],
    x: Tensor,
    attack: PGD,
    *,
    select: Sequence[int] | None = None,
    batch_size: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Ranges:
    """Compute the ranges of any differentiable features by projected gradient descent, with one attack per end.

    It costs 2 N len(select) attacks. A gradient attack finds inner bounds: the true range is at least as wide, so gamma
    computed from it is an upper bound. The unattacked value is always inside the range. A RuntimeWarning is given if
    two passes over the first samples give different features: each value is then a single draw.

    Args:
        features: Module, or function or method of one (such as ``model.representation``), [B, ...] -> [B, k].
        x: Floating point [N, ...] in the box of ``attack.threat``.
        attack: Gives the ball, steps, step size, random starts and restarts; its objective and direction are replaced,
            and the best iterate is kept.
        select: Indices of the features to attack; None takes all.
        batch_size: Attacks per batch.
        progress: Function (done, total) that counts attacks.

    Returns:
        The ranges of the selected features.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If x is empty or not floating point, a selected feature does not exist, or ``features`` does not
            give a tensor [B, k].
    """
    if not isinstance(attack, PGD):
        raise TypeError(f"attack should be advfeat.PGD, got {type(attack).__name__}")
    if not callable(features) or isinstance(features, type):
        raise TypeError(f"features should be a module or a function of images, got {features!r}")
    check_tensor("x", x, "floating point [N, ...]")
    batch_size = whole_number("batch_size", batch_size)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress should be a function (done, total), got {type(progress).__name__}")
    if not x.is_floating_point() or x.device.type == "meta":
        raise ValueError(f"x should be floating point with values, got {x.dtype} on the device {x.device}")
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(f"x should be [N, ...] with N at least 1, got shape {tuple(x.shape)}")
    total = _width(features, x[:1])
    chosen = list(range(total)) if select is None else _selected(select)
    if not chosen or not all(0 <= j < total for j in chosen):
        raise ValueError(f"select should be features between 0 and {total - 1}, got {select}")
    _warn_of_randomness(features, x[:_SHOWN_TWICE])
    value = _clean_values(features, x, batch_size)[:, chosen]
    attack = attack.replace(objective=SignedFeature(features), targeted=True, keep="best", stop=None)
    n, k = value.shape
    ends = torch.empty(2, n * k, dtype=torch.float64, device="cpu")
    stuck = torch.zeros(k, dtype=torch.float64, device="cpu")
    columns = torch.tensor(chosen, device="cpu")
    for side, sign in enumerate((1.0, -1.0)):
        for first in range(0, n * k, batch_size):
            pair = torch.arange(first, min(first + batch_size, n * k), device="cpu")
            sample, column = pair // k, pair % k
            target = torch.stack(
                [columns[column].to(torch.float32), torch.full_like(column, sign, dtype=torch.float32)], dim=1
            )
            rows = x[sample.to(x.device)]
            # Random starts are keyed by (sample, feature), so that a result does not depend on batch_size.
            ids = sample * total + columns[column]
            result = attack.run(features, rows, target.to(x.device), sample_ids=ids.to(x.device))
            ends[side, pair] = sign * result.value.to("cpu", torch.float64)
            stuck += torch.bincount(
                column, weights=(result.zero_grad_steps.cpu() >= attack.steps * attack.restarts).double(), minlength=k
            )
            if progress:
                progress(side * n * k + first + len(pair), 2 * n * k)
    low, high = torch.minimum(ends[0].view(n, k), value), torch.maximum(ends[1].view(n, k), value)
    # With no steps, every attack would count as stuck, though there was no gradient to see.
    return Ranges(value, low, high, stuck / (2 * n) if attack.steps else torch.zeros_like(stuck))


def _selected(select: Sequence[int]) -> list[int]:
    """Return features as indices.

    Anything else raises TypeError: the entries of a mask or a text, for instance, would be read as indices.
    """
    given = select.tolist() if hasattr(select, "tolist") else select
    try:
        if isinstance(given, str):
            raise TypeError
        return [whole_number("select", j, None) for j in given]
    except (TypeError, ValueError) as error:
        raise TypeError(f"select should be a list of numbers of features, as in [0, 2], got {select!r}") from error


@dataclass(frozen=True, eq=False)
class Usefulness:
    """rho and gamma of k features for each class against the rest, with standard errors over samples.

    Attributes:
        rho: [k, classes], usefulness.
        rho_error: [k, classes], its standard error.
        gamma: [k, classes], robust usefulness.
        gamma_error: [k, classes], its standard error.
        sign: [k, classes], -1 where f is replaced by -f.
        classes: Class of each column; for two classes a single column, with the greater label as +1.
        n: Number of samples.
        stuck: See :class:`Ranges`.
        significance: Number of standard errors that count as different from 0.
    """

    rho: np.ndarray
    rho_error: np.ndarray
    gamma: np.ndarray
    gamma_error: np.ndarray
    sign: np.ndarray
    classes: tuple[int, ...]
    n: int
    stuck: np.ndarray | None = None
    significance: float = 3.0

    @property
    def useful(self) -> np.ndarray:
        """[k, classes]: rho is significantly above 0."""
        return self.rho > self.significance * self.rho_error

    @property
    def robust(self) -> np.ndarray:
        """[k, classes]: useful, and gamma is significantly above 0."""
        return self.useful & (self.gamma > self.significance * self.gamma_error)

    @property
    def non_robust(self) -> np.ndarray:
        """[k, classes]: useful, and gamma is significantly below 0."""
        return self.useful & (self.gamma < -self.significance * self.gamma_error)

    @property
    def kinds(self) -> list[str]:
        """The kind of each feature.

        "robust" if it is robust for at least one class (as Goh counts), "useless" if it is useless for all,
        "inconclusive" if it is robust for none but some gamma is within its error of 0, else "non-robust".
        """
        robust, useful = np.asarray(self.robust.any(1)), self.useful
        open_ = useful & ~self.robust & ~self.non_robust
        return [
            ROBUST if robust[j] else USELESS if not useful[j].any() else INCONCLUSIVE if open_[j].any() else NON_ROBUST
            for j in range(len(robust))
        ]

    @property
    def best(self) -> np.ndarray:
        """The column that determines the kind of each feature.

        It is the one with the largest gamma among the columns for which the feature is robust, or else useful; the one
        with the largest rho if there is none.
        """
        shown = np.where(self.robust.any(1, keepdims=True), self.robust, self.useful)
        gamma = np.where(shown, self.gamma, -np.inf)
        return np.where(shown.any(1), gamma.argmax(1), self.rho.argmax(1))

    def rows(self) -> list[dict]:
        """Return one dict of JSON values per feature, most useful first.

        Returns:
            Dicts with feature (its index), kind, class, sign, rho, rho_error, gamma, gamma_error.
        """
        best, kinds = self.best, self.kinds
        found = [
            {
                "feature": j,
                "kind": kinds[j],
                "class": self.classes[best[j]],
                "sign": int(self.sign[j, best[j]]),
                **{
                    name: float(getattr(self, name)[j, best[j]])
                    for name in ("rho", "rho_error", "gamma", "gamma_error")
                },
            }
            for j in range(len(kinds))
        ]
        return sorted(found, key=lambda row: -row["rho"])

    def table(self, limit: int = 20):
        """Return a rich table of the most useful features.

        Args:
            limit: Number of features.
        """
        from rich.table import Table

        kinds = self.kinds
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
        result = Table(title=f"{len(self.kinds)} features on {self.n} samples: {counts}", title_justify="left")
        for heading in ("feature", "class", "rho", "gamma", "kind"):
            result.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
        for row in self.rows()[:limit]:
            result.add_row(
                ("-" if row["sign"] < 0 else "") + f"f{row['feature']}",
                str(row["class"]),
                f"{row['rho']:.3f} ± {row['rho_error']:.3f}",
                f"{row['gamma']:.3f} ± {row['gamma_error']:.3f}",
                row["kind"],
            )
        return result

    def scatter(self, path: Path, title: str = "") -> Path:
        """Write :meth:`scatter_png` to a file.

        Args:
            path: The file.
            title: Title of the figure.

        Returns:
            The path.
        """
        write_bytes(path, self.scatter_png(title))
        return Path(path)

    def scatter_png(self, title: str = "") -> bytes:
        """Plot gamma against rho, one point per feature, coloured by kind.

        Robust features lie above the line gamma = 0.

        Args:
            title: Title of the figure.

        Returns:
            The PNG file.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from advfeat.plots import own_style

        @own_style
        def drawn() -> bytes:
            figure = Figure(figsize=(5.6, 4.4), dpi=110, layout="constrained")
            FigureCanvasAgg(figure)
            draw_scatter(figure.subplots(), self, printable(title))
            image = io.BytesIO()
            figure.savefig(image, format="png")
            return image.getvalue()

        return drawn()


def draw_scatter(axis, found: Usefulness, title: str = "") -> None:
    """Plot gamma against rho on matplotlib axes.

    Args:
        axis: The axes.
        found: The features.
        title: Title of the axes.
    """
    rows = found.rows()
    styles = {
        ROBUST: ("#2f8f5b", "o"),
        INCONCLUSIVE: ("#d9a027", "s"),
        NON_ROBUST: ("#b8333a", "^"),
        USELESS: ("#8a8a8a", "x"),
    }
    for kind, (colour, marker) in styles.items():
        points = [(row["rho"], row["gamma"]) for row in rows if row["kind"] == kind]
        label = f"{kind} ({len(points)})"
        axis.plot(*(zip(*points, strict=True) if points else ([], [])), marker, ms=5, color=colour, label=label)
    right = 1.08 * max((row["rho"] for row in rows), default=0.0)
    right = right if right > 0 else 1.0  # all features are constant
    axis.plot([0, right], [0, right], color="#8a8a8a", lw=0.8, ls=":", label=r"no adversary: $\gamma = \rho$")
    axis.axhline(0, color="black", lw=0.8)
    axis.set(xlim=(0, right), xlabel=r"usefulness $\rho$", ylabel=r"robust usefulness $\gamma$")
    axis.set_title(title, parse_math=False)  # a path may contain dollar signs
    axis.legend(fontsize=8)


def check_labels(labels: Tensor) -> list[int]:
    """Return the classes that labels contain.

    Args:
        labels: Integers [N].

    Returns:
        The classes in ascending order.

    Raises:
        ValueError: If there are fewer than two classes, between which no feature could discriminate.
    """
    classes = torch.as_tensor(labels, device="cpu").unique().tolist()
    if len(classes) < 2:
        raise ValueError(f"labels should hold at least two classes, got {classes}")
    return classes


def usefulness(ranges: Ranges, labels: Tensor, *, significance: float = 3.0) -> Usefulness:
    """Compute rho (1) and gamma (2) from the ranges of features.

    Means and variances are those of the N samples. A constant feature has rho = gamma = 0 (it cannot be scaled to
    variance 1). With C classes and one against the rest at share p, no rho exceeds 2 sqrt(p (1 - p)).

    Args:
        ranges: Ranges of k features at N samples.
        labels: Integers [N] of at least two classes.
        significance: Number of standard errors that count as different from 0.

    Returns:
        rho and gamma with their standard errors.

    Raises:
        TypeError: If ``ranges`` is not a :class:`Ranges`, or labels are not integers.
        ValueError: If shapes do not match, a value is not finite, labels hold a single class, or significance is
            negative.
    """
    significance = number("significance", significance)
    if not significance >= 0:
        raise ValueError(f"significance should be at least 0, got {significance}")
    _check_ranges(ranges)
    try:
        labels = torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"labels should be integers [N], got {type(labels).__name__}") from error
    n, k = ranges.value.shape
    if labels.shape != (n,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels should be integers [{n}], got {labels.dtype} of shape {tuple(labels.shape)}")
    classes = check_labels(labels)
    value, low, high = (t.detach().cpu().to(torch.float64).numpy() for t in (ranges.value, ranges.low, ranges.high))
    for name, part in (("value", value), ("low", low), ("high", high)):
        if not np.isfinite(part).all():
            raise ValueError(f"ranges.{name} should be finite, feature {np.argwhere(~np.isfinite(part))[0][1]} is not")
    mean, spread = value.mean(0), value.std(0)
    # A feature that varies only by rounding is constant too: scaling it up would amplify noise.
    constant = spread <= 1e-12 * np.abs(value).max(0)
    scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, spread))
    value, low, high = ((part - mean) * scale for part in (value, low, high))

    columns = classes[1:] if len(classes) == 2 else classes
    shape = (k, len(columns))
    rho, rho_error, gamma, gamma_error, sign = (np.zeros(shape) for _ in range(5))
    for c, label in enumerate(columns):
        y = np.where(labels.numpy() == label, 1.0, -1.0)[:, None]
        s = np.where((y * value).mean(0) < 0, -1.0, 1.0)
        clean = y * s * value
        attacked = np.where(y * s > 0, low, -high)
        sign[:, c] = s
        for moment, moment_error, sample in ((rho, rho_error, clean), (gamma, gamma_error, attacked)):
            moment[:, c] = sample.mean(0)
            moment_error[:, c] = sample.std(0) / math.sqrt(n)
    stuck = None if ranges.stuck is None else ranges.stuck.cpu().numpy()
    return Usefulness(rho, rho_error, gamma, gamma_error, sign, tuple(columns), n, stuck, significance)


def _check_ranges(ranges: Ranges) -> None:
    if not isinstance(ranges, Ranges):
        raise TypeError(f"ranges should be the Ranges of linear_ranges or attacked_ranges, got {type(ranges).__name__}")
    for name in ("value", "low", "high"):
        part = getattr(ranges, name)
        check_tensor(f"ranges.{name}", part, "[N, k]")
        if part.dim() != 2 or part.shape != ranges.value.shape:
            raise ValueError(f"ranges.{name} should be [N, k], as ranges.value is, got shape {tuple(part.shape)}")


def containment(first: tuple[float, float], second: tuple[float, float], alpha: float) -> tuple[float, float]:
    """Return robustness and usefulness of a mixture of two linear features along singular vectors (Goh's R3).

    For f_i = a_i^T x / ||a_i||_S with a_i eigenvectors of S = E x x^T, robustness is ||a||_S / ||a||_2 (the singular
    value s_i for a_i itself) and usefulness is E[y f]. With u_i the usefulness of a_i, the feature alpha f_1 + (1 -
    alpha) f_2 has

        v = sqrt((alpha s_1)^2 + ((1 - alpha) s_2)^2),
        usefulness = (alpha s_1 u_1 + (1 - alpha) s_2 u_2) / v,    robustness = v / sqrt(alpha^2 + (1 - alpha)^2).

    A useful feature mixed into a useless non-robust one gives a feature that is useful and non-robust.

    Args:
        first: (robustness, usefulness) of f_1.
        second: (robustness, usefulness) of f_2.
        alpha: Weight of f_1, in [0, 1].

    Returns:
        (robustness, usefulness) of the mixture.

    Raises:
        TypeError: If ``first`` or ``second`` is not a pair.
        ValueError: If a robustness is not positive, or alpha is outside [0, 1].
    """
    for name, pair in (("first", first), ("second", second)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{name} should be (robustness, usefulness), got {pair!r}")
    first = number("first[0]", first[0]), number("first[1]", first[1])
    second = number("second[0]", second[0]), number("second[1]", second[1])
    alpha = number("alpha", alpha)
    for name, value in (("first robustness", first[0]), ("second robustness", second[0])):
        if not value > 0:
            raise ValueError(f"{name} should be > 0, got {value}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha should be between 0 and 1, got {alpha}")
    parts = alpha * first[0], (1 - alpha) * second[0]
    length = math.hypot(*parts)
    useful = (parts[0] * first[1] + parts[1] * second[1]) / length
    return length / math.hypot(alpha, 1 - alpha), useful


def _width(features: Callable, x: Tensor) -> int:
    return _clean_values(features, x, 1).shape[1]


def _warn_of_randomness(features: Callable, x: Tensor) -> None:
    from advfeat.attacks.no_trace import no_trace

    with no_trace(features, x.device), torch.no_grad():  # one block for both: it restores the random state
        first, second = taken_by(features, x.clone()), taken_by(features, x.clone())
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return  # refused by whoever takes the values
    if first.is_floating_point() and not _model_checks.agree(first, second):
        _model_checks.warn_of_randomness("usefulness and its ranges are of single draws", 3)


def _clean_values(features: Callable, x: Tensor, batch_size: int) -> Tensor:
    """Return the features of x, float64 [N, k] on the CPU, computed in eval mode without side effects."""
    from advfeat.attacks.no_trace import no_trace

    with no_trace(features, x.device), torch.no_grad():
        parts = []
        for batch in x.split(batch_size):
            found = taken_by(features, batch)
            if not isinstance(found, Tensor) or found.shape[:1] != batch.shape[:1]:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(f"features should give a tensor [{len(batch)}, k], got {shape}")
            parts.append(found.flatten(1).to("cpu", torch.float64))
        return torch.cat(parts)
