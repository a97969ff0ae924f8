"""What is known of a data set by its name: the one list of names that loading, building and the command line ask.

Imports neither torch nor anything else that is slow, so that ``advfeat --help`` can ask it too.
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
        needs_root: Whether it lies in files of the user's, so that ``root`` has to be given.
        options: Which of ``size``, ``channels``, ``holdout`` and ``class_ranges`` it takes.
        preset: The preset of recipes that was made for it; None if a build has to name one.
        of_the_paper: Whether numbers measured on it can be compared with those of the paper.
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
_OTHER = DataSet("", needs_root=False)  # a path, or a data set of the user's own


def known(name: Any) -> DataSet:
    """What is known of a data set; of a path, or of a data set of another name, that it takes no root and no option.

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
        option: As it is spelt where it was given, such as ``size`` or ``--size``.
        names: Of the data sets that do not take it.
        given: Its value.
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
