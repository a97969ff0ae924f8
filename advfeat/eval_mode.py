"""Temporary eval mode that restores each module's own flag, also where threads share a model; and training locks.

The usual ``model.eval(); attack; model.train()`` un-freezes frozen BatchNorm layers, is skipped when an exception
propagates, and fails under ``torch.no_grad()``. Here each submodule's own flag is restored, whatever happens.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from advfeat._modules import reachable, with_those_aside


@dataclass
class _Held:
    """A module in eval mode, its original flag, and its number of users."""

    module: nn.Module
    training: bool
    users: int = 0


# Process-wide: threads share models. The first user saves a flag and the last one restores it.
_held: dict[int, _Held] = {}
# The thread that trains a module; only that thread may attack or evaluate it meanwhile. The entry holds the module, so
# that its id is not reused.
_trained: dict[int, tuple[nn.Module, int]] = {}
_lock = threading.RLock()


@contextmanager
def trained_here(model: nn.Module) -> Iterator[None]:
    """A context in which this thread trains the model; other threads cannot put it into eval mode.

    Args:
        model: the model.

    Yields:
        Nothing.

    Raises:
        RuntimeError: another thread trains, attacks or evaluates the model or one of its modules.
    """
    here = threading.get_ident()
    modules = list(model.modules())
    with _lock:
        for module in modules:
            if id(module) in _held or _trained.get(id(module), (module, here))[1] != here:
                raise RuntimeError(
                    "the model should belong to this thread alone while it is trained, but another one trains, attacks "
                    "or evaluates it: train a copy (copy.deepcopy), or wait for the other thread"
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
    """One user's hold on a set of modules in eval mode; :meth:`release` ends it."""

    def __init__(self) -> None:
        self._mine: dict[int, nn.Module] = {}

    def take(self, modules: Iterable[nn.Module]) -> None:
        """Puts modules into eval mode, until all of their users have released them.

        Args:
            modules: the modules.

        Raises:
            RuntimeError: another user holds a module that was put into train mode meanwhile, or another thread trains
                one.
        """
        # A frozen TorchScript module has no training flag.
        found = [module for module in modules if hasattr(module, "training")]
        with _lock:
            for module in found:  # first save all flags: a compiled module shares that of the module it wraps
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
                    module.training = False  # not module.eval(), which recurses, and which modules may override

    def release(self) -> None:
        """Releases the modules; the last user of a module restores its flag."""
        with _lock:
            for key in self._mine:
                held = _held[key]
                held.users -= 1
                if not held.users:
                    del _held[key]
                    if held.module.training != held.training:
                        held.module.training = held.training
            self._mine.clear()


# The package of the objectives whose modules a search finds; by name, since it is in a higher layer.
_OWN_OBJECTIVES = "advfeat.objectives."


def _all_in_sight(model: Callable, objectives: Iterable[object]) -> bool:
    """Whether a search finds every module that will be called; a user's own code may refer to them in any way."""
    return isinstance(model, nn.Module) and all(
        type(objective).__module__.startswith(_OWN_OBJECTIVES)
        and not any(callable(v) for v in vars(objective).values())
        for objective in objectives
    )


def _is_compiled(called: object) -> bool:
    names = ("_orig_mod", "_torchdynamo_orig_callable", "_compiled_call_impl")
    return any(getattr(called, name, None) is not None for name in names)


@contextmanager
def _before_each_call(turn_off: Callable[[Iterable[nn.Module]], None]) -> Iterator[None]:
    """A context in which modules that this thread calls in train mode are first put into eval mode.

    Their children are too.
    """
    thread = threading.get_ident()

    def before_call(module: nn.Module, inputs: tuple) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != thread:
            return
        if getattr(module, "training", False):
            turn_off(module.modules())  # children may be used without being called

    handle = torch.nn.modules.module.register_module_forward_pre_hook(before_call)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def held_in_eval_mode(model: Callable, *objectives: object) -> Iterator[None]:
    """A context in which all modules that a model or an objective is, refers to or calls are in eval mode.

    Afterwards, also after an exception, each has its own flag back.

    Args:
        model: the model, any callable.
        *objectives: objectives, which may refer to modules of their own.

    Yields:
        Nothing.
    """
    eval_mode = EvalMode()
    found = with_those_aside([each for whole in (model, *objectives) for each in reachable(whole)])
    no_hook = _all_in_sight(model, objectives) or any(_is_compiled(each) for each in found)
    try:
        eval_mode.take(each for each in found if isinstance(each, nn.Module))
        with contextlib.nullcontext() if no_hook else _before_each_call(eval_mode.take):
            yield
    finally:
        eval_mode.release()


@contextmanager
def in_eval_mode(model: Callable, *objectives: object) -> Iterator[None]:
    """:func:`advfeat.attacks.no_trace.no_trace` without the random state.

    For code that draws random numbers of its own, which would repeat if the state were restored.

    Args:
        model: the model, any callable.
        *objectives: objectives, which may refer to modules of their own.

    Yields:
        Nothing.
    """
    with held_in_eval_mode(model, *objectives), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def evaluating(model: Callable) -> Iterator[None]:
    """A context in which every submodule is in eval mode.

    Afterwards, also after an exception, each has its own flag back; ``model.eval(); ...; model.train()`` would
    un-freeze a BatchNorm layer that the user keeps in eval mode. For a function, these are the modules that it refers
    to and those that this thread calls, found as in :func:`advfeat.attacks.no_trace.no_trace`.

    Args:
        model: the model, any callable.

    Yields:
        Nothing.
    """
    with held_in_eval_mode(model):
        yield
