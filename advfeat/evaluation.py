"""Clean and robust accuracy, each with its sample size, its 95 % interval and the settings of the attack behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from advfeat.attacks import PGD
from advfeat.attacks.no_trace import logits_of
from advfeat.batches import check_images, check_labels
from advfeat.models import check_fits, evaluating
from advfeat.objectives import Margin, Objective
from advfeat.progress import Reporter
from advfeat.threat import L2, Linf

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(successes: int, n: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion: 95 % by default.

    ``(p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)`` with p = successes/n; right at 0 and at n, where the
    usual ``p -+ z sqrt(p (1 - p)/n)`` has width 0. Errors: ValueError unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"successes should be in 0 .. n with n > 0, got {successes} of {n}")
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class Share:
    """``count`` of ``n`` samples, with the 95 % interval of the proportion."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The proportion, in [0, 1]."""
        return self.count / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.count, self.n)

    def to_dict(self) -> dict:
        return {"value": self.value, "count": self.count, "n": self.n, "interval": list(self.interval)}


@dataclass(frozen=True)
class Robustness:
    """What one attack left standing.

    accuracy: samples that are classified correctly and that no iterate of any restart of this attack broke, nor any
        attack of the same evaluation with the same norm and box at a smaller radius (its examples lie in this ball too).
    found_alone: the same without the smaller radii's examples.
    carried: samples that a smaller radius broke and this attack did not; more than a few mean it has not converged.
    attacked: samples that were attacked, which are the correctly classified ones; the counts below are of these.
    margin: mean of ``z_y - max_{j != y} z_j`` at the examples returned; negative is broken.
    zero_gradient, nonfinite_gradient: samples that met at least one gradient that was zero, or held NaN or infinity. The
        sample did not move at such a step: where there are many, "robust" means "not attacked".
    largest_distance: of the examples from their samples, in the attack's norm; at most the radius.
    """

    name: str
    eps: float
    attack: dict
    accuracy: Share
    found_alone: Share
    carried: int
    attacked: int
    margin: float | None
    zero_gradient: int
    nonfinite_gradient: int
    largest_distance: float

    @property
    def converged(self) -> bool:
        """False where a smaller radius broke samples that this attack could not."""
        return self.carried == 0

    def to_dict(self) -> dict:
        return {
            "name": self.name,
            "eps": self.eps,
            "robust_accuracy": self.accuracy.to_dict(),
            "found_alone": self.found_alone.to_dict(),
            "carried_from_smaller_radii": self.carried,
            "note": None
            if self.converged
            else f"attack not converged: {self.carried} samples broke at a smaller radius",
            "attacked": self.attacked,
            "mean_margin": self.margin,
            "zero_gradient_samples": self.zero_gradient,
            "nonfinite_gradient_samples": self.nonfinite_gradient,
            "largest_distance": self.largest_distance,
            "attack": self.attack,
        }


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set: clean accuracy, and one :class:`Robustness` an attack, in the order they were given.

    Per sample, on the CPU: ``prediction`` int64 [n], ``correct`` bool [n], ``margins`` float32 [n] (clean, positive is
    correct), ``robust`` a bool [n] for each attack's name.
    """

    data: str
    clean: Share
    margin: float | None
    robustness: list[Robustness]
    nonfinite_logits: int
    prediction: Tensor = field(repr=False)
    correct: Tensor = field(repr=False)
    margins: Tensor = field(repr=False)
    robust: dict[str, Tensor] = field(repr=False)

    def to_dict(self) -> dict:
        """Everything but the per-sample outcomes, as JSON values."""
        return {
            "data": self.data,
            "n": self.clean.n,
            "clean_accuracy": self.clean.to_dict(),
            "mean_margin": self.margin,
            "nonfinite_logits_samples": self.nonfinite_logits,
            "robustness": [r.to_dict() for r in self.robustness],
        }


def default_attack(
    eps: float,
    norm: str = "l2",
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    objective: Objective | Callable | None = None,
    seed: int = 0,
) -> PGD:
    """The attack that a bare radius stands for: PGD with 20 steps of ``2.5 eps / steps`` on the margin.

    The step size is that of the authors' library (MadryLab/robustness, README); the margin never saturates. It starts at
    the sample; with ``restarts`` > 1 at that many random points. The best iterate counts, not the last.
    Errors: ValueError for a norm that is neither "l2" nor "linf".
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f'norm should be "l2" or "linf", got {norm!r}')
    threat = L2(float(eps)) if norm == "l2" else Linf(float(eps))
    return PGD(
        threat,
        steps=steps,
        step_size=step_size,
        objective=objective or Margin(),
        random_start=restarts > 1,
        restarts=restarts,
        keep="best",
        seed=seed,
    )


