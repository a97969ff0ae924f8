"""A schema check for JSON values, where the schema is a value of the same form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

SHA256 = re.compile(r"[0-9a-f]{64}")
_DEEPEST = 100
_WORDS: dict[object, str] = {
    str: "a text",
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    None: "null",
}


def check_fields(value: object, form: object, name: str = "") -> None:
    """Checks that a value has the expected form.

    Args:
        value: the value.
        form: a type (str, int, float for any finite number, bool, dict, list; object for anything); a compiled pattern,
            for text that it matches fully; a range, for the integers in it; a tuple of alternatives, which may include
            None; ``[form]`` for a list; ``{"key": form, "optional?": form}`` for an object that may have more keys;
            ``{str: form}`` for an object with any keys.
        name: the key of the value, for the message.

    Raises:
        ValueError: the value has another form; the message names its key.
    """
    if isinstance(form, dict) and isinstance(value, dict):
        if str in form:
            for key, item in value.items():
                check_fields(item, form[str], _join(name, key))
            return
        for key, of_key in form.items():
            bare = key.removesuffix("?")
            if bare in value:
                check_fields(value[bare], of_key, _join(name, bare))
            elif bare == key:
                raise ValueError(f"{_join(name, key)} is missing")
        return
    if isinstance(form, list) and isinstance(value, list):
        for i, item in enumerate(value):
            check_fields(item, form[0], f"{name}[{i}]")
        return
    options = form if isinstance(form, tuple) else (form,)
    for option in options:
        if isinstance(option, (dict, list)) and type(value) is type(option):
            return check_fields(value, option, name)
        if _is(value, option):
            return
    raise ValueError(f"{name or 'it'} should be {' or '.join(map(_said, options))}, got {_short(value)}")


def check_depth(value: object) -> None:
    """Checks that values are not nested so deeply that recursive code would end in a RecursionError.

    Args:
        value: the value.

    Raises:
        ValueError: they are.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        level = [item for outer in level for item in _inside(outer)]


def _inside(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _is(value: object, form: object) -> bool:
    if form is None:
        return value is None
    if form is object:
        return True
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if isinstance(form, range):
        return type(value) is int and value in form
    if form is float:
        return isinstance(value, (int, float)) and type(value) in (int, float) and math.isfinite(value)
    return type(value) is form


def _said(form: object) -> str:
    if isinstance(form, re.Pattern):
        return "64 hexadecimal digits" if form is SHA256 else f"a text like {form.pattern}"
    if isinstance(form, range):
        return f"an integer from {form.start}" + (f" to {form.stop - 1}" if form.stop < 2**53 else "")
    return _WORDS[type(form) if isinstance(form, (dict, list)) else form]


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
