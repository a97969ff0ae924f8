"""A model attacked, and left exactly as it was.

A peer's usual ``model.eval(); attack; model.train()`` un-freezes frozen BatchNorm layers, is skipped when an exception
passes, and fails under ``torch.no_grad()``. Here each submodule's own flag is put back, whatever happens.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from advfeat.eval_mode import EvalMode
from advfeat.objectives import Objective
from advfeat.precision import cast, dtype_of


def logits_of(output: object) -> Tensor:
    """The logits in a model's output: a tensor, an object with ``.logits`` (Hugging Face), or a dict with that key."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model should return logits as a tensor or an output with .logits, got {type(output).__name__}"
    )


def unwrapped(model: Callable) -> Callable:
    """The module inside DistributedDataParallel, else the model itself.

    The wrapper talks to the other processes at every pass, and under attack each makes as many as its own samples need:
    they would wait for each other forever. A compiled wrapper is attacked as it was before it was compiled.
    """
    inner = getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model
    return inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else model


class Watched:
    """The model as objectives see it: gives logits, remembers those of the point looked at, and is otherwise the
    model."""

    def __init__(self, model: Callable, largest_label: int | None = None) -> None:
        if not callable(model):
            raise TypeError(f"model should be a module or a function of images, got {type(model).__name__}")
        self._model = unwrapped(model)
        modules = [self._model] if isinstance(self._model, nn.Module) else modules_of(self._model)
        self._dtype = dtype_of(modules)
        self._largest_label = largest_label
        self._classes: int | None = None  # once the model has been called
        self.look_at(None)

    def look_at(self, point: Tensor | None) -> None:
        """The batch whose logits :attr:`logits` are to be, from the calls that follow."""
        self._point, self._calls, self._saw_point = point, 0, False
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor | None:
        """The logits [B, classes] of the point; None where an objective did not ask for them.

        Objectives call the model as they like: with the clean images too, with several views, or sample by sample. A
        call with the point itself counts; else the only call there was, if it had as many samples.
        """
        return self._logits if self._saw_point or self._calls == 1 else None

    def expect_label(self, label: int | None) -> None:
        """Another batch's largest label, None for no labels."""
        if label is not None:
            self._largest_label = max(label, self._largest_label or 0)
            self._check_label()

    def _check_label(self) -> None:
        if None in (self._largest_label, self._classes) or self._largest_label < max(self._classes, 2):
            return
        if self._classes == 1:
            raise ValueError(f"target should hold 0 or 1 for a model with one logit, got label {self._largest_label}")
        raise ValueError(f"target holds label {self._largest_label}, but the model has {self._classes} classes")

    def __call__(self, x: Tensor) -> Tensor:
        with _refusing_changes_of(x, self._model):
            logits = logits_of(self._model(cast(x, self._dtype)))
        if logits.shape == x.shape[:1]:  # one logit a sample, of a binary model
            logits = logits[:, None]
        if logits.dim() != 2 or logits.shape[0] != x.shape[0] or logits.shape[1] == 0:
            raise ValueError(
                f"the model should give logits [B, classes] with B = {x.shape[0]}, got {tuple(logits.shape)}"
            )
        self._classes = logits.shape[1]
        self._check_label()
        if x is self._point or not self._saw_point:
            self._saw_point |= x is self._point
            same_size = self._point is None or len(x) == len(self._point)
            self._logits = logits.detach() if same_size else None
        self._calls += 1
        return logits

    def __getattr__(self, name: str) -> object:
        found = getattr(self._model, name)
        if name == "representation" and callable(found):  # takes images, as the model does
            return lambda x: found(cast(x, self._dtype))
        return found


@contextmanager
def _refusing_changes_of(x: Tensor, model: Callable) -> Iterator[None]:
    """Raises ValueError where a model changes its input in place: the iterate would be another one afterwards; and for
    one that fails as it is on another device."""
    message = "the model should not change its input in place: let it work on a copy, x.clone()"
    version = x._version
    try:
        yield
    except RuntimeError as error:
        if "a leaf Variable that requires grad is being used in an in-place operation" in str(error) and x.is_leaf:
            raise ValueError(message) from error
        place = next((p.device for p in model.parameters()), x.device) if isinstance(model, nn.Module) else x.device
        if place != x.device and "device" in str(error):
            raise ValueError(f"x should be on the device of the model, {place}, got {x.device}") from error
        raise
    if x._version != version:
        raise ValueError(message)


