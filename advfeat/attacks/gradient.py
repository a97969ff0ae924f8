"""The shared core of the gradient attacks: the objective's value and gradient at a batch, and the successes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from advfeat.attacks.attacked_model import AttackedModel
from advfeat.forward import predicted_classes
from advfeat.objectives import wide

if TYPE_CHECKING:
    from advfeat.attacks.base import GradientAttack


def successes(attack: GradientAttack, logits: Tensor | None, target: Tensor) -> Tensor | None:
    """Which predictions achieve the attack's goal.

    Args:
        attack: gives the objective and ``targeted``.
        logits: [B, classes], or None.
        target: [B, ...], whatever the objective takes.

    Returns:
        bool [B]; None if there are no logits or no labels.
    """
    labels = attack.objective.labels(target)
    if logits is None or labels is None:
        return None
    predicted = predicted_classes(logits)
    return predicted == labels if attack.targeted else (predicted != labels) & (predicted >= 0)


@overload
def value_and_grad(
    attack: GradientAttack, model: AttackedModel, x: Tensor, target: Tensor, grad: Literal[True]
) -> tuple[Tensor, Tensor | None, Tensor]: ...
@overload
def value_and_grad(
    attack: GradientAttack, model: AttackedModel, x: Tensor, target: Tensor, grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]: ...
def value_and_grad(
    attack: GradientAttack, model: AttackedModel, x: Tensor, target: Tensor, grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The objective and its gradient by x, in one pass through the model.

    Args:
        attack: gives the objective and autocast.
        model: the model as objectives see it.
        x: the iterate [B, ...].
        target: [B, ...], whatever the objective takes.
        grad: whether the gradient is needed.

    Returns:
        The objective [B], the logits of x (None if the objective did not ask for them), and the gradient [B, ...] (None
        without ``grad``).

    Raises:
        TypeError: the objective does not return a tensor.
        ValueError: the objective does not return one value per sample, or does not depend on x differentiably.
    """
    objective, point = attack.objective, x.detach().requires_grad_(grad)
    model.look_at(point)
    autocast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if attack.autocast is not None:
        # No cache of cast weights: it would outlive this pass, a replayed graph would read it after it is freed, and it
        # would hold a cast image batch for every step.
        autocast = torch.autocast(x.device.type, dtype=attack.autocast, cache_enabled=False)
    if not grad:
        with torch.no_grad(), autocast:
            value = objective.value(model, point, target)
        _check_value(value, point)
        return value, model.logits, None
    rule = objective.slope_rule()
    if rule is not None:
        with autocast:
            logits = model(point)
        with torch.no_grad():
            value, slope = rule(wide(logits), target)
        return value, model.logits, _gradient(logits, point, slope.to(logits.dtype))
    with autocast:
        value = objective.value(model, point, target)
    _check_value(value, point)
    return value.detach(), model.logits, _gradient(value, point, torch.ones_like(value))


def _check_value(value: Tensor, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"the objective should give a tensor, one value per sample, got {type(value).__name__}")
    if value.shape != x.shape[:1]:
        hint = ': losses of torch.nn.functional take reduction="none"' if value.dim() == 0 else ""
        raise ValueError(
            f"the objective should give one value per sample, ({x.shape[0]},), got {tuple(value.shape)}{hint}"
        )


def _gradient(output: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """The gradient by x of ``output``, given the gradient ``slope`` by ``output``."""
    gradient = None
    if output.requires_grad:  # perhaps only because of the parameters
        (gradient,) = torch.autograd.grad(output, x, slope, allow_unused=True)
    if gradient is None:
        raise ValueError("the objective does not depend on x through anything differentiable")
    return gradient
