"""Creation of modules in float32 on the CPU, whatever torch defaults a script has set."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

# The factory functions with a floating-point default dtype that modules and initialisers use.
_FLOATING = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}


class Float32OnCPU(TorchFunctionMode):
    """A block in which tensors created without a dtype or a device are float32 and on the CPU.

    It affects this thread alone, whereas ``torch.set_default_dtype`` affects all. Every torch call in the block passes
    through Python, so it is for creating modules, not for running them.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _FLOATING and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        if (func in _FLOATING or func in (torch.tensor, torch.full, torch.arange)) and kwargs.get("device") is None:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
