"""What an attack pushes up (untargeted) or down (targeted): one number a sample, larger when further from the target.

An objective is one method, ``value(model, x, target) -> [B]``. It may call the model as it likes; the attack reads the
predictions off the model's last call, so a custom objective costs no second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advfeat.names import function_name


class Objective:
    """Base class; subclass it and write ``value``, or pass any function ``(model, x, target) -> [B]`` to an attack.

    untargeted_only: whether an attack with ``targeted=True`` should refuse it.
    """

    untargeted_only = False

    def value(self, model: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
        """The objective of each sample, [B]. ``model(x)`` gives logits [B, classes]; other attributes are the model's
        own."""
        raise NotImplementedError

    def slope_rule(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """A function from (logits, target) to the value [B] and its gradient by the logits [B, classes], or None.

        For an objective that is a function of ``model(x)`` alone and has a short form of both. It spares the attack the
        backward pass through the objective, which costs more than that of a small model.
        """
        return None

    def labels(self, target: Tensor) -> Tensor | None:
        """The labels [B] in ``target`` that tell whether a prediction is a success; None where it holds none."""
        return target if are_labels(target) else None

    @property
    def name(self) -> str:
        return type(self).__name__


def are_labels(target: Tensor) -> bool:
    """Whether a target is one label a sample."""
    return target.dim() == 1 and not target.is_floating_point() and target.dtype != torch.bool


def wide(values: Tensor) -> Tensor:
    """Half types as float32: the differences of logits are what matters, and they cancel."""
    return values if values.dtype == torch.float64 else values.float()


def _check_labels(target: Tensor) -> None:
    if target.dim() != 1 or target.dtype != torch.int64:
        raise ValueError(f"target should be labels, int64 [B], got {target.dtype} of shape {tuple(target.shape)}")


def _check_pairs(target: Tensor) -> None:
    if target.dim() != 2 or target.shape[1] != 2 or target.dtype != torch.int64:
        raise ValueError(f"target should be pairs (y, t), int64 [B, 2], got {target.dtype} {tuple(target.shape)}")


def _others(logits: Tensor, target: Tensor) -> Tensor:
    """The logits with the target's own put to minus infinity."""
    _check_labels(target)
    if logits.shape[1] < 2:
        raise ValueError(f"the model should give at least 2 logits a sample, got {logits.shape[1]}")
    return logits.scatter(1, target[:, None], float("-inf"))


def _own(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0]


class Margin(Objective):
    """``logsumexp_{j != y} z_j - z_y``: cross-entropy's direction without its saturation.

    The gradient of the cross-entropy is this gradient times ``sigmoid(margin)``, a number per sample that vanishes for
    confident predictions (1e-40 is 0 in float32). A step that normalises the gradient, L2 or sign, sees only the
    direction, so attacks agree with cross-entropy in exact arithmetic and keep their strength whatever the scale of the
    logits.
    """

    def value(self, model, x, target):
        logits = wide(model(x))
        return _others(logits, target).logsumexp(dim=1) - _own(logits, target)

    def slope_rule(self):
        return _margin_and_slope if type(self).value is Margin.value else None


def _margin_and_slope(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    others = _others(logits, target)
    log_share = others.log_softmax(dim=1)  # z_j - logsumexp, for j != y
    # The two maxima belong to the same class, so their difference is the logsumexp, without overflow.
    value = others.amax(dim=1) - log_share.amax(dim=1) - _own(logits, target)
    return value, log_share.exp_().scatter_(1, target[:, None], -1.0)


class CrossEntropy(Objective):
    """``-log softmax(z)_y``, the usual loss. Its gradient underflows on confident samples: prefer :class:`Margin`."""

    def value(self, model, x, target):
        _check_labels(target)
        return F.cross_entropy(wide(model(x)), target, reduction="none")


class CW(Objective):
    """``max_{j != y} z_j - z_y``, the margin of Carlini and Wagner 2017 (their f6, without the floor)."""

    def value(self, model, x, target):
        logits = wide(model(x))
        return _others(logits, target).amax(dim=1) - _own(logits, target)


# The smallest divisor of a ratio of logits, of which some may be equal; AutoAttack adds as much.
_TIED = 1e-12


class DLR(Objective):
    """The difference of logits ratio, ``(max_{j != y} z_j - z_y) / (z_(1) - z_(3))``; Croce and Hein 2020, Equation 6.

    Invariant to scale and shift of the logits. Needs three classes; untargeted only.
    """

    untargeted_only = True

    def value(self, model, x, target):
        logits = wide(model(x))
        if logits.shape[1] < 3:
            raise ValueError(f"DLR needs at least 3 classes, the model has {logits.shape[1]}")
        top = logits.topk(3, dim=1).values
        spread = top[:, 0] - top[:, 2]
        return (_others(logits, target).amax(dim=1) - _own(logits, target)) / spread.clamp_min(_TIED)


class TargetedDLR(Objective):
    """``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`` for target rows (y, t); Croce and Hein 2020, Equation 7, negated.

    Pushed up, it leads from y to t; a success is any prediction but y. Untargeted only. Needs four classes.
    """

    untargeted_only = True

    def value(self, model, x, target):
        _check_pairs(target)
        logits = wide(model(x))
        if logits.shape[1] < 4:
            raise ValueError(f"TargetedDLR needs at least 4 classes, the model has {logits.shape[1]}")
        top = logits.topk(4, dim=1).values
        spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
        return (_own(logits, target[:, 1]) - _own(logits, target[:, 0])) / spread.clamp_min(_TIED)

    def labels(self, target):
        _check_pairs(target)
        return target[:, 0]


@dataclass(frozen=True)
class Representation(Objective):
    """``||f(x) - target||_2`` for a feature map f: the paper's representation matching, Equation (5) (arXiv (6)).

    The target is a tensor [B, k] of features; run it with ``targeted=True``, which descends. ``features``: a function
    from inputs to [B, k]; None takes the model's own ``representation``. ``relative`` divides by ||target|| as the
    authors' notebook does; for normalised steps that changes the reported value alone. At distance 0 the gradient is 0.
    """

    features: Callable[[Tensor], Tensor] | None = None
    relative: bool = False

    def value(self, model, x, target):
        features = model.representation if self.features is None else self.features
        f = wide(features(x)).reshape(x.shape[0], -1)
        if f.shape != target.shape:
            raise ValueError(f"target should be features of shape {tuple(f.shape)}, got {tuple(target.shape)}")
        distance = torch.linalg.vector_norm(f - target, dim=1)
        return distance / torch.linalg.vector_norm(target, dim=1) if self.relative else distance


@dataclass(frozen=True)
class Function(Objective):
    """A plain function ``(model, x, target) -> [B]`` as an objective."""

    function: Callable[[Callable, Tensor, Tensor], Tensor]

    def value(self, model, x, target):
        return self.function(model, x, target)

    @property
    def name(self) -> str:
        return function_name(self.function)


def as_objective(objective: Objective | Callable) -> Objective:
    """An objective as it is, a function wrapped."""
    if isinstance(objective, Objective):
        return objective
    if callable(objective) and not isinstance(objective, type):
        return Function(objective)
    raise TypeError(f"objective should be an Objective or a function (model, x, target) -> [B], got {objective!r}")
