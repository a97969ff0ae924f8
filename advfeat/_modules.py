"""A search for the modules that a callable is, refers to or holds, wherever it keeps them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

from torch import nn


def modules_of(model: Callable) -> list[nn.Module]:
    """The modules that a callable is or refers to.

    Args:
        model: the callable.

    Returns:
        The modules.
    """
    return [each for each in reachable(model) if isinstance(each, nn.Module)]


def reachable(model: object, depth: int = 3) -> list[object]:
    """Every module and function that a callable can reach.

    That is itself, what a method, partial or lambda is bound to, and what its code refers to.

    Args:
        model: the callable.
        depth: how many references to follow.

    Returns:
        The modules and functions.
    """
    if isinstance(model, nn.Module):
        return list(model.modules())
    compiled = getattr(model, "_torchdynamo_orig_callable", None)
    if compiled is not None:
        return [model, *reachable(compiled, depth)]
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
            found.update((id(each), each) for each in reachable(other, depth - 1))
    return list(found.values())


def with_those_aside(found: list[object]) -> list[object]:
    """The given objects, plus those held by modules of a user's own classes where ``module.modules()`` does not look.

    Args:
        found: the objects.

    Returns:
        The extended list.
    """
    seen = {id(each): each for each in found}
    left = [each for each in found if isinstance(each, nn.Module)]
    while left:
        for held in _held_aside(left.pop()):
            new = {id(each): each for each in reachable(held) if id(each) not in seen}
            left += [each for each in new.values() if isinstance(each, nn.Module)]
            seen |= new
    return list(seen.values())


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _held_aside(module: nn.Module) -> list[object]:
    """Modules, functions and callable objects in a module's plain attributes, in those of its classes and in its code.

    Lists, tuples, sets and dicts are searched too. torch's own classes hold none and are skipped.
    """
    if _is_of_torch(type(module)):
        return []
    held = [value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
    held += _of_classes(type(module))
    held += _named_by_forward(type(module))
    return [each for value in held for each in _inside(value) if _may_call_modules(each)]


def _named_by_forward(kind: type) -> list[object]:
    """What ``forward``, and the methods that it names, take from global names and closures.

    Other methods are not searched: what a ``fit`` trains is not part of the model under attack.
    """
    found: list[object] = []
    left, seen = ["forward"], {"forward"}
    while left:
        method = getattr(kind, left.pop(), None)
        if not isinstance(method, types.FunctionType) or _is_of_torch(method):
            continue
        names = method.__code__.co_names
        found += [method.__globals__[name] for name in names if name in method.__globals__]
        found += [cell.cell_contents for cell in method.__closure__ or () if _filled(cell)]
        left += [name for name in names if name not in seen]
        seen.update(names)
    return [each for each in found if not isinstance(each, (type, types.ModuleType))]


def _of_classes(kind: type) -> list[object]:
    """The attributes of a class and its bases, without methods and without those of torch's or Python's classes."""
    owners = [owner for owner in kind.__mro__ if not _is_of_torch(owner)]
    return [value for owner in owners for value in vars(owner).values() if not isinstance(value, types.FunctionType)]


# A larger container holds data, and searching it would cost time at every batch.
_MOST, _MOST_WITHIN = 1000, 100


def _inside(value: object, most: int = _MOST) -> list[object]:
    """The value itself, or the contents of a container, including nested containers."""
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


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # not assigned yet
        return False
