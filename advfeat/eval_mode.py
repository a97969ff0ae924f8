"""Modules in eval mode for a while, each with its own flag back afterwards, also where threads share a model; and
modules that one thread trains."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass
class _Held:
    """A module in eval mode, the flag that it had, and how many users there are."""

    module: nn.Module
    training: bool
    users: int = 0


# Of the whole process: a model belongs to all threads. The first user notes a flag and the last one puts it back.
_held: dict[int, _Held] = {}
# The thread that trains a module; it alone may attack and evaluate it meanwhile. The module keeps its number taken.
_trained: dict[int, tuple[nn.Module, int]] = {}
_lock = threading.RLock()


@contextmanager
def trained_here(model: nn.Module) -> Iterator[None]:
    """Inside, this thread trains the model, and others are refused that want it in eval mode.

    Errors: RuntimeError where another thread trains, attacks or evaluates it, or a module of it.
    """
    here = threading.get_ident()
    modules = list(model.modules())
    with _lock:
        for module in modules:
            if id(module) in _held or _trained.get(id(module), (module, here))[1] != here:
                raise RuntimeError(
                    "the model should be of this thread alone while it is trained, but another one trains, attacks or "
                    "evaluates it: train a copy (copy.deepcopy), or wait for the other thread"
                )
        mine = {id(module): (module, here) for module in modules if id(module) not in _trained}
        _trained.update(mine)
    try:
        yield
    finally:
        with _lock:
            for key in mine:
                del _trained[key]


class EvalMode:
    """One user's hold on the modules that it wants in eval mode; :meth:`release` ends it."""

    def __init__(self) -> None:
        self._mine: dict[int, nn.Module] = {}

    def take(self, modules: Iterable[nn.Module]) -> None:
        """Puts modules into eval mode, until all of their users have released them.

        Errors: RuntimeError for a module that another user holds and that was put into train mode meanwhile, and for
        one that another thread trains.
        """
        # A frozen TorchScript module has no such flag.
        found = [module for module in modules if hasattr(module, "training")]
        with _lock:
            for module in found:  # all first: a compiled module's flag is also that of the module it wraps
                if id(module) in self._mine:
                    continue
                if _trained.get(id(module), (module, threading.get_ident()))[1] != threading.get_ident():
                    raise RuntimeError(
                        "the model should not be attacked or evaluated while another thread trains it: attack a copy "
                        "(copy.deepcopy), or wait for the training"
                    )
                held = _held.setdefault(id(module), _Held(module, module.training))
                if held.users and module.training:
                    raise RuntimeError(
                        "the model should stay in eval mode while another thread attacks or evaluates it, but it was "
                        "put into train mode: train a copy (copy.deepcopy), or attack one"
                    )
                held.users += 1
                self._mine[id(module)] = module
            for module in found:
                if module.training:
                    module.training = False  # not module.eval(), which walks the children and which modules override

    def release(self) -> None:
        """Gives up the hold; the last user of a module puts its flag back."""
        with _lock:
            for key in self._mine:
                held = _held[key]
                held.users -= 1
                if not held.users:
                    del _held[key]
                    if held.module.training != held.training:
                        held.module.training = held.training
            self._mine.clear()
