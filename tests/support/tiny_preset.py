"""A preset as small as it goes, for tests that run whole experiments on sixty digits, and a folder to run them in."""

from __future__ import annotations

import contextlib
import dataclasses

from advfeat.experiments import presets
from advfeat.experiments.presets import SETS, Preset
from advfeat.experiments.workspace import Workspace
from advfeat.training import paper_attack


def tiny_preset(**changes) -> Preset:
    digits = presets.preset("digits")
    small = digits.standard.replace(epochs=1, width=4)
    recipes = {key: dataclasses.replace(recipe, steps=2) for key, recipe in digits.recipes.items()}
    settings = {
        "limit": 60,
        "test_limit": 40,
        "standard": small,
        "adversarial": small.replace(attack=paper_attack(0.75, steps=1)),
        "on": dict.fromkeys(SETS, small),
        "recipes": recipes,
        "others": {"wide": small.replace(width=6), "wider": small.replace(width=8)},
        "other": "wide",
        "attack_steps": 2,
        "strong_steps": 2,
        "noise_steps": 2,
        "sweep": (1, 2, 4),
        "sweep_limit": 20,
        "seeds": (0,),
    }
    return digits.replace(**(settings | changes))


@contextlib.contextmanager
def no_bar(title, unit):
    yield lambda done, total: None


def make_lab(path, **settings) -> Workspace:
    return Workspace(path, bar=no_bar, device="cpu", **settings)
