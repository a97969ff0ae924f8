"""What an objective is: a method ``value(model, x, target) -> [B]``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from advfeat._names import written_arguments


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
        """Its class with its parameters, as in ``Mine(weight=2.0)``: results are found by it, so objectives that differ
        should have names that do. Fields of a dataclass that have their defaults are left out."""
        usual = {}
        if dataclasses.is_dataclass(self):
            usual = {f.name: f.default for f in dataclasses.fields(self)}
        given = [(name, value) for name, value in vars(self).items() if not _is_same(value, usual.get(name, _NOTHING))]
        return type(self).__name__ + written_arguments(given)


_NOTHING = object()


def _is_same(value: object, usual: object) -> bool:
    return type(value) is type(usual) and not isinstance(value, Tensor) and bool(value == usual)


def are_labels(target: Tensor) -> bool:
    """Whether a target is one label a sample."""
    return target.dim() == 1 and not target.is_floating_point() and target.dtype != torch.bool


def wide(values: Tensor) -> Tensor:
    """Half types as float32: the differences of logits are what matters, and they cancel."""
    return values if values.dtype == torch.float64 else values.float()
