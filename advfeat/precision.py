"""The dtype in which a model takes images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dtype_of(modules: Sequence[nn.Module]) -> torch.dtype | None:
    """The floating-point dtype that a model takes images in, None where it has no weights.

    modules: the model, or what a function refers to. Of one module it is the dtype of the first weight of two
    dimensions or more, else of the first parameter or buffer; of several the one that all of them share, or None.
    """
    found = None
    for members in (nn.Module.parameters, nn.Module.buffers):
        for module in modules:
            for tensor in members(module):
                if tensor.dtype not in _DTYPES:
                    continue
                if len(modules) == 1 and tensor.dim() >= 2:
                    return tensor.dtype
                if len(modules) > 1 and found not in (None, tensor.dtype):
                    return None
                found = found or tensor.dtype
    return found


def as_taken(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Images in the dtype of a model; a gradient goes back through it to ``x`` in the dtype of ``x``."""
    dtype = dtype_of(modules)
    return x if dtype is None or x.dtype == dtype or not x.is_floating_point() else x.to(dtype)
