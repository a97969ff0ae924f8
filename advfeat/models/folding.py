"""BatchNorm folded into the layers before it, and whether that left the function and its gradient as they were."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

# Tolerance for rounding, relative to the largest value. A different function is off by much more.
_SAME = 1e-2


def folded(module: nn.Module) -> nn.Module:
    """A traced copy in which the layers before a BatchNorm layer do its work.

    Args:
        module: in eval mode.

    Returns:
        The copy.

    Raises:
        Exception: torch.fx cannot trace the module; it raises errors of many kinds.
    """
    from torch.fx.experimental import optimization

    # A module may do something else without gradients, and the trace would hold only that.
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        return optimization.fuse(copy.deepcopy(module), inplace=True)


def same_function(module: nn.Module, other: nn.Module, x: Tensor) -> bool:
    """Whether two modules give the same output, and the same gradient with respect to their input, up to rounding.

    A trace can differ from what it was taken of: in a layer that is called twice, or has a hook, and in a part that
    runs without gradients, which the trace differentiates. Compared in float64, because TensorFloat-32, torch's default
    for convolutions on GPUs, can make a deep network differ by more than a different function would.

    Args:
        module: the one.
        other: the other.
        x: some inputs [B, ...].

    Returns:
        True if both agree.
    """
    (expected, gradient), (got, other_gradient) = (_output_and_gradient(m, x) for m in (module, other))
    if gradient is None or other_gradient is None:
        return gradient is other_gradient and _close(got, expected)
    return _close(got, expected) and _close(other_gradient, gradient)


def _output_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    twin, point = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
    with torch.enable_grad():
        output = twin(point)
        if not output.requires_grad:
            return output, None
        weights = torch.linspace(1, 2, output.numel(), dtype=torch.float64, device=output.device)
        (gradient,) = torch.autograd.grad((output.flatten() * weights).sum(), point, allow_unused=True)
    return output.detach(), gradient


def _close(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() <= _SAME * expected.abs().max())
