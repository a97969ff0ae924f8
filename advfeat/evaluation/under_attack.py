"""Which samples an attack breaks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat import forward
from advfeat._read_ahead import read_ahead
from advfeat._stopwatch import Stopwatch
from advfeat.attacks import APGD, PGD, Attack, AttackResult, Square
from advfeat.datasets.base import read_images
from advfeat.datasets.protocol import LabelledImages
from advfeat.evaluation import resumable
from advfeat.evaluation.breakdown import Tally
from advfeat.evaluation.resumable import Samples
from advfeat.evaluation.state import State
from advfeat.forward import class_margins, predicted_classes
from advfeat.models import attack_copy
from advfeat.progress import Reporter


@dataclass(frozen=True)
class Judged:
    """A model under evaluation.

    Attributes:
        model: The model, or its average over several passes.
        classes: Number of classes.
        deterministic: Whether two passes give the same logits.
    """

    model: Callable
    classes: int
    deterministic: bool

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images.

        Args:
            x: Images [B, C, H, W] in [0, 1].
        """
        return forward.logits(self.model, x, self.classes)


def attacked_samples(
    judged: Judged,
    source: LabelledImages,
    attack: Attack,
    ids: Tensor,
    batch_size: int,
    report: Reporter,
    itself: bool = False,
    state: State | None = None,
    name: str = "",
    keep: bool = False,
) -> tuple[Tally, dict]:
    """Attack samples of a data set and decide which of them are broken.

    Args:
        judged: The model.
        source: The data set.
        attack: The attack.
        ids: int64 [n], positions of the samples in the data set.
        batch_size: Images per batch.
        report: Progress; counts samples.
        itself: Attack the model itself, in its own precision, instead of a faster copy.
        state: Where to keep what is found; None for nowhere.
        name: Name of the attack in the state.
        keep: Keep the examples.

    Returns:
        Which attack broke each sample, and the statistics that :class:`Robustness` keeps.

    Raises:
        RuntimeError: If an example lies outside the ball.
    """
    model, eps = judged.model, float(attack.threat.eps)
    device, dtype = forward.device_of(model), forward.image_dtype(model)
    tally, done, watch, timed = Tally(attack, len(ids), keep), 0, Stopwatch(device), 0.0
    claimed: list[Tensor] = []
    margins: list[Tensor] = []
    blind: list[Tensor] = []
    late: list[Tensor] = []
    last_steps = _last_tenth(attack)
    farthest, zero, nonfinite = 0.0, 0, 0
    forwarded = backwarded = 0
    if itself:
        attack = attack.replace(autocast=None)
    if eps == 0:  # nothing to search, and rounding differences between batches must not count as success
        attack = PGD(attack.threat, steps=0)
    # The attack copy of a model rounds differently, so only the returned example counts, and the model itself decides;
    # likewise in low precision, which may report a false success. Otherwise every iterate counts, even one that
    # keep="last" left behind.
    returned_counts = not isinstance(attack, PGD) or attack.keep == "best" or attack.stop is not None
    attacked = attack_copy(model, autocast=attack.autocast) if returned_counts and not itself else model
    # For a random model, an iterate that was misclassified once may be a lucky draw.
    every_iterate_counts = attacked is model and attack.autocast is None and eps > 0 and judged.deterministic

    def read(batch: Tensor) -> Tensor:  # runs in a separate thread
        images = read_images(source, batch)
        return images.pin_memory() if device.type == "cuda" else images

    def batches(parts: Sequence[Tensor]) -> Generator[Samples, None, None]:
        with contextlib.closing(read_ahead(read, parts)) as reading:
            for batch, images in zip(parts, reading, strict=True):
                yield images.to(device, dtype, non_blocking=True), source.labels[batch].to(device), batch.to(device)

    def attacked_batches(given: Iterator[Samples]) -> Iterator[tuple[Samples, AttackResult]]:
        if state is None:
            return watch.of(attack.over(attacked, watch.without(given)))
        key = f"{name}, on the model itself" if itself else name
        return resumable.over(attack, attacked, ids, batch_size, batches, state, key, report)

    with contextlib.closing(batches(ids.split(batch_size) if len(ids) else ())) as given:
        for (x, y, _), result in attacked_batches(given):
            logits = judged.logits(result.x_adv)
            hit = predicted_classes(logits) != y
            if every_iterate_counts and result.success is not None and result.first_success is not None:
                hit |= result.success | (result.first_success >= 0)
            if eps == 0:
                hit = torch.zeros_like(hit)
            farthest = max(farthest, float(distances(attack, result.x_adv, x).max()))
            if math.isfinite(eps) and farthest > eps * (1 + 1e-5) + 1e-6:
                raise RuntimeError(f"the attack left its ball: an example is {farthest:.8g} away, eps is {eps:.8g}")
            tally.add(slice(done, done + len(x)), result, hit, watch.seconds - timed)
            done, timed = done + len(x), watch.seconds
            claimed.append(torch.zeros_like(hit.cpu()) if result.success is None else result.success.cpu())
            margins.append(class_margins(logits, y).cpu())
            blind.append(((result.zero_grad_steps > 0) | (result.nonfinite_grad_steps > 0)).cpu())
            if last_steps is not None and result.first_success is not None:
                late.append((hit & (result.first_success > last_steps)).cpu())
            zero += int((result.zero_grad_steps > 0).sum())
            nonfinite += int((result.nonfinite_grad_steps > 0).sum())
            forwarded, backwarded = forwarded + result.samples_forwarded, backwarded + result.samples_backwarded
            if state is None:
                report.advance(len(x))
    broken = tally.broken_by >= 0
    # A false success, seen only by the copy or in low precision, may have stopped the attack or displaced a real
    # success: the sample would count as robust though the model itself was never attacked. Attack these samples again,
    # on the model itself.
    doubtful = (torch.cat(claimed) & ~broken).nonzero()[:, 0] if claimed and eps > 0 and not itself else ids[:0]
    if len(doubtful):
        again, more = attacked_samples(
            judged, source, attack, ids[doubtful], batch_size, Reporter(None, "", 0), True, state, name, keep
        )
        tally.take_over(doubtful, again)
        broken = tally.broken_by >= 0
        farthest, zero = max(farthest, more["largest_distance"]), zero + more["zero_gradient"]
        nonfinite += more["nonfinite_gradient"]
        forwarded, backwarded = forwarded + more["forward_passes"], backwarded + more["backward_passes"]
    statistics = {
        "without_gradient": int((torch.cat(blind) & ~broken).sum()) if blind else 0,
        "unconfirmed": int((~broken[doubtful]).sum()),
        "late": None if last_steps is None else sum(int(part.sum()) for part in late),
        "margin": mean(torch.cat(margins)) if margins else None,
        "zero_gradient": zero,
        "nonfinite_gradient": nonfinite,
        "largest_distance": farthest,
        "forward_passes": forwarded,
        "backward_passes": backwarded,
    }
    return tally, statistics


def _last_tenth(attack: Attack) -> int | None:
    """The step after which the last tenth begins; None for an attack whose successes are not counted by such steps."""
    steps = getattr(attack, "steps", None)
    return steps - max(steps // 10, 1) if isinstance(attack, (PGD, APGD, Square)) and steps else None


def distances(attack: Attack, x_adv: Tensor, x: Tensor) -> Tensor:
    """Return the distances of examples from their images, computed independently of the attack.

    Args:
        attack: The attack, whose norm is taken.
        x_adv: Examples [B, ...].
        x: Images [B, ...].

    Returns:
        float64 [B].
    """
    difference = (x_adv.double() - x.double()).flatten(1)
    return torch.linalg.vector_norm(difference, attack.threat.order, dim=1)


def mean(values: Tensor) -> float | None:
    """Return the mean of values, which may be infinite, or None if it is undefined.

    Args:
        values: Floating point [n].
    """
    mean = float(values.double().mean())
    return None if math.isnan(mean) else mean