def modules_of(model: Callable) -> list[nn.Module]:
    """The modules that a callable is, or refers to."""
    return [each for each in _reachable(model) if isinstance(each, nn.Module)]


def _reachable(model: object, depth: int = 3) -> list[object]:
    """Every module and function that a callable can reach: itself, what a method, partial or lambda is bound to, and
    what it names."""
    if isinstance(model, nn.Module):
        return list(model.modules())
    compiled = getattr(model, "_torchdynamo_orig_callable", None)
    if compiled is not None:
        return [model, *_reachable(compiled, depth)]
    if depth == 0:
        return []
    owner = getattr(model, "__self__", None)
    reached: list[object] = [owner, getattr(model, "__wrapped__", None)]
    if isinstance(model, functools.partial):
        reached += [model.func, *model.args, *model.keywords.values()]
    if isinstance(model, types.FunctionType):
        names = model.__code__.co_names
        reached += [model.__globals__[name] for name in names if name in model.__globals__]
        reached += [cell.cell_contents for cell in model.__closure__ or () if _filled(cell)]
        reached += [*(model.__defaults__ or ()), *(model.__kwdefaults__ or {}).values()]
    elif not isinstance(model, type):
        reached += [*getattr(model, "__dict__", {}).values(), *_of_classes(type(model))]
    reached = [part for whole in reached for part in _inside(whole)]
    found: dict[int, object] = {id(model): model}
    for other in reached:
        if other is None or isinstance(other, (type, types.ModuleType)):
            continue
        if isinstance(other, nn.Module) or callable(other) or other is owner:
            found.update((id(each), each) for each in _reachable(other, depth - 1))
    return list(found.values())


