"""Modules under the names that they had before version 0.1.0, which lead to where they are now, for one release."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

MOVED = {
    "advfeat.augment": "advfeat.training.augment",
    "advfeat.batches": "advfeat.training.batches",
    "advfeat.checkpoint": "advfeat.training.checkpoint",
    "advfeat.datasets.build": "advfeat.datasets.building",
    "advfeat.schedules": "advfeat.training.schedules",
    "advfeat.seeds": "advfeat.random",
    "advfeat.train_config": "advfeat.training.config",
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the old names; the last in line, so that no other import waits for it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = MOVED.get(fullname)
        return None if new is None else importlib.machinery.ModuleSpec(fullname, _Loader(fullname, new))


class _Loader(importlib.abc.Loader):
    """Gives the module that is there under its new name."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(
            f"{self._old} is now {self._new}; the old name goes with the next release", FutureWarning, stacklevel=2
        )
        module = importlib.import_module(self._new)
        if self._old == "advfeat.datasets.build":
            # A submodule becomes an attribute of its package, where the function of this name has to stay.
            function: Any = vars(module)["build"]
            function.build = function
            return cast(ModuleType, function)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module's own spec back, which importing it under another name has replaced."""
        if self._spec is not None:
            module.__spec__ = self._spec


def install() -> None:
    """Makes the old names importable."""
    sys.meta_path.append(_Finder())
