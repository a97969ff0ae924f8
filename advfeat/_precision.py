"""The dtype in which a model takes images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dtype_of(modules: Sequence[nn.Module]) -> torch.dtype | None:
    """The floating-point dtype in which a model takes images: that of all its weights with two or more dimensions.

    Biases, scales and the like count only if there are no other parameters.

    Args:
        modules: the model, or the modules to which a function refers.

    Returns:
        The dtype; None if weights differ, since such a model casts by itself, or if there are none.
    """
    weights: list[torch.dtype] = []
    others: list[torch.dtype] = []
    for members in (nn.Module.parameters, nn.Module.buffers):
        for module in modules:
            for tensor in members(module):
                if tensor.dtype in _DTYPES:
                    (weights if tensor.dim() >= 2 else others).append(tensor.dtype)
        if weights or others:
            break
    found = weights or others
    return found[0] if found and all(dtype == found[0] for dtype in found) else None


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Images cast to a dtype; a gradient flows back to ``x`` in the dtype of ``x``.

    Args:
        x: images [B, ...].
        dtype: the dtype; None to leave them unchanged.

    Returns:
        The images.
    """
    return x if dtype is None or x.dtype == dtype or not x.is_floating_point() else x.to(dtype)
