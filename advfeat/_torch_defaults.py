"""Modules made in float32 on the CPU, whatever a script has set as torch's defaults."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

# What gives floating point unless told otherwise, among what modules and initialisers are made with.
_FLOATING = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}


class Float32OnCPU(TorchFunctionMode):
    """Within the block tensors that nobody gave a dtype or a device are float32 and on the CPU.

    Of this thread alone, where ``torch.set_default_dtype`` would change what all of them make. Every call in the block
    passes through Python, so it is for making modules, not for running them.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _FLOATING and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        if (func in _FLOATING or func in (torch.tensor, torch.full, torch.arange)) and kwargs.get("device") is None:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
