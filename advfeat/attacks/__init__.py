"""Attacks: projected gradient descent on any torch model, and the engine that runs it."""

from advfeat.attacks.pgd import PGD
from advfeat.attacks.result import AttackResult

__all__ = ["PGD", "AttackResult"]
