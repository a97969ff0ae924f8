"""The costlier checks of a verdict: attacks of another kind and probes of the gradient, on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advfeat import forward
from advfeat._checks import evenly_spaced
from advfeat.attacks import PGD, Attack, Auto, Ensemble, Square
from advfeat.datasets.base import read_images
from advfeat.datasets.protocol import LabelledImages
from advfeat.evaluation import probes
from advfeat.evaluation.probes import Way
from advfeat.evaluation.under_attack import Judged
from advfeat.evaluation.verdict import BPDA, STRONG, Finding, more_than_chance
from advfeat.threat import L1, L2, Linf, Threat

# At most so many samples per check. A fault of a model shows on most of its samples; what shows on fewer than two of 64
# moves an accuracy by less than its interval is wide.
SAMPLES = 64
QUERIES = 400
# Another seed than any user's, so that the second opinion does not repeat the first.
_OTHER_SEED = 1_000_003
# The thresholds below lie between the honest and the masked models of docs/verdict.md.
# Gradients along the way miss at most 0.3 % of the change of an honest model, 60 to 100 % of that of one that rounds or
# jumps, and 35 % at most where advfeat.bpda repairs it.
_MISSED = 0.5
# What is left of a piece's change in 1/4096 of it: at most 0.0003 for honest models, at least 0.08 (the median over the
# samples) where activations jump.
_JUMP = 0.02
# The gradient at the images, relative to the steepest place between two of them.
_FLAT = 1e-2
# Of samples whose cross-entropy has no gradient: one in twenty is within the interval of a hundred samples.
_SATURATED = 0.05


@dataclass(frozen=True)
class Diagnosis:
    """What the costlier checks found.

    Attributes:
        findings: The findings.
        checks: Names of the checks that were made.
        forward_passes: Samples passed forward through the model.
        backward_passes: Samples passed backward through the model.
    """

    findings: tuple[Finding, ...] = ()
    checks: tuple[str, ...] = ()
    forward_passes: int = 0
    backward_passes: int = 0


def diagnose(
    judged: Judged,
    source: LabelledImages,
    named: Sequence[tuple[str, Attack]],
    index: Tensor,
    correct: Tensor,
    robust: dict[str, Tensor],
    *,
    probe: bool = True,
    continuous: bool = True,
    transfer: Callable | None = None,
) -> Diagnosis:
    """Look for masked gradients, on at most 64 samples per check.

    Costs at most 64 x 600 forward and 64 x 900 gradient passes for each norm among the attacks, as much as the strong
    attack on a hundred robust samples, and that norm's attack once more on 64 samples.

    Args:
        judged: The model.
        source: The data set.
        named: The attacks of the evaluation, with their names.
        index: int64 [n], positions of the evaluated samples in the data set.
        correct: bool [n].
        robust: bool [n] for each attack, by name.
        probe: Make all checks; False for that of ``transfer`` alone.
        continuous: Probe the gradient between images; False for a model that is random or depends on the batch, whose
            logits jump for that reason.
        transfer: Another model for the same data, whose adversarial examples are tried.

    Returns:
        The findings.
    """
    clinic = _Clinic(judged, source, index)
    gradients = True
    if probe and bool(correct.any()):
        x, _, _ = clinic.samples(correct)
        gradients = probes.differentiable(judged.model, x)
        clinic.spend(1, 1)
        clinic.add(["no-gradient"], None if gradients else not_differentiable(len(x)))
    for name, attack in _chosen(named, robust):
        threat = attack.threat
        x, y, rows = clinic.samples(robust[name])
        if probe:
            other = _of_another_seed(attack) if judged.deterministic else None  # draws of a model differ anyway
            if other is not None:
                clinic.add(["seeds"], over_seeds(name, *clinic.broken_or_not(other, correct, robust[name])))
            if gradients:
                right = clinic.second_opinion(threat, x, y)
                clinic.add(["not-converged"], not_converged(name, int((~right).sum()), len(x), rows))
                # On what gradients leave, the checks below show a masked gradient and not an attack that was weak.
                x, y, rows = x[right], y[right], int(right.sum())
            if isinstance(threat, (Linf, L2, L1)) and x.dim() == 4:
                clinic.add(["black-box"], black_box(name, *clinic.square(threat, x, y)))
        if transfer is not None:
            clinic.add(["transfer"], transferred(name, *clinic.transfer(transfer, threat, x, y), rows))
    if probe and bool(correct.any()):
        x, y, _ = clinic.samples(correct)
        if gradients:
            left, passes = probes.left_in_the_whole_box(judged.model, x, y)
            clinic.spend(passes, passes)
            clinic.add(["whole-box"], whole_box(int(left.sum()), len(x)))
        logits = judged.logits(x)
        clinic.spend(len(x), 0)
        underflows = int(probes.cross_entropy_underflows(logits, y).sum())
        clinic.add(["saturated"], saturated_cross_entropy(underflows, len(x)))
        first, second = probes.partners(y)
        if continuous and gradients and len(first):
            way = probes.measure_way(judged.model, x[first], y[first], x[second], y[second])
            clinic.spend(way.forwarded, way.backwarded)
            clinic.add(["quantised", "discontinuous", "wrong-gradient"], gradient_on_the_way(way), flat_ends(way))
    return Diagnosis(tuple(clinic.findings), tuple(clinic.checks), *clinic.passes)


def not_differentiable(of: int) -> Finding:
    """The finding for logits without a gradient.

    Args:
        of: Samples that it concerns.

    Returns:
        The finding.
    """
    seen = "the logits have no gradient with respect to the images: part of the model leaves torch, or detaches"
    advice = (
        f"give that part another gradient, {BPDA}; attacks without gradients, as advfeat.Square, break fewer samples"
    )
    return Finding("no-gradient", "fault", None, of, of, seen, advice)


def black_box(attack: str, broken: int, of: int) -> Finding | None:
    """Judge what Square broke of the samples that an attack and longer Auto-PGD left.

    Args:
        attack: Name of the attack.
        broken: Samples that Square broke.
        of: Samples that it attacked.

    Returns:
        The finding; None if Square broke none.
    """
    seen = f"Square, which takes no gradients, broke {broken} of {of} samples that gradients left, in {QUERIES} queries"
    advice = (
        f"do not trust the gradients: give the offending part another one, {BPDA}, and attack with advfeat.AutoAttack"
    )
    return _broken("black-box", attack, broken, of, seen, advice)


def not_converged(attack: str, broken: int, of: int, standing: int) -> Finding | None:
    """Judge what a longer attack of another seed broke of the samples that an attack left.

    Args:
        attack: Name of the attack.
        broken: Samples that the longer attack broke.
        of: Samples that it attacked.
        standing: Samples that the attack left.

    Returns:
        The finding; None if it broke none.
    """
    seen = (
        f"200 steps of Auto-PGD with another seed, on the margin and towards three classes, broke {broken} of {of} "
        f"samples that were left standing{_of_all(of, standing)}"
    )
    return _broken("not-converged", attack, broken, of, seen, f"take more steps and restarts, or {STRONG}")


def over_seeds(attack: str, broke: int, kept: int, of: int) -> Finding | None:
    """Judge what the same attack with another seed does.

    Args:
        attack: Name of the attack.
        broke: Samples that the other seed broke and this one did not.
        kept: Samples that this seed broke and the other did not.
        of: Samples that both attacked.

    Returns:
        The finding; None if the two differ by no more than two runs of a good attack do.
    """
    if not more_than_chance(max(broke, kept), of):
        return None
    seen = (
        f"of {of} samples, another seed of the same attack breaks {broke} that this one left, and leaves {kept} that "
        "this one broke"
    )
    advice = f"take more restarts and report the range over seeds, or {STRONG}"
    return Finding("seeds", "fault", attack, max(broke, kept), of, seen, advice)


def transferred(attack: str, broken: int, of: int, standing: int) -> Finding | None:
    """Judge what the examples of another model broke of the samples that an attack left.

    Args:
        attack: Name of the attack.
        broken: Samples that the other model's examples broke.
        of: Samples that it attacked.
        standing: Samples that the attack left.

    Returns:
        The finding; None if they broke none.
    """
    seen = (
        f"adversarial examples of the transfer model broke {broken} of {of} samples that were left standing"
        f"{_of_all(of, standing)}"
    )
    advice = f"give the part that hides its gradient another one, {BPDA}"
    return _broken("transfer", attack, broken, of, seen, advice)


def whole_box(left: int, of: int) -> Finding | None:
    """Judge what PGD left where every image is allowed.

    Args:
        left: Samples that are still classified correctly.
        of: Samples that were attacked.

    Returns:
        The finding; None if no more are left than by chance.
    """
    if not more_than_chance(left, of) and left < of:
        return None
    seen = (
        f"{left} of {of} samples survive PGD that may turn them into any other image, where every classifier can be "
        "fooled: the gradients do not lead there"
    )
    advice = f"give the part that hides its gradient another one, {BPDA}, and compare with advfeat.Square"
    return Finding("whole-box", "fault", None, left, of, seen, advice)


def saturated_cross_entropy(underflows: int, of: int) -> Finding | None:
    """Judge on how many samples the cross-entropy has no gradient.

    Args:
        underflows: Their number.
        of: Samples that were looked at.

    Returns:
        The finding, a note; None if there are few.
    """
    if underflows <= _SATURATED * of:
        return None
    seen = (
        f"the gradient of the cross-entropy is exactly zero on {underflows} of {of} samples, whose logits are more "
        "than 100 apart: attacks on the cross-entropy do nothing there"
    )
    advice = (
        "take an objective that does not depend on the scale of the logits, as attacks here do by default; divide the "
        "logits by a constant for other libraries"
    )
    return Finding("saturated", "note", None, underflows, of, seen, advice)


def flat_ends(way: Way) -> Finding | None:
    """Judge whether the outputs saturate at the images.

    Args:
        way: The measurement between images.

    Returns:
        The finding, a note; None if the gradients at the images are like those between them, or there are none.
    """
    moving = way.zero < 1
    flat, of = int((moving & (way.at_ends < _FLAT)).sum()), len(way.change)
    if 2 * flat <= of:
        return None
    seen = (
        f"gradients at {flat} of {of} images are less than {_FLAT:.0%} of the largest on the way to another image: the "
        "outputs saturate"
    )
    advice = "attack the logits before the saturating function (softmax, sigmoid, tanh), which rank the classes alike"
    return Finding("saturated", "note", None, flat, of, seen, advice)


def gradient_on_the_way(way: Way) -> Finding | None:
    """Judge whether gradients account for the change between two images, and whether the model jumps.

    Args:
        way: The measurement.

    Returns:
        A fault if the gradients miss most of the change; a note if the model jumps and the gradients are those of a
        good approximation; otherwise None.
    """
    of = len(way.change)
    jumps = int((way.jump > _JUMP).sum())
    jumpy = 2 * jumps > of
    if way.missed > _MISSED:
        zero = int((way.zero > 0.5).sum())
        seen = f"between two images the gradients account for {1 - min(way.missed, 1):.0%} of the change of the logits"
        advice = f"give the part that does it another gradient, {BPDA}, and attack again"
        if 2 * zero > of:
            seen += f", and are exactly zero on most of it for {zero} of {of} pairs: something is rounded or saturates"
            return Finding("quantised", "fault", None, zero, of, seen, advice)
        if jumpy:
            seen += f", and the model jumps between {jumps} of {of} pairs: an attack does not see the jumps"
            return Finding("discontinuous", "fault", None, jumps, of, seen, advice)
        seen += ", though the model does not jump: the gradient is that of another function"
        return Finding("wrong-gradient", "fault", None, of, of, seen, "correct the backward pass of the model")
    if jumpy:
        seen = (
            f"the model jumps between {jumps} of {of} pairs of images, and its gradients, which account for "
            f"{1 - way.missed:.0%} of the change, are those of an approximation"
        )
        return Finding(
            "discontinuous", "note", None, jumps, of, seen, "try other approximations; the lowest number counts"
        )
    return None


class _Clinic:
    """The samples, attacks and costs of one diagnosis."""

    def __init__(self, judged: Judged, source: LabelledImages, index: Tensor) -> None:
        self.judged, self.source, self.index = judged, source, index
        self.findings: list[Finding] = []
        self.checks: list[str] = []
        self.passes = [0, 0]
        self.looks = 1 if judged.deterministic else 3

    def add(self, checks: Sequence[str], *found: Finding | None) -> None:
        self.checks += [check for check in checks if check not in self.checks]
        self.findings += [finding for finding in found if finding is not None]

    def spend(self, forwarded: int, backwarded: int) -> None:
        self.passes[0] += forwarded
        self.passes[1] += backwarded

    def samples(self, which: Tensor) -> tuple[Tensor, Tensor, int]:
        """At most 64 images and labels of those selected, and the number of those selected."""
        rows = which.nonzero()[:, 0]
        few = self.index[rows[evenly_spaced(len(rows), SAMPLES)]]
        model = self.judged.model
        x = read_images(self.source, few).to(forward.device_of(model), forward.image_dtype(model))
        return x, self.source.labels[few].to(x.device), len(rows)

    def broken_or_not(self, attack: Attack, correct: Tensor, robust: Tensor) -> tuple[int, int, int]:
        """The number of samples that only ``attack`` breaks, that of those that only it leaves, and that of all."""
        rows = correct.nonzero()[:, 0]
        left = robust[rows[evenly_spaced(len(rows), SAMPLES)]]
        x, y, _ = self.samples(correct)
        now = self._left(attack, self.judged.model, x, y).cpu()
        return int((left & ~now).sum()), int((~left & now).sum()), len(x)

    def second_opinion(self, threat: Threat, x: Tensor, y: Tensor) -> Tensor:
        """Whether each sample is still classified correctly, bool [n]."""
        attack = Auto(threat, steps=200, target_classes=3, seed=_OTHER_SEED)
        return self._left(attack, self.judged.model, x, y)

    def square(self, threat: Threat, x: Tensor, y: Tensor) -> tuple[int, int]:
        # The windows shrink as they do in the first 400 of AutoAttack's queries if the schedule is not rescaled, and
        # never get small.
        attack = Square(threat, steps=QUERIES, rescale_schedule=True, seed=_OTHER_SEED)
        return int((~self._left(attack, self.judged.model, x, y)).sum()), len(x)

    def transfer(self, other: Callable, threat: Threat, x: Tensor, y: Tensor) -> tuple[int, int]:
        attack = PGD(threat, steps=40, step_size=2 * float(threat.eps), schedule="cosine", keep="best")
        return int((~self._left(attack, other, x, y)).sum()), len(x)

    def _left(self, attack: Attack, model: Any, x: Tensor, y: Tensor) -> Tensor:
        """Whether the model under evaluation is right about each example, bool [n], for examples of ``model``."""
        result = attack.run(model, x, y)
        right = probes.still_correct(self.judged.logits, result.x_adv, y, self.looks)
        if model is self.judged.model:
            self.spend(result.samples_forwarded, result.samples_backwarded)
        self.spend(self.looks * len(x), 0)
        return right


def _chosen(named: Sequence[tuple[str, Attack]], robust: dict[str, Tensor]) -> list[tuple[str, Attack]]:
    """For each norm the attack of the largest radius that left a sample: there a masked gradient hides the most."""
    found: dict[str, tuple[str, Attack]] = {}
    for name, attack in sorted(named, key=lambda pair: float(pair[1].threat.eps)):
        if 0 < float(attack.threat.eps) < torch.inf and bool(robust[name].any()):
            found[attack.threat.norm] = (name, attack)
    return list(found.values())


def _of_another_seed(attack: Attack) -> Attack | None:
    """The attack with another seed, None if it draws no random numbers."""
    if isinstance(attack, Ensemble):
        parts = [_of_another_seed(part) for part in attack.attacks]
        if all(part is None for part in parts):
            return None
        found = (part if part is not None else same for part, same in zip(parts, attack.attacks, strict=True))
        return Ensemble(tuple(found))
    if not hasattr(attack, "seed") or not getattr(attack, "random_start", True):
        return None
    return attack.replace(seed=_OTHER_SEED)


def _of_all(of: int, standing: int) -> str:
    return "" if of == standing else f" ({standing} in all)"


def _broken(name: str, attack: str, broken: int, of: int, seen: str, advice: str) -> Finding | None:
    if not broken:
        return None
    if more_than_chance(broken, of):
        return Finding(name, "fault", attack, broken, of, seen, advice)
    return Finding(name, "note", attack, broken, of, seen, "so few are usual; advfeat.AutoAttack would count them")
