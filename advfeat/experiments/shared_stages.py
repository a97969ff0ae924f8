"""The stages that several experiments share: the paper's six models and four sets at a preset and a seed."""

from __future__ import annotations

import dataclasses

import torch

from advfeat.attacks import PGD, Ensemble
from advfeat.datasets.recipes import MatchRepresentation, Recipe
from advfeat.evaluation import pgd_attack, strong_attack
from advfeat.experiments.presets import SETS, Preset
from advfeat.experiments.result import Cell, Number
from advfeat.experiments.stages import Constructed, Data, DataStage, Evaluated, Trained
from advfeat.experiments.workspace import Workspace
from advfeat.objectives import Margin
from advfeat.random import derive_seed
from advfeat.training import TrainConfig

MODELS = ("standard", "adversarial", *SETS)
TITLES = {"robust": "D_R", "nonrobust": "D_NR", "rand": "D_rand", "det": "D_det"}
LABELS = {"standard": "D", "adversarial": "D, adversarially", **TITLES}


def data(p: Preset, split: str = "train", *, limit: int | None = None) -> Data:
    """D, or its test set; of the preset's size unless told."""
    if limit is None:
        limit = p.limit if split == "train" else p.test_limit
    return Data(p.dataset, split, limit, size=p.size, label="D")


def trained(
    p: Preset, on: DataStage, config: TrainConfig, label: str, seed: int, *, test: DataStage | None = None
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
    """The attack that claims are decided by: :func:`advfeat.evaluation.strong_attack`. What only low precision took for
    a success is attacked again without it, see :mod:`advfeat.evaluation`."""
    return strong_attack(eps, steps=p.strong_steps, autocast=_autocast(p))


def papers_attack(p: Preset, eps: float) -> PGD:
    """The attack of the paper's rows: PGD on the direction of cross-entropy, in steps of 2.5 radius / steps as in its
    authors' library. A sample is left once it is broken."""
    chosen = pgd_attack(eps, steps=p.attack_steps, objective=Margin(1.0))
    return chosen.replace(stop="success", autocast=_autocast(p))


def _autocast(p: Preset) -> torch.dtype | None:
    return torch.bfloat16 if p.amp == "bf16" else None


def describe_strong(p: Preset) -> str:
    """The strong attack in words."""
    return (
        f"20 steps of PGD, then Auto-PGD of {p.strong_steps} steps on the margin and towards each other class (nine at "
        "most), each on what those before it left standing: the first two attacks of AutoAttack"
    )


def describe_attacks(p: Preset) -> str:
    """Both attacks, in words."""
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
    """Accuracy and robust accuracy at the preset's radii, on the true test set unless told."""
    radii = p.radii if radii is None else radii
    if limit is None and radii:
        limit = p.strong_limit
    return Evaluated(of, on or data(p, "test"), tuple(attack(p, eps) for eps in radii), limit, label=of.label)


def evaluated_as_paper(p: Preset, of: Trained, *, on: DataStage | None = None, limit: int | None = None) -> Evaluated:
    """The same under the paper's attack."""
    attacks = tuple(papers_attack(p, eps) for eps in p.radii)
    return Evaluated(of, on or data(p, "test"), attacks, limit, label=f"{of.label}, the paper's attack")


def both_evaluated(p: Preset, models: dict[str, list[Trained]]) -> dict[tuple[str, str], list[Evaluated]]:
    """For each row of a table the evaluations by the strong attack and by the paper's, one a seed."""
    plan: dict[tuple[str, str], list[Evaluated]] = {}
    for row, of_row in models.items():
        plan[row, "strong"] = [evaluated(p, m) for m in of_row]
        plan[row, "paper"] = [evaluated_as_paper(p, m) for m in of_row]
    return plan


def robust_columns(p: Preset) -> tuple[str, ...]:
    """The heads of :func:`robust_cells`."""
    return (*(f"robust at {eps:g}, %" for eps in p.radii), *(f"paper's attack at {eps:g}, %" for eps in p.radii))


def robust_cells(
    p: Preset, strong: list[dict], papers: list[dict], paper: dict[float, float | None], approximate: bool = False
) -> list[Cell]:
    """Robust accuracy at each radius under the strong attack, then under the paper's, from the outcomes of both.

    paper: the paper's numbers by radius, which stand beside the second where the images are of the same size.
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
    """Accuracy at each seed from outcomes of :class:`Evaluated`."""
    return Number.of(outcome["clean"] for outcome in outcomes)


def robust(outcomes: list[dict], i: int) -> Number:
    """Robust accuracy at each seed under the i-th attack."""
    return Number.of(outcome["robust"][i] for outcome in outcomes)


def at_every_radius(p: Preset, outcomes: list[dict]) -> list[Number]:
    """Robust accuracy at each of the preset's radii."""
    return [robust(outcomes, i) for i in range(len(p.radii))]


def guessing(workspace: Workspace, p: Preset) -> float:
    """The accuracy of guessing, in per cent."""
    return 100 / len(workspace.open(data(p, "test")).classes)


def follows(outcomes: list[dict]) -> Number:
    """How often the class after the label is predicted, at each seed."""
    return Number.of(outcome["next"] for outcome in outcomes)


def outcomes(workspace: Workspace, stages: list[Evaluated]) -> list[dict]:
    """What was measured, one a seed."""
    return [workspace.open(stage) for stage in stages]
