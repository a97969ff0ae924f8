"""A stand-in for CUDA graphs on the CPU: replays the operators of one run on the same tensors.

A step that keeps a Python number, makes a new tensor where it should write into an old one, or looks at a value on the
host goes wrong here as it would there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait for the device: a capture ends in an error there.
_WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}


def record(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What replays ``body``, which leaves no trace while it is recorded, as under a capture."""
    recorder = _Recorder()
    with recorder:
        body()
    recorder.undo()
    return recorder.replay


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in _WAITS or (name.startswith("index") and any(_is_mask(t) for t in tree_leaves(args))):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before += [(t, t.clone()) for t in tree_leaves(value) if isinstance(t, torch.Tensor)]
        if "out" in kwargs:
            self.before.append((kwargs["out"], kwargs["out"].clone()))
        out = func(*args, **kwargs)
        storages = {t.untyped_storage().data_ptr() for t in inputs}
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        fresh = [t.untyped_storage().data_ptr() not in storages for t in outputs]
        if func._schema.is_mutable or any(fresh) or not outputs:  # else a view, which stays one
            self.calls.append((func, args, kwargs, outputs, fresh))
        return out

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)
        self.before.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, outputs, fresh in self.calls:
                results = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
                for old, new, is_fresh in zip(outputs, results, fresh, strict=True):
                    if is_fresh:
                        old.copy_(new)


def _is_mask(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool
