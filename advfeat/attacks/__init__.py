"""Attacks on any torch model: projected gradient descent, Auto-PGD, and the engine that runs them."""

from advfeat.attacks.apgd import APGD
from advfeat.attacks.auto import Auto
from advfeat.attacks.autoattack import AutoAttack
from advfeat.attacks.base import Attack
from advfeat.attacks.convergence import Converged
from advfeat.attacks.ddn import DDN
from advfeat.attacks.ensemble import Ensemble
from advfeat.attacks.fab import FAB
from advfeat.attacks.fmn import FMN
from advfeat.attacks.pgd import PGD
from advfeat.attacks.radius_search import RadiusSearch
from advfeat.attacks.result import AttackResult
from advfeat.attacks.square import Square

__all__ = [
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
]
