"""Eval mode that is put back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from advfeat.attacks.no_trace import held_in_eval_mode


@contextmanager
def evaluating(model: Callable) -> Iterator[None]:
    """Inside, every submodule is in eval mode; afterwards, also after an exception, each has its own flag back.

    Of a function, the modules that it refers to, and those that this thread calls: as an attack finds them, see
    :func:`advfeat.attacks.no_trace.no_trace`.

    ``model.eval(); ...; model.train()`` would un-freeze a BatchNorm layer that the user keeps in eval mode.
    """
    with held_in_eval_mode(model):
        yield
