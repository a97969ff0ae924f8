"""The steps of MadryLab/robustness (``robustness.attack_steps``) on this library's kernels."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.inputs import check_tensor
from advfeat.ops import Number
from advfeat.random import fresh_seed
from advfeat.threat import L2, Linf, Threat, as_number


class _Step:
    """The four methods of ``robustness.attack_steps.AttackerStep``.

    Args:
        orig_input: images [B, C, H, W] in [0, 1], the centres of the balls.
        eps: the radius, in pixel scale.
        step_size: the length of a step, in pixel scale; None for a step that only projects.
        use_grad: stored for compatibility.
    """

    _threat: type[Threat]

    def __init__(self, orig_input: Tensor, eps: float, step_size: float, use_grad: bool = True) -> None:
        check_tensor("orig_input", orig_input, "images [B, C, H, W]")
        self.orig_input, self.use_grad = orig_input, use_grad
        self.eps = as_number("eps", eps)
        self.step_size = None if step_size is None else as_number("step_size", step_size)  # None if it only projects

    def random_perturb(self, x: Tensor) -> Tensor:
        """A random point of the ball around x, in [0, 1]."""
        check_tensor("x", x, "images [B, C, H, W]")
        ids = torch.arange(x.shape[0], device=x.device)
        return self._threat(self.eps).random_start(x, fresh_seed(), ids)

    def to_image(self, x: Tensor) -> Tensor:
        """The images themselves."""
        return x


class LinfStep(_Step):
    """``robustness.attack_steps.LinfStep``.

    Args:
        orig_input: images [B, C, H, W] in [0, 1], the centres of the balls.
        eps: the radius per value, in pixel scale.
        step_size: the step per value, in pixel scale; None for a step that only projects.
        use_grad: stored for compatibility.
    """

    _threat = Linf

    def project(self, x: Tensor) -> Tensor:
        """Projects onto the L-inf ball around ``orig_input`` and [0, 1].

        Args:
            x: images [B, C, H, W].

        Returns:
            The projection.
        """
        return ops.project_linf(x, self.orig_input, self.eps)

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        """``x + step_size * sign(g)``.

        Args:
            x: images [B, C, H, W].
            g: the gradient, like x.

        Returns:
            The new iterate, not projected.
        """
        size = cast("Number", self.step_size)  # the operator refuses None
        return ops.linf_step(x, g, x, size, math.inf, -math.inf, math.inf)


class L2Step(_Step):
    """``robustness.attack_steps.L2Step``.

    Args:
        orig_input: images [B, C, H, W] in [0, 1], the centres of the balls.
        eps: the L2 radius, in pixel scale.
        step_size: the L2 length of a step, in pixel scale; None for a step that only projects.
        use_grad: stored for compatibility.
    """

    _threat = L2

    def project(self, x: Tensor) -> Tensor:
        """Projects onto the L2 ball around ``orig_input`` and [0, 1].

        Args:
            x: images [B, C, H, W].

        Returns:
            The projection.
        """
        return ops.project_l2(x, self.orig_input, self.eps)

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        """``x + step_size * g / ||g||``.

        Args:
            x: images [B, C, H, W].
            g: the gradient, like x.

        Returns:
            The new iterate, not projected.
        """
        return ops.l2_step(x, g, x, self.step_size, math.inf, -math.inf, math.inf)