def evaluate(
    model: nn.Module,
    source: Any,
    *,
    attacks: Sequence[float | PGD | tuple[str, PGD]] = (),
    norm: str = "l2",
    batch_size: int = 500,
    limit: int | None = None,
    progress: Any = None,
) -> Evaluation:
    """Clean accuracy, and robust accuracy under each attack.

    model: gives logits [B, classes] or an output with ``.logits``, for images in [0, 1]. It runs in eval mode and in the
        precision it is in, and is left exactly as it was.
    source: ``images(indices)``, ``labels``, ``classes``, ``image_shape``, ``name``.
    attacks: radii (each stands for :func:`default_attack` of ``norm``), attacks, or pairs of a name and an attack.
    limit: only the first so many samples. progress: see :class:`advfeat.progress.Reporter`; counts samples.

    Only correctly classified samples are attacked; what is misclassified is not robust. Radius 0 gives clean accuracy.
    Results do not depend on the batch size, but for rounding inside the model.
    Errors: ValueError for a model that does not fit the data, a targeted attack, labels out of range, images outside
    [0, 1], two attacks of one name; RuntimeError if an attack leaves its ball.
    """
    named = [_named(attack, norm) for attack in attacks]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks should have different names, got {', '.join(names)}")
    n = _count(model, source, limit)
    labels = source.labels[:n]
    report = Reporter(progress, "evaluate", n * (1 + len(named)))
    prediction, margins, finite = _clean(model, source, n, batch_size, report)
    correct = (prediction == labels) & finite
    ids = correct.nonzero()[:, 0]

    alone: dict[str, Tensor] = {}
    seen: dict[str, dict] = {}
    for name, attack in named:
        report.advance(n - len(ids))
        broken, seen[name] = _attack(model, source, attack, ids, batch_size, report)
        alone[name] = correct.clone()
        alone[name][ids[broken]] = False
    robust = {
        name: _without(alone[name], [alone[other] for other, smaller in named if _inside(smaller, attack)])
        for name, attack in named
    }
    return Evaluation(
        data=getattr(source, "name", "data"),
        clean=Share(int(correct.sum()), n),
        margin=_mean(margins),
        robustness=[
            Robustness(
                name=name,
                eps=float(attack.threat.eps),
                attack=attack.to_dict(),
                accuracy=Share(int(robust[name].sum()), n),
                found_alone=Share(int(alone[name].sum()), n),
                carried=int((alone[name] & ~robust[name]).sum()),
                attacked=len(ids),
                **seen[name],
            )
            for name, attack in named
        ],
        nonfinite_logits=int((~finite).sum()),
        prediction=prediction,
        correct=correct,
        margins=margins,
        robust=robust,
    )


def accuracy(model: nn.Module, source: Any, *, batch_size: int = 500, limit: int | None = None) -> Share:
    """Clean accuracy alone; arguments and errors as for :func:`evaluate`."""
    return evaluate(model, source, batch_size=batch_size, limit=limit).clean


def label_agreement(
    model: nn.Module,
    source: Any,
    relabel: Callable[[Tensor], Tensor] | None = None,
    *,
    batch_size: int = 500,
    limit: int | None = None,
) -> dict[str, Share]:
    """How often a model predicts the label, and how often the relabelled one.

    relabel: from labels int64 [n] to labels; None is ``(y + 1) mod classes``. A model trained on D_det that follows the
    robust features predicts y + 1, one that follows the non-robust ones y: Table 10 (Appendix D.6) has 43.7 % and 16.2 %.
    Returns "label", "relabelled" and "other". Errors as for :func:`evaluate`.
    """
    n = _count(model, source, limit)
    labels, classes = source.labels[:n], len(source.classes)
    other = (labels + 1) % classes if relabel is None else relabel(labels)
    if other.shape != labels.shape:
        raise ValueError(f"relabel should give labels of shape {tuple(labels.shape)}, got {tuple(other.shape)}")
    prediction, _, finite = _clean(model, source, n, batch_size, Reporter(None, "", 0))
    same, moved = (prediction == labels) & finite, (prediction == other) & finite
    return {
        "label": Share(int(same.sum()), n),
        "relabelled": Share(int(moved.sum()), n),
        "other": Share(int((~same & ~moved).sum()), n),
    }


def _named(attack: float | PGD | tuple[str, PGD], norm: str) -> tuple[str, PGD]:
    if isinstance(attack, (int, float)):
        attack = default_attack(attack, norm)
    if isinstance(attack, PGD):
        eps = attack.threat.eps
        attack = (f"{attack.threat.norm} {eps:g}" if not isinstance(eps, Tensor) else attack.threat.norm, attack)
    name, pgd = attack
    if not isinstance(pgd, PGD):
        raise TypeError(f"attacks should be radii, PGD or pairs of a name and a PGD, got {type(pgd).__name__}")
    if pgd.targeted:
        raise ValueError(f"attack {name!r} is targeted: robust accuracy needs attacks away from the label")
    if isinstance(pgd.threat.eps, Tensor):
        raise ValueError(f"attack {name!r} should have one radius for all samples, got a tensor of eps")
    return name, pgd


