"""Empty modules for what other libraries import and never call in an attack.

MadryLab/robustness wants dill, cox and pandas for its training loop, adv-lib a plotting server, foolbox git for its
model zoo; some of that no longer installs. A stand-in is there during the import only: left behind it would make
others believe that pandas, say, is installed.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

NEEDS = {
    "robustness": ("dill", "cox", "cox.utils", "cox.store", "pandas", "tqdm", "PIL", "PIL.Image", "tensorboardX"),
    "foolbox": ("git", "requests"),
    "adv_lib": ("visdom", "tqdm"),
    "torchattacks": ("requests",),
}


class _StandIn(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        # a package, and one with a specification: others look for it there meanwhile
        self.__path__: list[str] = []
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, attribute: str) -> type:
        if attribute.startswith("__"):  # what the import system asks for is really not there
            raise AttributeError(attribute)
        return type(attribute, (), {})


@contextmanager
def stand_ins(names: tuple[str, ...]) -> Iterator[None]:
    """Within it, importing one of ``names`` that is not installed gives an empty module."""
    absent = {root for root in (n.split(".")[0] for n in names) if root not in sys.modules and not _installed(root)}
    made = [name for name in names if name.split(".")[0] in absent]
    for name in made:
        sys.modules[name] = _StandIn(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


def load(module: str) -> types.ModuleType:
    """Imports a module of another library, with stand-ins for what is missing and not needed. Errors: ImportError."""
    with stand_ins(NEEDS.get(module.split(".")[0], ())):
        return importlib.import_module(module)


def _installed(root: str) -> bool:
    return importlib.util.find_spec(root) is not None
