"""Objectives on the logits: margins, cross-entropy, and logit differences scaled by the spread of the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advfeat.forward import class_logits
from advfeat.objectives.base import Objective, wide


def _check_labels(target: Tensor) -> None:
    if target.dim() != 1 or target.dtype != torch.int64:
        raise ValueError(f"target should be labels, int64 [B], got {target.dtype} of shape {tuple(target.shape)}")


def _check_pairs(target: Tensor) -> None:
    if target.dim() != 2 or target.shape[1] != 2 or target.dtype != torch.int64:
        raise ValueError(f"target should be pairs (y, t), int64 [B, 2], got {target.dtype} {tuple(target.shape)}")


def _others(logits: Tensor, target: Tensor) -> Tensor:
    """The logits with the target's set to minus infinity."""
    return logits.scatter(1, target[:, None], float("-inf"))


def _own(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0]


def _by_class(logits: Tensor, target: Tensor) -> Tensor:
    """Logits [B, C] with C at least 2, in float32 or float64, from the output of a model.

    See :func:`advfeat.forward.class_logits`.
    """
    _check_labels(target)
    return class_logits(wide(logits))


# The temperature as a fraction of z_(1) - z_(3), see Margin.
_SHARE = 0.2


def _scale_free_temperature(logits: Tensor) -> Tensor:
    """A fifth of z_(1) - z_(3) for each sample, [B]; see :class:`Margin`. Not differentiated."""
    logits = logits.detach()
    if logits.shape[1] < 3:  # with a single competing class the temperature has no effect
        return torch.ones_like(logits[:, 0])
    top = logits.topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    # If the three are equal, the others set the scale. -inf marks an excluded class.
    finite = logits.masked_fill(~logits.isfinite(), float("inf")).amin(dim=1)
    spread = torch.where(spread > 0, spread, top[:, 0] - finite)
    return torch.where((spread > 0) & spread.isfinite(), _SHARE * spread, torch.ones_like(spread))


