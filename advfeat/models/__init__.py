"""Models: small and CIFAR-style networks with a separate representation, adapters for a user's own, and model files."""

from advfeat.eval_mode import evaluating
from advfeat.models.attack_copy import attack_copy
from advfeat.models.averaged import Averaged, averaged
from advfeat.models.bpda import BPDA, bpda
from advfeat.models.io import load, load_extra, save
from advfeat.models.model import Adapted, Classifier, Model, adapt, check_fits, fingerprint
from advfeat.models.networks import archs, create
from advfeat.models.saved import SavedModel, describe

__all__ = [
    "BPDA",
    "Adapted",
    "Averaged",
    "Classifier",
    "Model",
    "SavedModel",
    "adapt",
    "archs",
    "attack_copy",
    "averaged",
    "bpda",
    "check_fits",
    "create",
    "describe",
    "evaluating",
    "fingerprint",
    "load",
    "load_extra",
    "save",
]
