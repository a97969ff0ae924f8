"""Clean and robust accuracy, each with its sample size, its 95 % interval and the settings of the attack behind it."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from advfeat.attacks import PGD, Attack
from advfeat.attacks.no_trace import logits_of, unwrapped
from advfeat.checks import check_images, check_labels, evenly_spaced
from advfeat.intervals import Share
from advfeat.models import attack_copy, check_fits, evaluating
from advfeat.objectives import Margin, Objective
from advfeat.progress import Reporter
from advfeat.read_ahead import read_ahead
from advfeat.threat import L2, Linf


@dataclass(frozen=True)
class Robustness:
    """What one attack left standing.

    accuracy: samples that are classified correctly and that no iterate of any restart of this attack broke, nor any
        attack of the same evaluation with the same norm and box at a smaller radius (those lie in this ball too).
    found_alone: the same without the smaller radii's examples.
    carried: samples that a smaller radius broke and this attack did not; more than a few mean it has not converged.
    attacked: samples that were attacked, which are the correctly classified ones; the counts below are of these.
    margin: mean of ``z_y - max_{j != y} z_j`` at the examples returned; negative is broken.
    zero_gradient, nonfinite_gradient: samples that met at least one gradient that was zero, or held NaN or infinity.
        The sample did not move at such a step: where there are many, "robust" means "not attacked".
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

    Per sample, on the CPU: ``index`` int64 [n] (its position in the data set), ``prediction`` int64 [n], ``correct``
    bool [n], ``margins`` float32 [n] (clean, positive is correct), ``robust`` a bool [n] for each attack's name.
    """

    data: str
    clean: Share
    margin: float | None
    robustness: list[Robustness]
    nonfinite_logits: int
    index: Tensor = field(repr=False)
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

    The step size is that of the authors' library (MadryLab/robustness, README); the margin never saturates. It starts
    at the sample; with ``restarts`` > 1 at that many random points. The best iterate counts, not the last.
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
    attacks: Sequence[float | Attack | tuple[str, Attack]] = (),
    norm: str = "l2",
    batch_size: int = 500,
    limit: int | None = None,
    same_classes: bool = False,
    progress: Any = None,
) -> Evaluation:
    """Clean accuracy, and robust accuracy under each attack.

    model: gives logits [B, classes] or an output with ``.logits``, for images in [0, 1]. It runs in eval mode and in
        the precision it is in, and is left exactly as it was. Convolutions in float32 are done as torch is set: on
        recent GPUs in TensorFloat-32, unless ``torch.backends.cudnn.allow_tf32`` is False.
    source: ``images(indices)``, ``labels``, ``classes``, ``image_shape``, ``name``.
    attacks: radii (each stands for :func:`default_attack` of ``norm``), attacks, or pairs of a name and an attack.
    limit: only so many samples, evenly spaced over the data set (the first of a folder would all be of one class).
    same_classes: classes are compared by name, where the model says its own; True takes those of the same number for
        the same.
    progress: see :class:`advfeat.progress.Reporter`; counts samples.

    Only correctly classified samples are attacked; what is misclassified is not robust. Radius 0 gives clean accuracy.
    Results do not depend on the batch size, but for rounding inside the model.
    Errors: ValueError for a model that does not fit the data or has other classes, a targeted attack, labels out of
    range, images outside [0, 1], two attacks of one name; RuntimeError if an attack leaves its ball.
    """
    model = unwrapped(model)
    named = [_named(attack, norm) for attack in attacks]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks should have different names, got {', '.join(names)}")
    index = _select(model, source, limit, same_classes)
    n = len(index)
    report = Reporter(progress, "evaluate", n * (1 + len(named)))
    prediction, margins, finite = _clean(model, source, index, batch_size, report)
    correct = (prediction == source.labels[index]) & finite
    rows = correct.nonzero()[:, 0]

    alone: dict[str, Tensor] = {}
    seen: dict[str, dict] = {}
    for name, attack in named:
        report.advance(n - len(rows))
        broken, seen[name] = _attack(model, source, attack, index[rows], batch_size, report)
        alone[name] = correct.clone()
        alone[name][rows[broken]] = False
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
                attacked=len(rows),
                **seen[name],
            )
            for name, attack in named
        ],
        nonfinite_logits=int((~finite).sum()),
        index=index,
        prediction=prediction,
        correct=correct,
        margins=margins,
        robust=robust,
    )


def accuracy(
    model: nn.Module, source: Any, *, batch_size: int = 500, limit: int | None = None, same_classes: bool = False
) -> Share:
    """Clean accuracy alone; arguments and errors as for :func:`evaluate`."""
    return evaluate(model, source, batch_size=batch_size, limit=limit, same_classes=same_classes).clean


def label_agreement(
    model: nn.Module,
    source: Any,
    relabel: Callable[[Tensor], Tensor] | None = None,
    *,
    batch_size: int = 500,
    limit: int | None = None,
    same_classes: bool = False,
) -> dict[str, Share]:
    """How often a model predicts the label, and how often the relabelled one.

    relabel: from labels int64 [n] to labels; None is ``(y + 1) mod classes``. A model trained on D_det that follows the
    robust features predicts y + 1, one that follows the non-robust ones y (Table 10, Appendix D.6: 43.7 % y, 16.2 %
    y + 1).
    Returns "label", "relabelled" and "other". Errors as for :func:`evaluate`.
    """
    model = unwrapped(model)
    index = _select(model, source, limit, same_classes)
    n, labels, classes = len(index), source.labels[index], len(source.classes)
    other = (labels + 1) % classes if relabel is None else relabel(labels)
    if other.shape != labels.shape:
        raise ValueError(f"relabel should give labels of shape {tuple(labels.shape)}, got {tuple(other.shape)}")
    prediction, _, finite = _clean(model, source, index, batch_size, Reporter(None, "", 0))
    same, moved = (prediction == labels) & finite, (prediction == other) & finite
    return {
        "label": Share(int(same.sum()), n),
        "relabelled": Share(int(moved.sum()), n),
        "other": Share(int((~same & ~moved).sum()), n),
    }


def _named(attack: float | Attack | tuple[str, Attack], norm: str) -> tuple[str, Attack]:
    if isinstance(attack, (int, float)):
        attack = default_attack(attack, norm)
    if isinstance(attack, Attack):
        eps = attack.threat.eps
        attack = (f"{attack.threat.norm} {eps:g}" if not isinstance(eps, Tensor) else attack.threat.norm, attack)
    name, named = attack
    if not isinstance(named, Attack):
        raise TypeError(f"attacks should be radii, attacks or pairs of a name and one, got {type(named).__name__}")
    if named.targeted:
        raise ValueError(f"attack {name!r} is targeted: robust accuracy needs attacks away from the label")
    if isinstance(named.threat.eps, Tensor):
        raise ValueError(f"attack {name!r} should have one radius for all samples, got a tensor of eps")
    return name, named


def _select(model: nn.Module, source: Any, limit: int | None, same_classes: bool) -> Tensor:
    """The positions of the samples to evaluate on; checks that the model fits the data."""
    index = evenly_spaced(len(source), limit)
    if len(index) == 0:
        raise ValueError(f"there should be at least one sample to evaluate on, got limit={limit} of {len(source)}")
    name = getattr(source, "name", "data")
    check_fits(model, source.classes, source.image_shape, f"data set {name!r}", same_classes)
    check_labels(source.labels, len(source.classes), name)
    return index


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


def _clean(
    model: nn.Module, source: Any, index: Tensor, batch_size: int, report: Reporter
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, margins, and whether the logits are finite, of the samples at ``index``."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    device, classes = _device(model), len(source.classes)
    for ids in index.split(batch_size):
        images = source.images(ids)
        check_images(images, ids, getattr(source, "name", "data"))
        logits = _logits(model, images.to(device), classes).cpu()
        parts.append((logits.argmax(dim=1), _margin(logits, source.labels[ids]), logits.isfinite().all(dim=1)))
        report.advance(len(ids))
    prediction, margins, finite = (torch.cat(part) for part in zip(*parts, strict=True))
    return prediction, margins, finite


def _attack(
    model: nn.Module, source: Any, attack: Attack, ids: Tensor, batch_size: int, report: Reporter, itself: bool = False
) -> tuple[Tensor, dict]:
    """Whether each sample of ``ids`` was broken, bool, and the statistics that :class:`Robustness` keeps.

    itself: attack the model itself, in its own precision.
    """
    device, classes, eps = _device(model), len(source.classes), float(attack.threat.eps)
    broken, claimed, margins, farthest, zero, nonfinite = [], [], [], 0.0, 0, 0
    if itself:
        attack = attack.replace(autocast=None)
    if eps == 0:  # nothing to search, and rounding in another batch must not look like an attack
        attack = PGD(attack.threat, steps=0)
    # A copy made for attacks rounds differently, so only the example that is returned counts, and the model itself
    # decides on it; the same where low precision may take something for a success. Else every iterate counts, also one
    # that keep="last" moved on from.
    returned_counts = not isinstance(attack, PGD) or attack.keep == "best" or attack.stop is not None
    attacked = attack_copy(model, autocast=attack.autocast) if returned_counts and not itself else model
    every_iterate_counts = attacked is model and attack.autocast is None and eps > 0
    held: deque[tuple[Tensor, Tensor]] = deque()

    def read(batch: Tensor) -> Tensor:  # in a thread of its own
        images = source.images(batch)
        return images.pin_memory() if device.type == "cuda" else images

    chunks = ids.split(batch_size) if len(ids) else ()

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch, images in zip(chunks, reading, strict=True):
            x, y = images.to(device, non_blocking=True), source.labels[batch].to(device)
            held.append((x, y))
            yield x, y, batch.to(device)

    with contextlib.closing(read_ahead(read, chunks)) as reading:
        for result in attack.over(attacked, batches()):
            x, y = held.popleft()
            logits = _logits(model, result.x_adv, classes)
            hit = logits.argmax(dim=1) != y
            if every_iterate_counts and result.first_success is not None:
                hit |= result.success | (result.first_success >= 0)
            if eps == 0:
                hit = torch.zeros_like(hit)
            farthest = max(farthest, _distance(attack, result.x_adv, x))
            if math.isfinite(eps) and farthest > eps * (1 + 1e-5) + 1e-6:
                raise RuntimeError(f"the attack left its ball: an example is {farthest:.8g} away, eps is {eps:.8g}")
            broken.append(hit.cpu())
            claimed.append(torch.zeros_like(broken[-1]) if result.success is None else result.success.cpu())
            margins.append(_margin(logits, y).cpu())
            zero += int((result.zero_grad_steps > 0).sum())
            nonfinite += int((result.nonfinite_grad_steps > 0).sum())
            report.advance(len(x))
    broken = torch.cat(broken) if broken else torch.zeros(0, dtype=torch.bool, device="cpu")
    # What only the copy or low precision took for a success was left there, or preferred to a real one: such samples
    # would count as robust for an attack that never saw the model. They are attacked once more, on the model itself.
    doubtful = (torch.cat(claimed) & ~broken).nonzero()[:, 0] if claimed and eps > 0 and not itself else ids[:0]
    if len(doubtful):
        again, more = _attack(model, source, attack, ids[doubtful], batch_size, Reporter(None, "", 0), itself=True)
        broken[doubtful] = again
        farthest, zero = max(farthest, more["largest_distance"]), zero + more["zero_gradient"]
        nonfinite += more["nonfinite_gradient"]
    statistics = {
        "margin": _mean(torch.cat(margins)) if margins else None,
        "zero_gradient": zero,
        "nonfinite_gradient": nonfinite,
        "largest_distance": farthest,
    }
    return broken, statistics


def _distance(attack: Attack, x_adv: Tensor, x: Tensor) -> float:
    """The largest distance, in float64 and by torch alone: the attack's own word is not taken for it."""
    difference = (x_adv.double() - x.double()).flatten(1)
    order = 2 if attack.threat.norm == "l2" else math.inf
    return float(torch.linalg.vector_norm(difference, order, dim=1).max())


def _inside(smaller: Attack, larger: Attack) -> bool:
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
