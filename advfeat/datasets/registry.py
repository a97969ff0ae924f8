"""The registry of named data sets, which loading, building and the command line share.

Imports neither torch nor any other slow module, so that ``advfeat --help`` can read it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

# The presets of recipes, whose settings are advfeat.datasets.recipes.PRESETS.
PresetName = Literal[
    "cifar10",
    "restricted-imagenet",
    "digits",
    "cifar10-cpu",
    "cifar10-fast",
    "restricted-imagenet-fast",
    "digits-fast",
    "cifar10-cpu-fast",
]
PRESET_NAMES: tuple[str, ...] = get_args(PresetName)


@dataclass(frozen=True)
class DataSet:
    """A data set that :func:`advfeat.datasets.load` knows by name.

    Attributes:
        name: The name.
        title: Its spelling in reports; empty for the name itself.
        needs_root: Whether it is read from the user's files, so that ``root`` is required.
        options: Those of ``size``, ``channels``, ``holdout`` and ``class_ranges`` that apply to it.
        preset: Its default preset of recipes; None if a build has to name one.
        of_the_paper: Whether the paper reports numbers on it, so that results can be compared.
    """

    name: str
    title: str = ""
    needs_root: bool = True
    options: tuple[str, ...] = ()
    preset: PresetName | None = None
    of_the_paper: bool = False


DATA_SETS: dict[str, DataSet] = {
    each.name: each
    for each in (
        DataSet("digits", "scikit-learn's digits", needs_root=False, preset="digits"),
        DataSet("planted", needs_root=False, options=("size",)),
        DataSet("cifar10", "CIFAR-10", preset="cifar10", of_the_paper=True),
        DataSet("cifar10.1"),
        DataSet("fashion-mnist", "Fashion-MNIST"),
        DataSet("mnist", "MNIST"),
        DataSet("folder", options=("size", "channels", "holdout", "class_ranges")),
        DataSet("restricted-imagenet", options=("size", "channels"), preset="restricted-imagenet", of_the_paper=True),
    )
}
NAMES = tuple(DATA_SETS)
WITHOUT_ROOT = tuple(name for name, each in DATA_SETS.items() if not each.needs_root)
_OTHER = DataSet("", needs_root=False)  # a path, or the user's own data set


def known(name: Any) -> DataSet:
    """Return the entry of a data set; a path or an unknown name has an entry without root and options.

    Args:
        name: Name or path of the data set.
    """
    return DATA_SETS.get(str(name), _OTHER)


def takes(name: Any, option: str) -> bool:
    """Whether :func:`advfeat.datasets.load` takes an option for a data set.

    Args:
        name: Name or path of the data set.
        option: "size", "channels", "holdout" or "class_ranges".
    """
    return option in known(name).options


def not_taken(option: str, names: Iterable[str], given: Any) -> str:
    """The message for an option that a data set does not take.

    Args:
        option: The option as the user wrote it, such as ``size`` or ``--size``.
        names: The data sets that do not take it.
        given: The value given.
    """
    plain = option.lstrip("-").replace("-", "_")
    takers = [name for name in NAMES if takes(name, plain)]
    return f"{option} should be left out for {listed(names)}: it is for {listed(takers)}, got {given!r}"


def listed(names: Iterable[str]) -> str:
    """Names as a phrase: "a, b and c".

    Args:
        names: The names, at least one.
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