def _with_those_aside(found: list[object]) -> list[object]:
    """What was found, and what modules of the user's own classes hold where ``module.modules()`` does not look."""
    seen = {id(each): each for each in found}
    left = [each for each in found if isinstance(each, nn.Module)]
    while left:
        for held in _held_aside(left.pop()):
            new = {id(each): each for each in _reachable(held) if id(each) not in seen}
            left += [each for each in new.values() if isinstance(each, nn.Module)]
            seen |= new
    return list(seen.values())


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _held_aside(module: nn.Module) -> list[object]:
    """Modules, functions and objects that can be called, in the plain attributes of a module and of its classes, in
    lists, tuples, sets and dicts, too. Of torch's own classes, which hold none, nothing is looked at."""
    if _is_of_torch(type(module)):
        return []
    held = [value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
    held += _of_classes(type(module))
    return [each for value in held for each in _inside(value) if _may_call_modules(each)]


def _of_classes(kind: type) -> list[object]:
    """The attributes of a class and of those that it comes from, but methods and what is of torch or Python."""
    owners = [owner for owner in kind.__mro__ if not _is_of_torch(owner)]
    return [value for owner in owners for value in vars(owner).values() if not isinstance(value, types.FunctionType)]


# A container with more is one of data, and looking through it would take time at every batch.
_MOST, _MOST_WITHIN = 1000, 100


def _inside(value: object, most: int = _MOST) -> list[object]:
    """The value itself, or what a container holds, and the containers in it."""
    if not isinstance(value, (list, tuple, set, frozenset, dict)):
        return [value]
    parts = (value.values() if isinstance(value, dict) else value) if len(value) <= most else ()
    if most < _MOST:
        return list(parts)
    return [each for part in parts for each in _inside(part, _MOST_WITHIN)]


def _may_call_modules(value: object) -> bool:
    if isinstance(value, nn.Module):
        return True
    own = value if isinstance(value, types.FunctionType) else type(value)
    return callable(value) and not isinstance(value, type) and not _is_of_torch(own)


def _is_of_torch(own: object) -> bool:
    of = getattr(own, "__module__", None) or ""
    return of in ("builtins", "torch") or of.startswith("torch.")


def _is_compiled(called: object) -> bool:
    names = ("_orig_mod", "_torchdynamo_orig_callable", "_compiled_call_impl")
    return any(getattr(called, name, None) is not None for name in names)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not assigned yet
        return False


def _all_in_sight(model: Callable, objectives: Iterable[Objective]) -> bool:
    """Whether a search finds every module that will be called: code of the user's own may name them in any way."""
    return isinstance(model, nn.Module) and all(
        type(objective).__module__ == Objective.__module__ and not any(callable(v) for v in vars(objective).values())
        for objective in objectives
    )


@contextmanager
def _before_each_call(turn_off: Callable[[Iterable[nn.Module]], None]) -> Iterator[None]:
    """Inside, a module that this thread calls in train mode is turned off first, with all that it holds."""
    thread = threading.get_ident()

    def before_call(module: nn.Module, inputs: tuple) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != thread:
            return
        if getattr(module, "training", False):
            turn_off(module.modules())  # some may be used without being called

    handle = torch.nn.modules.module.register_module_forward_pre_hook(before_call)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def held_in_eval_mode(model: Callable, *objectives: Objective) -> Iterator[None]:
    """Inside, the modules that a model or an objective is, refers to or calls are in eval mode; afterwards, also after
    an exception, each has its own flag back."""
    eval_mode = EvalMode()
    reachable = _with_those_aside([each for whole in (model, *objectives) for each in _reachable(whole)])
    no_hook = _all_in_sight(model, objectives) or any(_is_compiled(each) for each in reachable)
    try:
        eval_mode.take(each for each in reachable if isinstance(each, nn.Module))
        with contextlib.nullcontext() if no_hook else _before_each_call(eval_mode.take):
            yield
    finally:
        eval_mode.release()


@contextmanager
def in_eval_mode(model: Callable, *objectives: Objective) -> Iterator[None]:
    """The part of :func:`no_trace` without the random state: of code that draws numbers of its own, which would
    repeat."""
    with held_in_eval_mode(model, *objectives), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def no_trace(model: Callable, device: torch.device, *objectives: Objective) -> Iterator[None]:
    """Inside: gradients are on, and every submodule that ``model`` or an objective is or refers to is in eval mode.

    Afterwards, also after an exception: the training flag of every submodule, the global random state (CPU and this
    device) and the grad and inference modes are as before. Parameters' ``.grad`` and ``requires_grad`` and BatchNorm's
    statistics are never touched in between. A module's modules are found in the attributes of it and of its classes, in
    plain lists and dicts too; a function's through what it is bound to, its closure, its defaults and the global names
    it uses, and all others when this thread first calls them. Where code is compiled only the former are: a hook would
    have it compiled anew for every attack.

    Several threads may attack one model: it is in eval mode until the last of them is done. The random state is put
    back only where this thread is the only one. It belongs to all threads, and numbers that another one has drawn
    meanwhile would come a second time; only a model that draws random numbers itself changes it at all.
    """
    on_cuda = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    alone = _is_only_thread()
    cpu_state = torch.get_rng_state() if alone else None
    cuda_state = torch.cuda.get_rng_state(device) if alone and on_cuda else None
    try:
        with in_eval_mode(model, *objectives):
            yield
    finally:
        if cpu_state is not None and _is_only_thread():
            torch.set_rng_state(cpu_state)
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state, device)


# Threads that draw no random numbers of torch's, by their first letters: the library's own, progress bars', notebooks',
# the compiler's.
_HARMLESS = (
    "advfeat",
    "tqdm_",
    "IPythonHistory",
    "IOPub",
    "Heartbeat",
    "Control",
    "QueueFeeder",
    "Inductor",
    "subproc_",
)


def _is_only_thread() -> bool:
    """Whether no other thread of Python's is there that may draw random numbers."""
    here = threading.current_thread()
    return all(thread is here or thread.name.startswith(_HARMLESS) for thread in threading.enumerate())
