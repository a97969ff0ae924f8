"""Comparison of class names: a label is only a number, and two data sets may number their classes differently."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from torch.nn import Module

_NUMBERED = re.compile(r"0*(\d+)_+(.+)")


def check_same_classes(
    first: Sequence[str] | None, first_name: str, second: Sequence[str] | None, second_name: str
) -> None:
    """Checks that the classes of two data sets, or of a model and a data set, agree.

    Names that differ only in case, in spaces and punctuation, or in the numbers that
    :func:`advfeat.datasets.export_folder` prepends are equal; signs such as + and # distinguish classes, and so do
    accents and vowel signs.

    Args:
        first: class names by label; None if unknown, which passes.
        first_name: the owner of ``first``, as in "the model".
        second: like ``first``.
        second_name: the owner of ``second``, as in "data set 'digits'".

    Raises:
        ValueError: the classes differ; the message names those that differ or are in another order.
    """
    if first is None or second is None or tuple(first) == tuple(second):
        return
    first, second = tuple(map(str, first)), tuple(map(str, second))
    plain_first, plain_second = _plain(first), _plain(second)
    if len(set(plain_first)) < len(first) or len(set(plain_second)) < len(second):
        plain_first, plain_second = first, second  # some names differ only in punctuation
    if plain_first == plain_second:
        return
    only_first = [name for name, plain in zip(first, plain_first, strict=True) if plain not in plain_second]
    only_second = [name for name, plain in zip(second, plain_second, strict=True) if plain not in plain_first]
    if only_first or only_second:
        what = (
            f"{first_name} and {second_name} should have the same classes: {_listed(only_first)} only in the former, "
            f"{_listed(only_second)} only in the latter"
        )
    else:
        moved = [i for i in range(len(first)) if plain_first[i] != plain_second[i]]
        what = (
            f"{first_name} and {second_name} number the same classes differently: label {moved[0]} is "
            f"{first[moved[0]]!r} in the former, {second[moved[0]]!r} in the latter ({len(moved)} of {len(first)} "
            "differ)"
        )
    if len(first) != len(second):
        raise ValueError(f"{what} ({len(first)} and {len(second)} classes)")
    raise ValueError(
        f"{what}. Classes are compared by name, since a label is only a number; where the numbers mean the same under "
        "other names, same_classes=True (--same-classes) accepts them"
    )


def class_names(model: object) -> tuple[str, ...] | None:
    """The names of a model's classes by label.

    Args:
        model: the model.

    Returns:
        The names; None if the model has none.
    """
    names = known(model, "classes")
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def known(model: object, name: str) -> Any:
    """An attribute of a model, also of one inside DataParallel, AveragedModel or ``models.averaged``.

    Args:
        model: the model.
        name: the attribute.

    Returns:
        The attribute, or None.
    """
    if hasattr(model, name):
        return getattr(model, name)
    inside = (getattr(model, wrapper, None) for wrapper in ("module", "model"))
    return next((known(module, name) for module in inside if isinstance(module, Module)), None)


def _plain(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names without case, punctuation and a leading number that only gives the position."""
    plain = tuple(_spelled(name) or name for name in names)
    numbered = [match for name in plain if (match := _NUMBERED.fullmatch(name))]
    if len(numbered) == len(plain) and all(int(match[1]) == i for i, match in enumerate(numbered)):
        return tuple(match[2] for match in numbered)
    return plain


def _spelled(name: str) -> str:
    """A name reduced to letters, marks, digits and symbols, with "_" for each run of anything else."""
    minus = "\N{MINUS SIGN}"  # the meaning of a hyphen before a number
    name = re.sub(r"^-(?=\d)", minus, unicodedata.normalize("NFC", name.casefold()))
    kept = (c if unicodedata.category(c)[0] in "LMNS" or c == "#" else "_" for c in name)
    return re.sub("_+", "_", "".join(kept)).strip("_")


def _listed(names: Sequence[str], most: int = 6) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
