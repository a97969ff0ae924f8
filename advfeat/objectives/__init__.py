"""Objectives that an attack maximises (untargeted) or minimises (targeted): one value per sample.

An objective is larger the further a sample is from its target. It is one method, ``value(model, x, target) -> [B]``,
and may call the model as it likes; the attack takes the predictions from the call on the iterate itself, or from the
only call, so a custom objective costs no second forward pass.
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
