"""The interface of objectives: a method ``value(model, x, target) -> [B]``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from advfeat._names import written_arguments


class Objective:
    """Base class of objectives: subclass it and write ``value``.

    Any function ``(model, x, target) -> [B]`` can be passed to an attack as well.

    Attributes:
        untargeted_only: whether an attack with ``targeted=True`` must refuse it.
        optimum: the least value, which a targeted attack descends to, where it is known; for Polyak's step size.
    """

    untargeted_only = False
    optimum: ClassVar[float | None] = None

    def value(self, model: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
        """The objective of each sample.

        Args:
            model: ``model(x)`` returns logits [B, classes]; other attributes are the model's own.
            x: images [B, ...].
            target: [B, ...], labels or whatever the objective takes.

        Returns:
            The values [B].
        """
        raise NotImplementedError

    def slope_rule(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """A function from (logits, target) to the value [B] and its gradient in the logits [B, classes], or None.

        For an objective that depends on ``x`` through ``model(x)`` alone, with value and gradient in closed form. It
        spares the attack the backward pass through the objective, which costs more than that of a small model.

        Returns:
            The function; None where the gradient comes from autograd.
        """
        return None

    def labels(self, target: Tensor) -> Tensor | None:
        """The labels in ``target`` that determine whether a prediction is a success.

        Args:
            target: [B, ...].

        Returns:
            The labels [B]; None if ``target`` holds none.
        """
        return target if are_labels(target) else None

    @property
    def name(self) -> str:
        """The class name with its parameters, as in ``Mine(weight=2.0)``.

        Results are looked up by it, so objectives that differ should have different names. Dataclass fields at their
        defaults are left out.
        """
        usual: dict[str, object] = {}
        if dataclasses.is_dataclass(self):
            usual = {f.name: f.default for f in dataclasses.fields(self)}
        given = [(name, value) for name, value in vars(self).items() if not _is_same(value, usual.get(name, _NOTHING))]
        return type(self).__name__ + written_arguments(given)


_NOTHING = object()


def _is_same(value: object, usual: object) -> bool:
    return type(value) is type(usual) and not isinstance(value, Tensor) and bool(value == usual)


def are_labels(target: Tensor) -> bool:
    """Whether a target holds one label per sample.

    Args:
        target: any tensor.

    Returns:
        True for a 1-D integer tensor.
    """
    return target.dim() == 1 and not target.is_floating_point() and target.dtype != torch.bool


def wide(values: Tensor) -> Tensor:
    """The values in at least float32: differences of logits matter, and in half precision they cancel.

    Args:
        values: any floating-point tensor.

    Returns:
        float64 as it is, any other dtype as float32.
    """
    return values if values.dtype == torch.float64 else values.float()
