"""Theorems 1-3 of Ilyas et al. 2019 (Section 4, Appendix E): computed, checked and plotted. See docs/theory.md.

    task = GaussianTask(mean, covariance)                  two Gaussians, exact clean and robust accuracy
    vulnerability(task, c)                                 Theorem 1
    robust_parameters(task, eps).learned                   Theorem 2
    worst_cosine(task), worst_mean(task)                   Theorem 3
    train_population(task, eps), train_on_samples(x, eps)  adversarial training; its limit is Theorem 2's parameters

Everything is float64 on numpy and scipy; only ``train_on_samples`` imports torch, and only ``figures`` imports
matplotlib.
"""

from .adversarial_training import Trained, train_on_samples, train_population
from .exact import ExactParameters, RelaxationGap, exact_parameters, exact_parameters_by_sampling, relaxation_gap
from .gaussian import GaussianTask, worst_perturbation
from .separable import EllipsePair, Linear, hard_margin, standard_classifiers, train_logistic
from .theorem1 import (
    CONVENTIONS,
    isotropic_minimum,
    penalised_move,
    penalised_vulnerability,
    vulnerability,
    vulnerability_by_optimiser,
    vulnerability_by_sampling,
)
from .theorem2 import Bounds, RobustParameters, paper_bounds, prior_bounds, relaxed_loss, robust_parameters
from .theorem3 import cosine, worst_cosine, worst_cosine_by_optimiser, worst_mean
from .trust_region import worst_move

__all__ = [
    "CONVENTIONS",
    "Bounds",
    "EllipsePair",
    "ExactParameters",
    "GaussianTask",
    "Linear",
    "RelaxationGap",
    "RobustParameters",
    "Trained",
    "cosine",
    "exact_parameters",
    "exact_parameters_by_sampling",
    "hard_margin",
    "isotropic_minimum",
    "paper_bounds",
    "penalised_move",
    "penalised_vulnerability",
    "prior_bounds",
    "relaxation_gap",
    "relaxed_loss",
    "robust_parameters",
    "standard_classifiers",
    "train_logistic",
    "train_on_samples",
    "train_population",
    "vulnerability",
    "vulnerability_by_optimiser",
    "vulnerability_by_sampling",
    "worst_cosine",
    "worst_cosine_by_optimiser",
    "worst_mean",
    "worst_move",
    "worst_perturbation",
]
