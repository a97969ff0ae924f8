"""Robust and non-robust features: fast, exact adversarial attacks, data sets, training, evaluation and theory.

The data sets are those of "Adversarial Examples Are Not Bugs, They Are Features" (Ilyas et al., NeurIPS 2019).

``advfeat.ops`` and ``advfeat.attacks`` need only torch. Everything is imported on first use, so that ``advfeat --help``
need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from advfeat import _moved
from advfeat._version import __version__

if TYPE_CHECKING:
    from advfeat import ops
    from advfeat._build_info import build_config
    from advfeat.attacks import (
        APGD,
        DDN,
        FAB,
        FMN,
        PGD,
        Attack,
        AttackResult,
        Auto,
        AutoAttack,
        Converged,
        Ensemble,
        RadiusSearch,
        Square,
    )
    from advfeat.models import bpda
    from advfeat.objectives import CW, DLR, CrossEntropy, Margin, Objective, Representation, TargetedDLR
    from advfeat.threat import L1, L2, Linf, Threat

__all__ = [
    "APGD",
    "CW",
    "DDN",
    "DLR",
    "FAB",
    "FMN",
    "L1",
    "L2",
    "PGD",
    "Attack",
    "AttackResult",
    "Auto",
    "AutoAttack",
    "Converged",
    "CrossEntropy",
    "Ensemble",
    "Linf",
    "Margin",
    "Objective",
    "RadiusSearch",
    "Representation",
    "Square",
    "TargetedDLR",
    "Threat",
    "__version__",
    "bpda",
    "build_config",
    "ops",
]

_MODULES = (
    "attacks",
    "compat",
    "datasets",
    "evaluation",
    "features",
    "models",
    "objectives",
    "ops",
    "report",
    "theory",
    "threat",
    "training",
)
_WHERE = {
    **dict.fromkeys(
        (
            "APGD",
            "DDN",
            "FAB",
            "FMN",
            "PGD",
            "Attack",
            "AttackResult",
            "Auto",
            "AutoAttack",
            "Converged",
            "Ensemble",
            "RadiusSearch",
            "Square",
        ),
        "attacks",
    ),
    **dict.fromkeys(
        ("CW", "DLR", "CrossEntropy", "Margin", "Objective", "Representation", "TargetedDLR"), "objectives"
    ),
    **dict.fromkeys(("L1", "L2", "Linf", "Threat"), "threat"),
    "bpda": "models",
    "build_config": "_build_info",
}


_moved.install()


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"advfeat.{name}")
    if name in _WHERE:
        value = globals()[name] = getattr(importlib.import_module(f"advfeat.{_WHERE[name]}"), name)
        return value
    raise AttributeError(f"module 'advfeat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