@dataclass(frozen=True)
class Margin(Objective):
    """``T logsumexp_{j != y} (z_j / T) - z_y``: a smooth maximum of the other logits minus the target's logit.

    The gradient of the cross-entropy is that of the margin at T = 1 times ``sigmoid(margin)``, a per-sample factor that
    vanishes for confident predictions (1e-40 is 0 in float32). A step that normalises the gradient, L2 or sign, sees
    only the direction. In exact arithmetic ``Margin(1.0)`` therefore takes the steps of the cross-entropy, which the
    paper's recipes and training use, and it keeps its strength however large the logits are.

    A model with a single logit has two classes, see :func:`advfeat.forward.class_logits`.

    Args:
        temperature: T, a positive number, held constant in the gradient. None, the default, takes a fifth of the
            difference between the largest and the third largest logit of each sample; that difference is the divisor of
            the DLR loss (Croce and Hein 2020). A fixed T is weak if the logits are small compared with it, since all
            other classes then weigh the same, and sees a single class if they are large. With the default, the attack
            is the same at every scale of the logits and as strong as at the best fixed T; see docs/decisions.md for the
            measurements.

    Raises:
        ValueError: ``temperature`` is not a positive finite number.
    """

    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None:
            number = isinstance(self.temperature, (int, float)) and not isinstance(self.temperature, bool)
            if not (number and 0 < self.temperature < float("inf")):
                raise ValueError(f"temperature should be a positive number or None, got {self.temperature!r}")
            object.__setattr__(self, "temperature", float(self.temperature))

    @property
    def name(self) -> str:
        """The name by which results are looked up, such as "Margin(scale-free)"."""
        if type(self) is not Margin:
            return type(self).__name__
        if self.temperature is None:
            return "Margin(scale-free)"
        # Unchanged since the first version, so that data sets and steps cached under it are found.
        return "Margin" if self.temperature == 1 else f"Margin({self.temperature:g})"

    def value(self, model, x, target):
        """See :meth:`Objective.value`."""
        logits = _by_class(model(x), target)
        others, own = _others(logits, target), _own(logits, target)
        if self.temperature == 1:
            return others.logsumexp(dim=1) - own
        t, top = self._temperature(logits)[:, None], others.detach().amax(dim=1, keepdim=True)
        return top[:, 0] + (t * _lifted(others, top).div(t).logsumexp(dim=1, keepdim=True))[:, 0] - own

    def slope_rule(self):
        """See :meth:`Objective.slope_rule`."""
        return self._value_and_slope if type(self).value is Margin.value else None

    def _temperature(self, logits: Tensor) -> Tensor:
        if self.temperature is None:
            return _scale_free_temperature(logits)
        return torch.full_like(logits[:, 0], self.temperature)

    def _value_and_slope(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        by_class = _by_class(logits, target)
        others, own = _others(by_class, target), _own(by_class, target)
        top = others.amax(dim=1, keepdim=True)
        if self.temperature == 1:
            t: float | Tensor = 1.0
            log_share = others.log_softmax(dim=1)  # z_j - logsumexp, for j != y
        else:
            t = self._temperature(by_class)[:, None]
            log_share = _lifted(others, top).div(t).log_softmax(dim=1)
        # The two maxima belong to the same class, so their difference is the logsumexp, without overflow.
        value = (top - t * log_share.amax(dim=1, keepdim=True))[:, 0] - own
        slope = log_share.exp_().scatter_(1, target[:, None], -1.0)
        alone = top[:, 0] == -torch.inf  # all other classes are excluded: there is none to weigh or to reach
        value = torch.where(alone, top[:, 0] - own, value)
        slope = torch.where(alone[:, None] & slope.isnan(), 0.0, slope)
        return value, slope[:, 1:] if logits.shape[1] == 1 else slope


def _lifted(others: Tensor, top: Tensor) -> Tensor:
    """The other logits minus the largest of them; all of them -inf if all are excluded."""
    return others - torch.where(top == -torch.inf, torch.zeros_like(top), top)


class CrossEntropy(Objective):
    """``-log softmax(z)_y``, the usual loss. Its gradient underflows on confident samples: prefer :class:`Margin`."""

    def value(self, model, x, target):
        """See :meth:`Objective.value`."""
        return F.cross_entropy(_by_class(model(x), target), target, reduction="none")


class CW(Objective):
    """``max_{j != y} z_j - z_y``, the margin of Carlini and Wagner 2017 (their f6, without the floor)."""

    def value(self, model, x, target):
        """See :meth:`Objective.value`."""
        logits = _by_class(model(x), target)
        return _others(logits, target).amax(dim=1) - _own(logits, target)


def _ratio(difference: Tensor, spread: Tensor) -> Tensor:
    """A difference of logits over their spread; over 1 if they are tied or one is excluded (-inf).

    The direction is then still that of the difference. AutoAttack adds 1e-12 to the spread, which swamps small
    logits.
    """
    return difference / torch.where((spread > 0) & spread.isfinite(), spread, torch.ones_like(spread))


class DLR(Objective):
    """The difference of logits ratio, ``(max_{j != y} z_j - z_y) / (z_(1) - z_(3))``; Croce and Hein 2020, Equation 6.

    Invariant to scale and shift of the logits. Needs three classes; untargeted only.
    """

    untargeted_only = True

    def value(self, model, x, target):
        """See :meth:`Objective.value`.

        Args:
            model: returns logits of at least 3 classes.
            x: images [B, ...].
            target: labels, int64 [B].

        Returns:
            The values [B].

        Raises:
            ValueError: the model has fewer than 3 classes, or ``target`` is not labels.
        """
        logits = _by_class(model(x), target)
        if logits.shape[1] < 3:
            raise ValueError(f"DLR needs at least 3 classes, the model has {logits.shape[1]}")
        top = logits.topk(3, dim=1).values
        spread = top[:, 0] - top[:, 2]
        return _ratio(_others(logits, target).amax(dim=1) - _own(logits, target), spread)


class TargetedDLR(Objective):
    """``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`` for target rows (y, t); Croce and Hein 2020, Equation 7, negated.

    Maximising it leads from y to t; a success is any prediction but y. Untargeted only. Needs four classes.
    """

    untargeted_only = True

    def value(self, model, x, target):
        """See :meth:`Objective.value`.

        Args:
            model: returns logits of at least 4 classes.
            x: images [B, ...].
            target: pairs (y, t), int64 [B, 2].

        Returns:
            The values [B].

        Raises:
            ValueError: the model has fewer than 4 classes, or ``target`` is not pairs.
        """
        _check_pairs(target)
        logits = wide(model(x))
        if logits.shape[1] < 4:
            raise ValueError(f"TargetedDLR needs at least 4 classes, the model has {logits.shape[1]}")
        top = logits.topk(4, dim=1).values
        spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
        return _ratio(_own(logits, target[:, 1]) - _own(logits, target[:, 0]), spread)

    def labels(self, target):
        """The labels y of the pairs; see :meth:`Objective.labels`."""
        _check_pairs(target)
        return target[:, 0]
