"""Representation matching: the objective with which D_R and D_NR are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat._arguments import flag
from advfeat.objectives.base import Objective, wide


@dataclass(frozen=True)
class Representation(Objective):
    """``||f(x) - target||_2`` for a feature map f: the paper's representation matching, Equation (5) (arXiv (6)).

    The target is a tensor [B, k] of features. Run it with ``targeted=True``, which descends. At distance 0 the gradient
    is 0.

    Args:
        features: a function from inputs to [B, k]; None for the model's own ``representation``.
        relative: divide by ||target||, as the authors' notebook does. For normalised steps this changes only the
            reported value. A target of zeros (every ReLU is dead) has norm 0, so its distance is not divided.

    Raises:
        TypeError: ``features`` is not callable, or ``relative`` is not a bool.
    """

    optimum = 0.0

    features: Callable[[Tensor], Tensor] | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.features is not None and not callable(self.features):
            raise TypeError(f"features should be a function of images, or None, got {self.features!r}")
        object.__setattr__(self, "relative", flag("relative", self.relative))

    def value(self, model, x, target):
        """See :meth:`Objective.value`.

        Args:
            model: has a method ``representation``, unless ``features`` is given.
            x: images [B, ...].
            target: features [B, k].

        Returns:
            The distances [B].

        Raises:
            ValueError: there is no feature map, or ``target`` has another shape than the features.
        """
        features = getattr(model, "representation", None) if self.features is None else self.features
        if features is None:
            raise ValueError(
                "features should be given, a function of images, for a model that has no method representation(x)"
            )
        f = wide(features(x)).reshape(x.shape[0], -1)
        if f.shape != target.shape:
            raise ValueError(f"target should be features of shape {tuple(f.shape)}, got {tuple(target.shape)}")
        distance = torch.linalg.vector_norm(f - target, dim=1)
        if not self.relative:
            return distance
        length = torch.linalg.vector_norm(target, dim=1)
        return distance / torch.where(length > 0, length, torch.ones_like(length))
