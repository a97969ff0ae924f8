"""Robust accuracy at all radii at once: a search for the nearest adversarial example of each sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from advfeat import forward
from advfeat._arguments import whole_number
from advfeat.attacks import DDN, FAB, FMN, Attack, AttackResult, Auto, RadiusSearch
from advfeat.datasets.base import read_images
from advfeat.datasets.loader import batch_size_for
from advfeat.datasets.protocol import Data, LabelledImages
from advfeat.datasets.torch_dataset import as_source, some_of
from advfeat.evaluation.curve import RobustnessCurve, checked_radii
from advfeat.evaluation.measure import evaluate
from advfeat.evaluation.under_attack import Judged
from advfeat.forward import predicted_classes, unwrapped
from advfeat.models import attack_copy, averaged
from advfeat.progress import Reporter
from advfeat.threat import L2, NORMS, Threat, check_norm

_BATCH = 500  # default batch size
# By how much an example that the model itself does not misclassify is moved away from its image: the nearest examples
# lie on the decision boundary, where the rounding of another batch or of an attack copy can decide.
_FARTHER = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def curve_attack(
    norm: str = "l2",
    *,
    dim: int,
    steps: int = 30,
    rounds: int = 6,
    seed: int = 0,
    autocast: torch.dtype | None = None,
) -> RadiusSearch:
    """Return the attack that :func:`robustness_curve` takes by default.

    DDN (for L2) or FMN of 100 steps, then at most ``rounds`` runs of :class:`advfeat.Auto`, each at a radius of the
    sample's own, by :class:`advfeat.RadiusSearch`. With Auto-PGD on the margin alone in the place of ``Auto`` the curve
    costs a quarter of the passes and can lie well above (docs/decisions.md).

    Args:
        norm: "l2", "linf" or "l1".
        dim: Number of values of an image; the largest radius is that of the box [0, 1].
        steps: Steps of each run of Auto-PGD within ``Auto``.
        rounds: Number of radii.
        seed: Seed of the random starts of Auto-PGD.
        autocast: ``torch.bfloat16`` to run the model in; the model itself confirms each example.

    Returns:
        The attack.

    Raises:
        ValueError: If the norm is another one.
    """
    check_norm(norm)
    threat = Threat.of(norm, NORMS[norm].holds_the_box(1.0, whole_number("dim", dim)))
    first = (DDN if isinstance(threat, L2) else FMN)(threat, steps=100, autocast=autocast)
    return RadiusSearch(Auto(threat, steps=steps, seed=seed, autocast=autocast), rounds=rounds, first=first)


def robustness_curve(
    model: nn.Module | Callable,
    source: Data,
    attack: Attack | None = None,
    *,
    norm: str = "l2",
    radii: Iterable[float] | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    draws: int = 1,
    same_classes: bool = False,
    progress: Any = None,
) -> RobustnessCurve:
    """Measure robust accuracy at all radii, by a search for the nearest adversarial example of each sample.

    Only correctly classified samples are attacked; the distance of a misclassified one is 0. The attack may use a
    faster copy of the model and low precision; an example counts only if the model itself misclassifies it, and its
    distance is measured again in float64. If the model itself classifies it correctly, because of rounding, it is moved
    up to 1 % farther from the image (unless the model is random, where a second look would be a second chance); if that
    does not help, the sample is attacked again on the model itself.

    Args:
        model: As for :func:`advfeat.evaluation.evaluate`.
        source: As for :func:`advfeat.evaluation.evaluate`.
        attack: An attack that looks for the nearest adversarial example (:class:`advfeat.FMN`, :class:`advfeat.DDN`,
            :class:`advfeat.FAB` with ``minimise``, :class:`advfeat.RadiusSearch`), up to its eps. Any other attack is
            searched over radii, as ``RadiusSearch(attack)``. None takes :func:`curve_attack`.
        norm: Norm for ``attack=None``.
        radii: Radii of the table in pixel scale [0, 1]; None takes the usual ones of the norm.
        batch_size: As for :func:`advfeat.evaluation.evaluate`.
        limit: As for :func:`advfeat.evaluation.evaluate`.
        draws: As for :func:`advfeat.evaluation.evaluate`.
        same_classes: As for :func:`advfeat.evaluation.evaluate`.
        progress: Counts samples, see :class:`advfeat.progress.Reporter`.

    Returns:
        The curve.

    Raises:
        ValueError: If the attack is targeted or has a radius per sample, a radius is negative, or as for
            :func:`advfeat.evaluation.evaluate`.
        TypeError: If an argument has the wrong type.

    Example:
        curve = robustness_curve(model, datasets.load("digits", "test"), norm="linf")
        curve.at(8 / 255), curve.median
        curve.draw("curve.png")
    """
    check_norm(norm)
    _check_attack(attack)
    wanted = NORMS[norm if attack is None else attack.threat.norm].usual_radii if radii is None else radii
    table = checked_radii(wanted)
    limit = None if limit is None else whole_number("limit", limit)
    batch_size = batch_size_for(source, batch_size, _BATCH)
    given, positions = some_of(source, limit)
    clean = evaluate(model, given, batch_size=batch_size, limit=limit, draws=draws, same_classes=same_classes)
    model = unwrapped(model)
    images = as_source(given, model)
    if attack is None:
        attack = curve_attack(norm, dim=math.prod(images.image_shape))
    elif not _finds_the_nearest(attack):
        attack = RadiusSearch(attack)
    rows = clean.correct.nonzero()[:, 0]
    report = Reporter(progress, "curve", len(clean.index))
    report.advance(len(clean.index) - len(rows))
    judged = Judged(averaged(model, draws), len(images.classes), clean.deterministic)
    found = _Nearest(judged, attack)
    distances = torch.zeros(len(clean.index), dtype=torch.float64, device="cpu")
    distances[rows] = found.of(images, clean.index[rows], batch_size, report)
    curve = RobustnessCurve(
        data=clean.data,
        norm=attack.threat.norm,
        eps=float(attack.threat.eps),
        distances=distances,
        radii=table,
        attack=attack.to_dict(),
        moved=found.moved,
        unconfirmed=found.unconfirmed,
        zero_gradient=found.zero,
        nonfinite_gradient=found.nonfinite,
        attacked=len(rows),
        forward_passes=found.forwarded,
        backward_passes=found.backwarded,
        note=clean.note,
        model_fingerprint=clean.model_fingerprint,
        data_fingerprint=clean.data_fingerprint,
        index=clean.index if positions is None else positions[clean.index],
        labels=clean.labels,
        prediction=clean.prediction,
    )
    if curve.unattacked:
        warnings.warn(curve.unattacked, RuntimeWarning, stacklevel=2)
    return curve


def _check_attack(attack: Any) -> None:
    if attack is None:
        return
    if not isinstance(attack, Attack):
        raise TypeError(f"attack should be an attack, such as advfeat.FMN(...), or None, got {type(attack).__name__}")
    if attack.targeted:
        raise ValueError("attack should not be targeted: robust accuracy needs attacks away from the label")
    if isinstance(attack.threat.eps, Tensor):
        raise ValueError("attack should have one radius for all samples, got a tensor of eps")


def _finds_the_nearest(attack: Attack) -> bool:
    return isinstance(attack, (DDN, FMN, RadiusSearch)) or (isinstance(attack, FAB) and attack.minimise)


class _Nearest:
    """The confirmed smallest distances of samples, and the counts of the search for them."""

    def __init__(self, judged: Judged, attack: Attack) -> None:
        self.judged, self.attack = judged, attack
        self.moved = self.unconfirmed = self.zero = self.nonfinite = self.forwarded = self.backwarded = 0

    def of(self, source: LabelledImages, ids: Tensor, batch_size: int, report: Reporter) -> Tensor:
        """The distances of the samples at ``ids``, float64 on the CPU, inf for none."""
        model = self.judged.model
        device, dtype = forward.device_of(model), forward.image_dtype(model)
        attacked = attack_copy(model, autocast=self.attack.autocast)

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for batch in ids.split(batch_size) if len(ids) else ():
                x = read_images(source, batch).to(device, dtype)
                yield x, source.labels[batch].to(device), batch.to(device)

        found = []
        for (x, y, batch), result in self.attack.over(attacked, batches()):
            distances = self._confirmed(x, y, result)
            self._count(result)
            self.zero += int((result.zero_grad_steps > 0).sum())
            self.nonfinite += int((result.nonfinite_grad_steps > 0).sum())
            assert result.success is not None
            doubtful = (result.success & (distances == math.inf)).nonzero()[:, 0]
            if len(doubtful) and (attacked is not model or self.attack.autocast is not None):
                itself, (x, y, batch) = self.attack.replace(autocast=None), (t[doubtful] for t in (x, y, batch))
                result = itself.run(model, x, y, sample_ids=batch)
                distances[doubtful] = self._confirmed(x, y, result)
                self._count(result)
                assert result.success is not None
                doubtful = doubtful[result.success & (distances[doubtful] == math.inf)]
            self.unconfirmed += len(doubtful)
            found.append(distances.cpu())
            report.advance(len(distances))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device="cpu")

    def _count(self, result: AttackResult) -> None:
        self.forwarded += result.samples_forwarded
        self.backwarded += result.samples_backwarded

    def _confirmed(self, x: Tensor, y: Tensor, result: AttackResult) -> Tensor:
        """The distance of each example that the model itself misclassifies, perhaps moved; inf for the others."""
        threat = self.attack.threat
        distances = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        assert result.success is not None
        rows = result.success.nonzero()[:, 0]
        # Another look at a random model would be another chance.
        for farther in _FARTHER if self.judged.deterministic else _FARTHER[:1]:
            if not len(rows):
                break
            x_adv, images = result.x_adv[rows], x[rows]
            if farther:
                x_adv = threat.into_box_(images + (x_adv - images) * (1 + farther))
            away = torch.linalg.vector_norm((x_adv.double() - images.double()).flatten(1), threat.order, dim=1)
            wrong = (predicted_classes(self.judged.logits(x_adv)) != y[rows]) & (away > 0)
            distances[rows[wrong]] = away[wrong]
            self.moved += int(wrong.sum()) if farther else 0
            rows = rows[~wrong]
        return distances