def _count(model: nn.Module, source: Any, limit: int | None) -> int:
    n = len(source) if limit is None else min(limit, len(source))
    if n < 1:
        raise ValueError(f"there should be at least one sample to evaluate on, got {n} of {len(source)}")
    name = getattr(source, "name", "data")
    check_fits(model, len(source.classes), source.image_shape, f"data set {name!r}")
    check_labels(source.labels, len(source.classes), name)
    return n


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _logits(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits = logits_of(model(x)).float()
    if logits.shape != (len(x), classes):
        raise ValueError(f"the model should give logits {(len(x), classes)} for this data, got {tuple(logits.shape)}")
    return logits


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, [B]."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)


def _clean(model: nn.Module, source: Any, n: int, batch_size: int, report: Reporter) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, margins, and whether the logits are finite, for the first n samples."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    device, classes = _device(model), len(source.classes)
    for ids in torch.arange(n).split(batch_size):
        images = source.images(ids)
        check_images(images, ids, getattr(source, "name", "data"))
        logits = _logits(model, images.to(device), classes).cpu()
        parts.append((logits.argmax(dim=1), _margin(logits, source.labels[ids]), logits.isfinite().all(dim=1)))
        report.advance(len(ids))
    prediction, margins, finite = (torch.cat(part) for part in zip(*parts, strict=True))
    return prediction, margins, finite


def _attack(
    model: nn.Module, source: Any, attack: PGD, ids: Tensor, batch_size: int, report: Reporter
) -> tuple[Tensor, dict]:
    """Whether each sample of ``ids`` was broken, bool, and the statistics that :class:`Robustness` keeps."""
    device, classes, eps = _device(model), len(source.classes), float(attack.threat.eps)
    broken, margins, farthest, zero, nonfinite = [], [], 0.0, 0, 0
    for batch in ids.split(batch_size) if len(ids) else ():
        x, y = source.images(batch).to(device), source.labels[batch].to(device)
        if eps == 0:  # nothing to search, and rounding in another batch must not look like an attack
            broken.append(torch.zeros(len(batch), dtype=torch.bool))
            margins.append(_margin(_logits(model, x, classes), y).cpu())
            report.advance(len(batch))
            continue
        result = attack.run(model, x, y, sample_ids=batch.to(device))
        logits = _logits(model, result.x_adv, classes)
        hit = logits.argmax(dim=1) != y
        if result.first_success is not None:  # an iterate that keep="last" moved on from counts as well
            hit |= result.success | (result.first_success >= 0)
        farthest = max(farthest, _distance(attack, result.x_adv, x))
        if math.isfinite(eps) and farthest > eps * (1 + 1e-5) + 1e-6:
            raise RuntimeError(f"the attack left its ball: an example is {farthest:.8g} away, eps is {eps:.8g}")
        broken.append(hit.cpu())
        margins.append(_margin(logits, y).cpu())
        zero += int((result.zero_grad_steps > 0).sum())
        nonfinite += int((result.nonfinite_grad_steps > 0).sum())
        report.advance(len(batch))
    statistics = {
        "margin": _mean(torch.cat(margins)) if margins else None,
        "zero_gradient": zero,
        "nonfinite_gradient": nonfinite,
        "largest_distance": farthest,
    }
    return torch.cat(broken) if broken else torch.zeros(0, dtype=torch.bool), statistics


def _distance(attack: PGD, x_adv: Tensor, x: Tensor) -> float:
    """The largest distance, in float64 and by torch alone: the attack's own word is not taken for it."""
    difference = (x_adv.double() - x.double()).flatten(1)
    order = 2 if attack.threat.norm == "l2" else math.inf
    return float(torch.linalg.vector_norm(difference, order, dim=1).max())


def _inside(smaller: PGD, larger: PGD) -> bool:
    """Whether every example of one attack lies in the ball and the box of the other, at a smaller radius."""
    a, b = smaller.threat.to_dict(), larger.threat.to_dict()
    same = all(a[key] == b[key] for key in ("norm", "lo", "hi"))
    return same and float(smaller.threat.eps) < float(larger.threat.eps)


def _without(robust: Tensor, others: list[Tensor]) -> Tensor:
    for other in others:
        robust = robust & other
    return robust


def _mean(values: Tensor) -> float | None:
    mean = float(values.double().mean())
    return mean if math.isfinite(mean) else None
