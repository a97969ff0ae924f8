"""Clean and robust accuracy, each with its sample size, its 95 % interval and the settings of the attack behind it."""

from advfeat.evaluation.given import pgd_attack, strong_attack
from advfeat.evaluation.measure import accuracy, evaluate, label_agreement
from advfeat.evaluation.results import Evaluation, Robustness

__all__ = ["Evaluation", "Robustness", "accuracy", "evaluate", "label_agreement", "pgd_attack", "strong_attack"]
