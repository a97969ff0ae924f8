"""advfeat: robust and non-robust features. Fast, exact attack steps; the data sets of "Adversarial Examples Are Not
Bugs, They Are Features" (Ilyas et al., NeurIPS 2019); training, evaluation and the theory.

``advfeat.ops`` and ``advfeat.attacks`` need torch alone; the rest is imported when it is asked for.
"""

from __future__ import annotations

import importlib

from advfeat import ops
from advfeat._build_info import build_config
from advfeat._version import __version__
from advfeat.attacks import APGD, PGD, Attack, AttackResult, Auto, Converged, Ensemble
from advfeat.objectives import CW, DLR, CrossEntropy, Margin, Objective, Representation, TargetedDLR
from advfeat.threat import L2, Linf

__all__ = [
    "APGD",
    "CW",
    "DLR",
    "L2",
    "PGD",
    "Attack",
    "AttackResult",
    "Auto",
    "Converged",
    "CrossEntropy",
    "Ensemble",
    "Linf",
    "Margin",
    "Objective",
    "Representation",
    "TargetedDLR",
    "__version__",
    "build_config",
    "ops",
]

_MODULES = ("compat", "datasets", "evaluation", "features", "models", "report", "theory", "training")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"advfeat.{name}")
    raise AttributeError(f"module 'advfeat' has no attribute {name!r}")
