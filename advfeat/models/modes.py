"""Eval mode that is put back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from advfeat.attacks.no_trace import modules_of
from advfeat.eval_mode import EvalMode


@contextmanager
def evaluating(model: Callable) -> Iterator[None]:
    """Inside, every submodule is in eval mode; afterwards, also after an exception, each has its own flag back.

    Of a function, the modules that it refers to.

    ``model.eval(); ...; model.train()`` would un-freeze a BatchNorm layer that the user keeps in eval mode.
    """
    eval_mode = EvalMode()
    try:
        eval_mode.take(modules_of(model))
        yield
    finally:
        eval_mode.release()
