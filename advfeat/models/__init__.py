"""Models: small and CIFAR-style networks with a representation apart from the head, a user's own, and files."""

from advfeat.models.folded import folded
from advfeat.models.io import load, load_extra, save
from advfeat.models.model import Adapted, Classifier, Model, adapt, check_fits, fingerprint
from advfeat.models.modes import evaluating
from advfeat.models.networks import archs, create

__all__ = [
    "Adapted",
    "Classifier",
    "Model",
    "adapt",
    "archs",
    "check_fits",
    "create",
    "evaluating",
    "fingerprint",
    "folded",
    "load",
    "load_extra",
    "save",
]
