"""What an attack pushes up (untargeted) or down (targeted): one number a sample, larger when further from the target.

An objective is one method, ``value(model, x, target) -> [B]``. It may call the model as it likes; the attack reads the
predictions off the model's last call, so a custom objective costs no second forward pass.
"""

from __future__ import annotations

from advfeat.objectives.base import Objective, are_labels, wide
from advfeat.objectives.functions import Function, as_objective
from advfeat.objectives.logits import CW, DLR, CrossEntropy, Margin, TargetedDLR
from advfeat.objectives.representation import Representation

__all__ = [
    "CW",
    "DLR",
    "CrossEntropy",
    "Function",
    "Margin",
    "Objective",
    "Representation",
    "TargetedDLR",
    "are_labels",
    "as_objective",
    "wide",
]
