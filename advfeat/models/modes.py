"""Eval mode that is put back exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, every submodule is in eval mode; afterwards, also after an exception, each has its own flag back.

    ``model.eval(); ...; model.train()`` would un-freeze a BatchNorm layer that the user keeps in eval mode.
    """
    # A frozen TorchScript module has no flag.
    flags = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training
