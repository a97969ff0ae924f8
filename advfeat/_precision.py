"""The dtype in which a model takes images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dtype_of(modules: Sequence[nn.Module]) -> torch.dtype | None:
    """The floating-point dtype that a model takes images in: that of all its weights of two dimensions or more.

    modules: the model, or what a function refers to. None where weights differ, for such a model casts by itself, and
    where there are none. Biases, scales and the like decide only where there are no other parameters.
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
    """Images in a dtype, as they are for None; a gradient goes back through it to ``x`` in the dtype of ``x``."""
    return x if dtype is None or x.dtype == dtype or not x.is_floating_point() else x.to(dtype)
