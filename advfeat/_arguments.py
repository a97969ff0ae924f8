"""Single arguments as they are used, or an error that names them: whole numbers, numbers, flags, texts, devices."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch


def whole_number(name: str, given: Any, least: int | None = 1) -> int:
    """An integer of any kind, numpy's too, as Python's. Errors: ValueError for anything else and for less."""
    try:
        value = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        value = None
    if value is None or (least is not None and value < least):
        wanted = "an integer" if least is None else f"an integer, at least {least}"
        raise ValueError(f"{name} should be {wanted}, got {given!r}")
    return value


def number(name: str, given: Any) -> float:
    """A number of any kind, numpy's and a tensor of one value too, as Python's. Errors: TypeError for anything else, a
    text such as "0.1" and True among them."""
    if type(given) in (int, float):
        return given
    if not isinstance(given, (bool, str, bytes)) and math.prod(getattr(given, "shape", ())) == 1:
        try:
            return float(given)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{name} should be a number, got {given!r}")


def numbers(name: str, given: Any) -> tuple[float, ...]:
    """Finite numbers in a list, a tuple, an array or a tensor [k]. Errors: TypeError for anything else, ValueError for
    NaN and infinity."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} should be a list of numbers, got {given!r}")
    found = tuple(number(f"{name}[{i}]", value) for i, value in enumerate(given))
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name} should be finite numbers, got {given!r}")
    return found


def image_shape(name: str, given: Any) -> tuple[int, int, int]:
    """(channels, height, width). Errors: TypeError for what is no sequence, ValueError for another one."""
    wanted = f"{name} should be (channels, height, width)"
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{wanted}, got {given!r}")
    given = tuple(given)
    if len(given) != 3:
        raise ValueError(f"{wanted}, got {given}")
    try:
        return tuple(whole_number(name, side) for side in given)
    except ValueError as error:
        raise ValueError(f"{wanted}, three integers of at least 1, got {given}") from error


def flag(name: str, given: Any) -> bool:
    """True or False, numpy's too. Errors: TypeError for anything else: a text such as "no" would count as true."""
    if isinstance(given, bool):
        return given
    try:  # numpy's, or of a tensor of one value
        value = given.item()
    except (AttributeError, ValueError, RuntimeError):
        value = None
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be True or False, got {given!r}")
    return value


def meant(given: Any, options: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """The option that a text may stand for, as the end of a message; "" for none. others: more names of options."""
    names = {_plain(option): option for option in options}
    names |= {_plain(other): option for other, option in (others or {}).items()}
    near = difflib.get_close_matches(_plain(given), names, n=1) if isinstance(given, str) else []
    return f"; did you mean {names[near[0]]}?" if near else ""


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def check_autocast(autocast: Any) -> None:
    """Raises TypeError for what a model cannot be run in."""
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise TypeError(f"autocast should be torch.bfloat16, torch.float16 or None, got {autocast!r}")


def check_path(name: str, given: Any) -> None:
    """Raises TypeError for what is no path."""
    if not isinstance(given, str) and not hasattr(given, "__fspath__"):
        raise TypeError(f"{name} should be a path, got {given!r}")


def device(name: str, given: Any) -> torch.device:
    """A device that a model can be put on. Errors: ValueError for one that is not there, among them "meta", where a
    model would lose its weights; TypeError for what is no device."""
    if not isinstance(given, (str, int, torch.device)) or isinstance(given, bool):
        raise TypeError(f'{name} should be a torch.device or a text such as "cpu" or "cuda:0", got {given!r}')
    try:
        found = torch.device(given)
    except RuntimeError as error:
        raise ValueError(f'{name} should be a device such as "cpu" or "cuda:0", got {given!r}') from error
    if found.type == "meta":
        raise ValueError(f"{name} should be one that holds values, got {given!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ValueError(f"{name} should be there, got {str(found)!r}: torch sees {there} CUDA device(s)")
    return found
