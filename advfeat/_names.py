"""Names for settings and messages: of functions, and of paths."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def function_name(function: Callable) -> str:
    """The name of a function with its bound values, so that two different functions have different names.

    A lambda gets a hash of its code; values bound by functools.partial, by default arguments and by a closure appear as
    ``f(a=1)``. The name is the same in another process.

    Args:
        function: the function.

    Returns:
        The name.
    """
    if isinstance(function, functools.partial):
        bound = [("", value) for value in function.args] + sorted(function.keywords.items())
        return function_name(function.func) + written_arguments(bound)
    name, code = _own_name(function), getattr(function, "__code__", None)
    if code is None or not (name.startswith("<lambda") or "<locals>" in function.__qualname__):
        return name  # the only function of this name in its module
    defaults = function.__defaults__ or ()
    bound = list(zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True))
    bound += (function.__kwdefaults__ or {}).items()
    bound += zip(code.co_freevars, (_content(cell) for cell in function.__closure__ or ()), strict=True)
    return name + written_arguments(bound)


def parameters_for(function: Callable, count: int) -> str | None:
    """The parameters of a function that cannot be called with a given number of arguments.

    Args:
        function: the function.
        count: the number of positional arguments.

    Returns:
        The parameters as text; None if it can be called.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a C function without a signature
        return None
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return str(signature)
    return None


def _own_name(function: Callable) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    code = getattr(function, "__code__", None)
    if name != "<lambda>" or code is None:
        return name
    text = repr((code.co_code, [c for c in code.co_consts if not hasattr(c, "co_code")], code.co_names))
    return f"<lambda {_digest(text.encode())}>"


def written_arguments(bound: list[tuple[str, object]]) -> str:
    """Arguments as text: ``(a=1)``, with the names of functions and hashes of tensors.

    Args:
        bound: names and values.

    Returns:
        The text, "" for no arguments.
    """
    parts = [f"{name}={_value(value)}" if name else _value(value) for name, value in bound]
    return f"({', '.join(parts)})" if parts else ""


def _content(cell) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _value(value: Any) -> str:
    """A value as text: numbers and texts as they are, tensors by a hash, others by their type.

    An address would differ from process to process.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_value, value))})"
    if hasattr(value, "detach") and hasattr(value, "shape") and value.device.type != "meta":
        value = value.detach().cpu().double().numpy()
    if hasattr(value, "tobytes"):
        return f"{tuple(value.shape)} {_digest(value.tobytes())}"
    return _own_name(value) if hasattr(value, "__code__") else type(value).__name__  # a closure may hold the function


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def printable(name: str | Path) -> str:
    r"""A path or name as text that every Unicode encoding can write: bytes that are not UTF-8 as ``\xNN``.

    Args:
        name: the path or name.

    Returns:
        The text.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")
