"""Checks and conversions of single arguments, with errors that name them: numbers, flags, texts, paths, devices."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch


def whole_number(name: str, given: Any, least: int | None = 1) -> int:
    """An integer of any kind, NumPy's too, as a Python int.

    Args:
        name: the name of the argument.
        given: the value.
        least: the smallest allowed value; None for no limit.

    Returns:
        The integer.

    Raises:
        ValueError: it is not an integer, or below ``least``.
    """
    try:
        value = None if isinstance(given, bool) else operator.index(given)
    except TypeError:
        value = None
    if value is None or (least is not None and value < least):
        wanted = "an integer" if least is None else f"an integer, at least {least}"
        raise ValueError(f"{name} should be {wanted}, got {given!r}")
    return value


def number(name: str, given: Any) -> float:
    """A number of any kind, including NumPy's and a tensor of one value, as a Python float.

    Args:
        name: the name of the argument.
        given: the value.

    Returns:
        The number.

    Raises:
        TypeError: it is anything else, including text such as "0.1" and True.
    """
    if type(given) in (int, float):
        return given
    if not isinstance(given, (bool, str, bytes)) and math.prod(getattr(given, "shape", ())) == 1:
        try:
            return float(given)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(f"{name} should be a number, got {given!r}")


def numbers(name: str, given: Any) -> tuple[float, ...]:
    """Finite numbers as a tuple.

    Args:
        name: the name of the argument.
        given: a list, a tuple, an array or a tensor [k].

    Returns:
        The numbers.

    Raises:
        TypeError: it is not a list of numbers.
        ValueError: it holds NaN or infinity.
    """
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} should be a list of numbers, got {given!r}")
    found = tuple(number(f"{name}[{i}]", value) for i, value in enumerate(given))
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name} should be finite numbers, got {given!r}")
    return found


def image_shape(name: str, given: Any) -> tuple[int, int, int]:
    """The shape of an image, (channels, height, width).

    Args:
        name: the name of the argument.
        given: a sequence of three integers of at least 1.

    Returns:
        The shape.

    Raises:
        TypeError: it is not a sequence.
        ValueError: it is another sequence.
    """
    wanted = f"{name} should be (channels, height, width)"
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{wanted}, got {given!r}")
    given = tuple(given)
    if len(given) != 3:
        raise ValueError(f"{wanted}, got {given}")
    try:
        channels, height, width = (whole_number(name, side) for side in given)
        return channels, height, width
    except ValueError as error:
        raise ValueError(f"{wanted}, three integers of at least 1, got {given}") from error


def flag(name: str, given: Any) -> bool:
    """True or False, NumPy's too, as a Python bool.

    Args:
        name: the name of the argument.
        given: the value.

    Returns:
        The flag.

    Raises:
        TypeError: it is anything else; text such as "no" would otherwise count as true.
    """
    if isinstance(given, bool):
        return given
    try:  # NumPy's, or a tensor of one value
        value = given.item()
    except (AttributeError, ValueError, RuntimeError):
        value = None
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be True or False, got {given!r}")
    return value


def meant(given: Any, options: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """A hint at the option that a misspelt text may mean, to be appended to a message.

    Args:
        given: the text.
        options: the valid options.
        others: other names of options, mapped to the options.

    Returns:
        The hint, or "" for none.
    """
    names = {_plain(option): option for option in options}
    names |= {_plain(other): option for other, option in (others or {}).items()}
    near = difflib.get_close_matches(_plain(given), names, n=1) if isinstance(given, str) else []
    return f"; did you mean {names[near[0]]}?" if near else ""


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def check_autocast(autocast: Any) -> None:
    """Checks the dtype of an autocast.

    Args:
        autocast: torch.bfloat16, torch.float16 or None.

    Raises:
        TypeError: it is anything else.
    """
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise TypeError(f"autocast should be torch.bfloat16, torch.float16 or None, got {autocast!r}")


def check_path(name: str, given: Any) -> None:
    """Checks that an argument is a path.

    Args:
        name: the name of the argument.
        given: the value.

    Raises:
        TypeError: it is neither text nor a path object.
    """
    if not isinstance(given, str) and not hasattr(given, "__fspath__"):
        raise TypeError(f"{name} should be a path, got {given!r}")


def device(name: str, given: Any) -> torch.device:
    """A device on which a model can run.

    Args:
        name: the name of the argument.
        given: a torch.device, or a text such as "cpu" or "cuda:0".

    Returns:
        The device.

    Raises:
        TypeError: it is not a device.
        ValueError: the device is not available, or is "meta", where a model would lose its weights.
    """
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
        raise ValueError(f"{name} should be available, got {str(found)!r}: torch sees {there} CUDA device(s)")
    return found
