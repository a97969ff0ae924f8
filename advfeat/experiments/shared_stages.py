"""Stages that several experiments share: the paper's six models and four sets at a preset and a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from advfeat.attacks import PGD, Ensemble
from advfeat.datasets.recipes import MatchRepresentation, Recipe
from advfeat.evaluation import pgd_attack, strong_attack
from advfeat.experiments.base import DataStage, Measurement, ModelStage
from advfeat.experiments.presets import SETS, Preset, matching
from advfeat.experiments.result import Cell, Number
from advfeat.experiments.stages import Constructed, Data, Evaluated, Trained
from advfeat.experiments.workspace import Workspace
from advfeat.objectives import Margin
from advfeat.random import derive_seed
from advfeat.training import TrainConfig

MODELS = ("standard", "adversarial", *SETS)
TITLES = {"robust": "D_R", "nonrobust": "D_NR", "rand": "D_rand", "det": "D_det"}
LABELS = {"standard": "D", "adversarial": "D, adversarially", **TITLES}


def data(p: Preset, split: Literal["train", "test"] = "train", *, limit: int | None = None) -> Data:
    """Return D or its test set.

    Args:
        p: The preset.
        split: "train" or "test".
        limit: Number of samples; None takes the preset's.
    """
    if limit is None:
        limit = p.limit if split == "train" else p.test_limit
    return Data(p.dataset, split, limit, size=p.size, label="D")


def trained(
    p: Preset, on: DataStage, config: TrainConfig, label: str, seed: int, *, test: DataStage | None = None
) -> Trained:
    """Return a model trained on any data and tested on the true test set.

    Initial weights and order are specific to label and seed.

    Args:
        p: The preset.
        on: Training data.
        config: Settings of the training.
        label: Name of the model.
        seed: Seed.
        test: Test data; None takes D's test set.
    """
    config = config.replace(seed=derive_seed(seed, "model", label))
    return Trained(on, test or data(p, "test"), config, label=label)


def model(p: Preset, key: str, seed: int) -> Trained:
    """Return one of the six models.

    Each has its own initial weights and order: D_det's model does not share those of the standard model.

    Args:
        p: The preset.
        key: One of ``MODELS``.
        seed: Seed.
    """
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
    source: ModelStage | None = None,
    of: Literal["train", "test"] = "train",
    label: str = "",
) -> Constructed:
    """Return one of the four sets.

    Args:
        p: The preset.
        key: One of ``SETS``.
        seed: Seed.
        recipe: Another recipe than the preset's.
        source: Another source model.
        of: Split of D that it is built from.
        label: Name of the set; by default its title.
    """
    recipe = recipe or p.recipes[key]
    source = source or model(p, "adversarial" if recipe.source_model == "robust" else "standard", seed)
    label = label or TITLES[key] + (" of the test set" if of == "test" else "")
    return Constructed(recipe, source, data(p, of), seed, p.batch_size, p.amp, p.dtype, label=label)


def from_noise(p: Preset, key: str) -> MatchRepresentation:
    """Return the recipe of D_R or D_NR that starts from noise.

    Args:
        p: The preset.
        key: "robust" or "nonrobust".
    """
    return dataclasses.replace(matching(p.recipes, key), start="noise", steps=p.noise_steps)


def attack(p: Preset, eps: float) -> Ensemble:
    """Return the attack that decides claims, :func:`advfeat.evaluation.strong_attack`.

    Successes that only occur in low precision are attacked again without it, see :mod:`advfeat.evaluation`.

    Args:
        p: The preset.
        eps: L2 radius in pixel scale [0, 1].
    """
    # Constant steps of PGD, as in the results that are published: another attack would be another measurement.
    return strong_attack(eps, steps=p.strong_steps, autocast=_autocast(p), schedule="constant")


def papers_attack(p: Preset, eps: float) -> PGD:
    """Return the attack for comparison with the paper's numbers.

    It is PGD in the direction of cross-entropy with steps of 2.5 eps / steps, as in the authors' library, and stops
    each sample at its first success.

    Args:
        p: The preset.
        eps: L2 radius in pixel scale [0, 1].
    """
    chosen = pgd_attack(eps, steps=p.attack_steps, objective=Margin(1.0), schedule="constant")
    return chosen.replace(stop="success", autocast=_autocast(p))


def _autocast(p: Preset) -> torch.dtype | None:
    return torch.bfloat16 if p.amp == "bf16" else None


def describe_strong(p: Preset) -> str:
    """Return a description of the strong attack.

    Args:
        p: The preset.
    """
    return (
        f"20 steps of PGD, then {p.strong_steps} steps of Auto-PGD on the margin and towards each other class (at most "
        "nine), each on the samples that remain unbroken (the first two attacks of AutoAttack)"
    )


def describe_attacks(p: Preset) -> str:
    """Return a description of both attacks.

    Args:
        p: The preset.
    """
    return (
        f"Robust accuracy, L2: {describe_strong(p)}. The paper's attack: PGD alone, {p.attack_steps} steps of 2.5 × "
        f"radius / {p.attack_steps} in the direction of cross-entropy"
    )


def evaluated(
    p: Preset,
    of: Trained,
    *,
    on: DataStage | None = None,
    radii: tuple[float, ...] | None = None,
    limit: int | None = None,
) -> Evaluated:
    """Return accuracy and robust accuracy of a model under the strong attack.

    Args:
        p: The preset.
        of: The model.
        on: Data to evaluate on; None takes D's test set.
        radii: L2 radii; None takes the preset's.
        limit: Number of samples; None takes the preset's ``strong_limit`` if there are radii.
    """
    radii = p.radii if radii is None else radii
    if limit is None and radii:
        limit = p.strong_limit
    return Evaluated(of, on or data(p, "test"), tuple(attack(p, eps) for eps in radii), limit, label=of.label)


def evaluated_as_paper(p: Preset, of: Trained, *, on: DataStage | None = None, limit: int | None = None) -> Evaluated:
    """Return accuracy and robust accuracy of a model under the paper's attack.

    Args:
        p: The preset.
        of: The model.
        on: Data to evaluate on; None takes D's test set.
        limit: Number of samples; None takes all.
    """
    attacks = tuple(papers_attack(p, eps) for eps in p.radii)
    return Evaluated(of, on or data(p, "test"), attacks, limit, label=f"{of.label}, the paper's attack")


def both_evaluated(p: Preset, models: dict[str, list[Trained]]) -> dict[tuple[str, str], list[Evaluated]]:
    """Return the evaluations under the strong attack and the paper's for each row of a table.

    Args:
        p: The preset.
        models: The models of each row, one per seed.

    Returns:
        Evaluations by (row, "strong" or "paper"), one per seed.
    """
    plan: dict[tuple[str, str], list[Evaluated]] = {}
    for row, of_row in models.items():
        plan[row, "strong"] = [evaluated(p, m) for m in of_row]
        plan[row, "paper"] = [evaluated_as_paper(p, m) for m in of_row]
    return plan


def robust_columns(p: Preset) -> tuple[str, ...]:
    """Return the column headings for :func:`robust_cells`.

    Args:
        p: The preset.
    """
    return (*(f"robust at {eps:g}, %" for eps in p.radii), *(f"paper's attack at {eps:g}, %" for eps in p.radii))


def robust_cells(
    p: Preset, strong: list[dict], papers: list[dict], paper: Mapping[float, float | None], approximate: bool = False
) -> list[Cell]:
    """Return robust accuracy at each radius under the strong attack, then under the paper's.

    Args:
        p: The preset.
        strong: Outcomes under the strong attack, one per seed.
        papers: Outcomes under the paper's attack, one per seed.
        paper: The paper's numbers by radius, shown beside the paper's attack unless the preset is on digits.
        approximate: Whether the paper's numbers are approximate.
    """
    if p.dataset == "digits":
        paper = {}
    return [
        *(Cell(number) for number in at_every_radius(p, strong)),
        *(
            Cell(number, paper.get(eps), approximate)
            for eps, number in zip(p.radii, at_every_radius(p, papers), strict=True)
        ),
    ]


def clean(outcomes: list[dict]) -> Number:
    """Return the accuracy over seeds.

    Args:
        outcomes: Outcomes of :class:`Evaluated`, one per seed.
    """
    return Number.of(outcome["clean"] for outcome in outcomes)


def robust(outcomes: list[dict], i: int) -> Number:
    """Return the robust accuracy over seeds under one attack.

    Args:
        outcomes: Outcomes of :class:`Evaluated`, one per seed.
        i: Index of the attack.
    """
    return Number.of(outcome["robust"][i] for outcome in outcomes)


def at_every_radius(p: Preset, outcomes: list[dict]) -> list[Number]:
    """Return the robust accuracy over seeds at each of the preset's radii.

    Args:
        p: The preset.
        outcomes: Outcomes of :class:`Evaluated`, one per seed.
    """
    return [robust(outcomes, i) for i in range(len(p.radii))]


def guessing(workspace: Workspace, p: Preset) -> float:
    """Return the accuracy of guessing, in per cent.

    Args:
        workspace: The workspace.
        p: The preset.
    """
    return 100 / len(workspace.open(data(p, "test")).classes)


def follows(outcomes: list[dict]) -> Number:
    """Return how often the class after the label is predicted, over seeds.

    Args:
        outcomes: Outcomes of :class:`Evaluated`, one per seed.
    """
    return Number.of(outcome["next"] for outcome in outcomes)


def outcomes(workspace: Workspace, stages: Sequence[Measurement]) -> list[dict]:
    """Return the outcomes of measurements, one per seed.

    Args:
        workspace: The workspace.
        stages: The measurements.
    """
    return [workspace.open(stage) for stage in stages]
