"""Measurements that show a masked gradient: between two images, of logits, at a radius that allows every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from advfeat.attacks import PGD
from advfeat.attacks.no_trace import no_trace
from advfeat.forward import class_logits, class_margins, logits_of, taken_by
from advfeat.objectives import Margin
from advfeat.threat import Linf

# Places on the way between two images, and halvings of the piece that changes most: at 32 places the sum of an honest
# model's gradients misses 0.3 % of the change at most, and twelve halvings leave 1/4096 of a piece.
PLACES, HALVINGS = 32, 12


@dataclass(frozen=True)
class Way:
    """What a model does on the straight way from one image to another, of another class.

    The quantity is the difference of the two classes' logits, which has to change on the way.

    Attributes:
        change: [n], how much it changes in all.
        explained: [n], the change that the gradients at 32 places add up to; equal to ``change``, up to the error of
            the sum, if the gradient is the derivative of a continuous function.
        zero: [n], the share of places at which the gradient is exactly zero.
        jump: [n], the share of the change within the piece that changes most which is left in 1/4096 of it: 1/4096 for
            a smooth function, of the order of 1 for a jump.
        at_ends: [n], the gradient's norm at the less steep of the two ends, as a share of the largest on the way.
        forwarded: Samples passed forward.
        backwarded: Samples passed backward.
    """

    change: Tensor
    explained: Tensor
    zero: Tensor
    jump: Tensor
    at_ends: Tensor
    forwarded: int
    backwarded: int

    @property
    def missed(self) -> float:
        """The share of all change that the gradients do not account for; 0 where nothing changes."""
        total = float(self.change.abs().sum())
        return float((self.change - self.explained).abs().sum()) / total if total > 0 else 0.0


def partners(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pair each sample with the next one of another class.

    Args:
        labels: int64 [n].

    Returns:
        int64 [m] and [m]: the samples that have a partner, and their partners; none if there is a single class.
    """
    n, rows = len(labels), torch.arange(len(labels), device=labels.device)
    after = (rows[:, None] + torch.arange(1, max(n, 2), device=labels.device)) % max(n, 1)
    other = labels[after] != labels[:, None]
    first = other.int().argmax(dim=1, keepdim=True)
    found = other.any(dim=1)
    return rows[found], after.gather(1, first)[found, 0]


def measure_way(model: Callable, x: Tensor, y: Tensor, x_other: Tensor, y_other: Tensor) -> Way:
    """Measure the difference of two logits, and its gradient, on the way between pairs of images.

    Args:
        model: The model.
        x: Images [n, C, H, W] in [0, 1].
        y: Their labels, int64 [n].
        x_other: The images at the other ends.
        y_other: Their labels, which differ.

    Returns:
        The measurement.
    """
    towards, n = x_other - x, len(x)
    explained, zero = torch.zeros(n, device=x.device), torch.zeros(n, device=x.device)
    lengths = []
    with no_trace(model, x.device):

        def difference(at: Tensor) -> Tensor:
            logits = class_logits(logits_of(taken_by(model, at)))
            logits = logits if logits.dtype == torch.float64 else logits.float()
            return (logits.gather(1, y[:, None]) - logits.gather(1, y_other[:, None]))[:, 0]

        def value(share: Tensor) -> Tensor:
            with torch.no_grad():
                return difference(x + share.view(-1, *[1] * (x.dim() - 1)) * towards)

        for share in _middles():
            grad = _gradient(difference, x + share * towards)
            explained += (grad * towards).flatten(1).sum(dim=1) / PLACES
            length = grad.flatten(1).abs().amax(dim=1)
            zero += (length == 0) / PLACES
            lengths.append(length)
        values = torch.stack([value(torch.full((n,), k / PLACES, device=x.device)) for k in range(PLACES + 1)])
        change = values[-1] - values[0]
        piece = (values[1:] - values[:-1]).abs().argmax(dim=0)
        low, high = piece / PLACES, (piece + 1) / PLACES
        at_low, at_high = values.gather(0, piece[None])[0], values.gather(0, piece[None] + 1)[0]
        whole = (at_high - at_low).abs()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            at_middle = value(middle)
            left = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
            low, at_low = torch.where(left, low, middle), torch.where(left, at_low, at_middle)
            high, at_high = torch.where(left, middle, high), torch.where(left, at_middle, at_high)
    steepness = torch.stack(lengths)
    steepest = steepness.amax(dim=0)
    at_ends = torch.minimum(steepness[0], steepness[-1]) / steepest.where(steepest > 0, torch.ones_like(steepest))
    jump = (at_high - at_low).abs() / whole.where(whole > 0, torch.ones_like(whole))
    forwarded = n * (2 * PLACES + 1 + HALVINGS)
    found = [part.detach().float().cpu() for part in (change, explained, zero, jump, at_ends)]
    return Way(found[0], found[1], found[2], found[3], found[4], forwarded=forwarded, backwarded=n * PLACES)


