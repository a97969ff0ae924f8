"""The steps that several experiments share: the paper's six models and four sets at a preset and a seed."""

from __future__ import annotations

import dataclasses

import torch

from advfeat.attacks import Ensemble
from advfeat.datasets.recipes import MatchRepresentation, Recipe
from advfeat.evaluation import default_attack
from advfeat.experiments.lab import Lab
from advfeat.experiments.presets import SETS, Preset
from advfeat.experiments.result import Cell, Number
from advfeat.experiments.steps import Constructed, Data, DataStep, Evaluated, Trained
from advfeat.objectives import CW, Margin
from advfeat.seeds import derive_seed
from advfeat.training import TrainConfig

MODELS = ("standard", "adversarial", *SETS)
TITLES = {"robust": "D_R", "nonrobust": "D_NR", "rand": "D_rand", "det": "D_det"}
LABELS = {"standard": "D", "adversarial": "D, adversarially", **TITLES}


def data(p: Preset, split: str = "train", *, limit: int | None = None) -> Data:
    """D, or its test set; of the preset's size unless told."""
    return Data(p.dataset, split, limit or (p.limit if split == "train" else p.test_limit), size=p.size, label="D")


def trained(
    p: Preset, on: DataStep, config: TrainConfig, label: str, seed: int, *, test: DataStep | None = None
) -> Trained:
    """A model on any data, tested on the true test set; its weights and order are its own by label and seed."""
    config = config.replace(seed=derive_seed(seed, "model", label))
    return Trained(on, test or data(p, "test"), config, label=label)


def model(p: Preset, key: str, seed: int) -> Trained:
    """One of the six models. Each has its own initial weights and order: D_det's is a fresh one, not the standard
    model's twin."""
    config = {"standard": p.standard, "adversarial": p.adversarial}.get(key) or p.on[key]
    on = data(p) if key in ("standard", "adversarial") else constructed(p, key, seed)
    config = config.replace(seed=100 * seed + MODELS.index(key))
    return Trained(on, data(p, "test"), config, label=LABELS[key])


def constructed(
    p: Preset,
    key: str,
    seed: int,
    *,
    recipe: Recipe | None = None,
    source: Trained | None = None,
    of: str = "train",
    label: str = "",
) -> Constructed:
    """One of the four sets; with another recipe, source model or split where given."""
    recipe = recipe or p.recipes[key]
    source = source or model(p, "adversarial" if recipe.source_model == "robust" else "standard", seed)
    label = label or TITLES[key] + (" of the test set" if of == "test" else "")
    return Constructed(recipe, source, data(p, of), seed, p.batch_size, p.amp, p.dtype, label=label)


def from_noise(p: Preset, key: str) -> MatchRepresentation:
    """The recipe of D_R or D_NR that starts from noise."""
    return dataclasses.replace(p.recipes[key], start="noise", steps=p.noise_steps)


def attack(p: Preset, eps: float) -> Ensemble:
    """The evaluation's attack: PGD on the smooth margin, which is the paper's cross-entropy without its saturation, and
    where that fails on the difference to the strongest other class, the loss of Carlini and Wagner. A sample is left
    once it is broken. What only low precision took for a success is attacked again without it, see
    :mod:`advfeat.evaluation`."""
    autocast = torch.bfloat16 if p.amp == "bf16" else None
    return two_losses(eps, p.attack_steps).replace(stop="success", autocast=autocast)


def two_losses(eps: float, steps: int) -> Ensemble:
    """PGD on the smooth margin, then on the loss of Carlini and Wagner."""
    return Ensemble(tuple(default_attack(eps, steps=steps, objective=objective) for objective in (Margin(1.0), CW())))


def describe_attack(p: Preset) -> str:
    """The evaluation's attack in words."""
    return (
        f"{p.attack_steps} steps of 2.5 × radius / {p.attack_steps} on the smooth margin (the direction of "
        "cross-entropy), and as many on the loss of Carlini and Wagner for what that left standing"
    )


def evaluated(
    p: Preset,
    of: Trained,
    *,
    on: DataStep | None = None,
    radii: tuple[float, ...] | None = None,
    limit: int | None = None,
) -> Evaluated:
    """Accuracy and robust accuracy at the preset's radii, on the true test set unless told."""
    attacks = tuple(attack(p, eps) for eps in (p.radii if radii is None else radii))
    return Evaluated(of, on or data(p, "test"), attacks, limit, label=of.label)


def clean(outcomes: list[dict]) -> Number:
    """Accuracy at each seed from outcomes of :class:`Evaluated`."""
    return Number.of(outcome["clean"] for outcome in outcomes)


def robust(outcomes: list[dict], i: int) -> Number:
    """Robust accuracy at each seed under the i-th attack."""
    return Number.of(outcome["robust"][i] for outcome in outcomes)


def at_every_radius(p: Preset, outcomes: list[dict]) -> list[Number]:
    """Robust accuracy at each of the preset's radii."""
    return [robust(outcomes, i) for i in range(len(p.radii))]


def at_radii(p: Preset, numbers: list[Number], paper: dict[float, float | None]) -> list[Cell]:
    """Cells of robust accuracy, beside the paper's where it has one at the same radius, which means something only for
    images of the same size."""
    if not p.dataset.startswith("cifar10"):
        paper = {}
    return [Cell(number, paper.get(eps)) for eps, number in zip(p.radii, numbers, strict=True)]


def guessing(lab: Lab, p: Preset) -> float:
    """The accuracy of guessing, in per cent."""
    return 100 / len(lab.open(data(p, "test")).classes)


def follows(outcomes: list[dict]) -> Number:
    """How often the class after the label is predicted, at each seed."""
    return Number.of(outcome["next"] for outcome in outcomes)


def outcomes(lab: Lab, steps: list[Evaluated]) -> list[dict]:
    """What was measured, one a seed."""
    return [lab.open(step) for step in steps]
