"""The experiments by name, in the order of ``advfeat reproduce all``: those that others build on come first."""

from __future__ import annotations

import difflib

from advfeat.experiments.discussion import leakage_control
from advfeat.experiments.experiment import Experiment
from advfeat.experiments.paper import (
    cats_vs_dogs,
    cifar10_1,
    cross_architecture,
    figure2,
    figure3,
    figure8,
    main_experiment,
    released,
    restricted_imagenet,
    sensitivity,
    table1,
    table7,
    table8,
    table9,
    table10,
)

_MODULES = (
    table1,
    figure2,
    table9,
    table10,
    leakage_control,
    table8,
    figure8,
    cats_vs_dogs,
    cross_architecture,
    sensitivity,
    figure3,
    table7,
    released,
    cifar10_1,
    restricted_imagenet,
)
EXPERIMENTS: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in _MODULES}
MAIN = main_experiment.EXPERIMENT
# A figure that is produced by the experiment of another table or figure.
ALIASES = {"figure10": "table9", "figure13": "figure3", "figure12": "restricted-imagenet"}


def experiment(name: str) -> Experiment:
    """Look up an experiment.

    Args:
        name: Name or alias.

    Returns:
        The experiment.

    Raises:
        ValueError: Listing the names, if there is no such experiment.
    """
    found = EXPERIMENTS.get(ALIASES.get(name, name))
    if found is None:
        names = (*EXPERIMENTS, *ALIASES)
        near = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown experiment {name!r}: should be {', '.join(names)}, or all{hint}")
    return found
