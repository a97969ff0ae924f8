"""Clean and robust accuracy, with sample sizes, 95 % confidence intervals and the settings of each attack."""

from advfeat.evaluation.agreement import label_agreement
from advfeat.evaluation.breakdown import AfterAttack
from advfeat.evaluation.curve import RobustnessCurve
from advfeat.evaluation.given import pgd_attack, strong_attack
from advfeat.evaluation.measure import accuracy, evaluate
from advfeat.evaluation.nearest import curve_attack, robustness_curve
from advfeat.evaluation.results import Evaluation, Examples, Robustness
from advfeat.evaluation.verdict import Finding, Verdict, verdict

__all__ = [
    "AfterAttack",
    "Evaluation",
    "Examples",
    "Finding",
    "Robustness",
    "RobustnessCurve",
    "Verdict",
    "accuracy",
    "curve_attack",
    "evaluate",
    "label_agreement",
    "pgd_attack",
    "robustness_curve",
    "strong_attack",
    "verdict",
]
