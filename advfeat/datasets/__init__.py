"""Data sets: loaded by name, constructed by a recipe, opened from their folder.

    from advfeat import datasets

    d = datasets.load("digits")                             # a data set by name, here scikit-learn's
    made = datasets.build("det", model, d, "sets/det")      # D_det from d, built with a model
    made = datasets.open("sets/det")                        # the same set, read from its folder

All of them are instances of :class:`Source`, which is a ``torch.utils.data.Dataset`` of (image, label). The names below
are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advfeat.datasets.base import ArraySource, Source
    from advfeat.datasets.building import build
    from advfeat.datasets.constructed import ConstructedSet
    from advfeat.datasets.exchange import export_folder, export_lists, import_lists
    from advfeat.datasets.folder import FolderSource
    from advfeat.datasets.planted import Planted, PlantedConfig
    from advfeat.datasets.protocol import Data, LabelledImages
    from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget, Recipe, preset
    from advfeat.datasets.sources import load

    open = ConstructedSet.open

# Without "open": from advfeat.datasets import * would shadow the built-in open.
__all__ = [
    "ArraySource",
    "ConstructedSet",
    "Data",
    "FolderSource",
    "LabelledImages",
    "MatchRepresentation",
    "PerturbTowardsTarget",
    "Planted",
    "PlantedConfig",
    "Recipe",
    "Source",
    "build",
    "export_folder",
    "export_lists",
    "import_lists",
    "load",
    "preset",
]

_WHERE = {
    "ArraySource": "base",
    "ConstructedSet": "constructed",
    "Data": "protocol",
    "FolderSource": "folder",
    "LabelledImages": "protocol",
    "MatchRepresentation": "recipes",
    "PerturbTowardsTarget": "recipes",
    "Planted": "planted",
    "PlantedConfig": "planted",
    "Recipe": "recipes",
    "Source": "base",
    "build": "building",
    "export_folder": "exchange",
    "export_lists": "exchange",
    "import_lists": "exchange",
    "load": "sources",
    "preset": "recipes",
}


def __getattr__(name: str) -> Any:
    if name == "open":
        return __getattr__("ConstructedSet").open
    if name in _WHERE:
        value = globals()[name] = getattr(importlib.import_module(f"advfeat.datasets.{_WHERE[name]}"), name)
        return value
    raise AttributeError(f"module 'advfeat.datasets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "open"})