def _middles() -> list[float]:
    return [(k + 0.5) / PLACES for k in range(PLACES)]


def differentiable(model: Callable, x: Tensor) -> bool:
    """Whether logits have a gradient with respect to the images, if only a zero one.

    Args:
        model: The model.
        x: Images [n, C, H, W], of which the first is looked at.

    Returns:
        False for a model that leaves torch, or computes without gradients.
    """
    with no_trace(model, x.device):
        at = x[:1].detach().clone().requires_grad_()
        logits = logits_of(taken_by(model, at))
        return logits.requires_grad and torch.autograd.grad(logits.sum(), at, allow_unused=True)[0] is not None


def _gradient(of: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient at ``at``; zero where a model has none at all, as one that leaves torch has."""
    at = at.detach().requires_grad_()
    value = of(at)
    found = torch.autograd.grad(value.sum(), at, allow_unused=True)[0] if value.requires_grad else None
    return torch.zeros_like(at) if found is None else found.detach()


def cross_entropy_underflows(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the gradient of the cross-entropy is exactly zero in float32, for each sample.

    That is where the softmax of every other class underflows, at a margin of about 103. The first attack of AutoAttack
    then has nothing to follow; the margin that this package ascends by default does not mind.

    Args:
        logits: [n, classes].
        labels: int64 [n].

    Returns:
        bool [n].
    """
    others = logits.float().softmax(dim=1).scatter(1, labels[:, None], 0.0)
    return others.sum(dim=1) == 0


def left_in_the_whole_box(model: Callable, x: Tensor, y: Tensor, steps: int = 50) -> tuple[Tensor, int]:
    """Attack with every image of [0, 1] allowed, where any classifier has to fail.

    PGD starts at the image itself: a random image is noise, which fools a masked model as well. Its steps are those of
    L-inf, whatever the norm of the evaluation, since the set is the same; steps of L1 left 8 of 197 images of an honest
    network of digits, those of L-inf and L2 none.

    Args:
        model: The model.
        x: Images [n, C, H, W] in [0, 1].
        y: Their labels, int64 [n].
        steps: Gradient steps.

    Returns:
        bool [n], whether each sample is still classified correctly; and the number of gradient passes.
    """
    attack = PGD(
        Linf(1.0), steps=steps, step_size=2.0, schedule="cosine", keep="best", objective=Margin(), stop="success"
    )
    result = attack.run(model, x, y)
    return ~cast("Tensor", result.success), result.samples_backwarded


def still_correct(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, looks: int = 1) -> Tensor:
    """Whether the model itself is right about images.

    Args:
        logits: The model's logits.
        x: Images [n, C, H, W].
        y: Their labels, int64 [n].
        looks: Number of passes; a random model has to be wrong in each of them, since one draw may be wrong by chance.

    Returns:
        bool [n].
    """
    right = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(looks):
        right |= class_margins(logits(x), y) > 0
    return right
