"""The paper's main experiment in one table (Figure 2, Tables 1 and 7): six models, four constructed sets.

A standard and an adversarially trained model are trained on D and used to build D_R, D_NR, D_rand and D_det. A fresh
model is trained on each set by standard training. All six are tested on the true test set, clean and under attack.
"""

from __future__ import annotations

import torch

from advfeat import plots
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.recipes import MatchRepresentation
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.paper import figure2, table1, table7
from advfeat.experiments.presets import SETS, Preset, describe_set
from advfeat.experiments.result import Cell, Picture, Plain, Result, Table
from advfeat.experiments.shared_stages import (
    LABELS,
    MODELS,
    TITLES,
    at_every_radius,
    both_evaluated,
    clean,
    constructed,
    data,
    describe_strong,
    follows,
    model,
    outcomes,
    robust_cells,
    robust_columns,
)
from advfeat.experiments.workspace import Workspace

# Accuracy and robust accuracy at Table 7's radii: its rows "from images", and Table 1.
PAPER = {key: table7.PAPER[key] for key in ("standard", "adversarial", "robust", "nonrobust")} | {
    key: (table1.PAPER[key][0],) for key in ("rand", "det")
}


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    return both_evaluated(p, {key: [model(p, key, seed) for seed in p.seeds] for key in MODELS})


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    sets = {key: [constructed(p, key, seed) for seed in p.seeds] for key in SETS}
    found = {row: outcomes(workspace, of_row) for row, of_row in steps.items()}
    accuracy = {key: clean(found[key, "paper"]) for key in MODELS}
    under_attack = {key: at_every_radius(p, found[key, "strong"]) for key in MODELS}
    made = {key: [workspace.open(step) for step in sets[key]] for key in SETS}
    chance = 100 / len(made["det"][0].classes)
    return Result(
        tables=[_models(p, found), _sets(made)],
        findings=[
            *figure2.findings(under_attack, p.radii, accuracy, chance),
            *table1.findings(accuracy, follows(found["det", "paper"]), chance),
        ],
        pictures=[_picture_of(workspace, p, key, made[key][0]) for key in SETS] + [_curves(workspace, p)],
        notes=[
            "Accuracy: the share of the unmodified test images that a model classifies correctly.",
            "Robust accuracy: the share that it classifies correctly both unmodified and at the point that each attack "
            f"returns within the radius: {describe_strong(p)}. AutoAttack also runs FAB and Square, which can only "
            "lower it.",
            f"The paper's attack: PGD alone, {p.attack_steps} steps of 2.5 × radius / {p.attack_steps} in the "
            "direction of cross-entropy. It breaks fewer samples, and no claim is decided by it.",
            "Predicts y + 1: the share of test images that the model assigns to the class after the true one. A model "
            "that learned the image content of D_det would do so for all of them.",
        ],
    )


def _models(p: Preset, found: dict[tuple[str, str], list[dict]]) -> Table:
    rows = []
    for key, (paper_clean, *paper_robust) in PAPER.items():
        strong, papers = found[key, "strong"], found[key, "paper"]
        cells = robust_cells(p, strong, papers, dict(zip(table7.RADII, paper_robust, strict=False)))
        rows.append((LABELS[key], (Cell(clean(papers), paper_clean), *cells, Cell(follows(papers)))))
    return Table(
        "The models",
        ("trained on", "accuracy, %", *robust_columns(p), "predicts y + 1, %"),
        tuple(rows),
        "All six models are tested on the same unmodified test images. The paper's numbers are for CIFAR-10 and "
        'ResNet-50 at L2 0.25 and 0.5 (Tables 1 and 7, rows "from images").',
    )


def _sets(made: dict[str, list[ConstructedSet]]) -> Table:
    labelled = {"robust": "true", "nonrobust": "true", "rand": "random target", "det": "next class"}

    def cells(sets: list[ConstructedSet]) -> tuple[Cell, ...]:
        success = Plain(tuple(100 * float(s.target_success.float().mean()) for s in sets), 1)
        distance = Plain(tuple(float(s.distance.mean()) for s in sets))
        objective = Plain(tuple(float(s.objective.mean()) for s in sets), 3)
        return tuple(Cell(number) for number in (success, distance, objective))

    return Table(
        "The constructed sets",
        ("set", "source predicts the label, %", "distance (L2)", "objective"),
        tuple((f"{TITLES[key]}, labels: {labelled[key]}", cells(sets)) for key, sets in made.items()),
        f"{len(made['det'][0]):,} images each. The objective is the final value of what the construction minimises: "
        "for D_R and D_NR the distance to the target representation relative to its norm, for D_rand and D_det the "
        "margin by which the target class loses (negative: it wins).",
    )


def _curves(workspace: Workspace, p: Preset) -> Picture:
    curves = {key: workspace.history(model(p, key, p.seeds[0])) for key in MODELS}
    return Picture(
        "curves",
        "Training curves",
        plots.training_curves(curves, LABELS),
        "Accuracy by epoch: solid line on the true test set, pale line on the training set (for the adversarially "
        "trained model: on its adversarial examples).",
    )


def _picture_of(workspace: Workspace, p: Preset, key: str, made: ConstructedSet) -> Picture:
    """Draw ten images of a set, spread over the stored labels, beside the images they were built from."""
    true_train = workspace.open(data(p))
    order = torch.randperm(len(made), device="cpu", generator=torch.Generator().manual_seed(0))
    picked: list[int] = []
    for want in range(min(len(made.classes), 10)):
        picked += [int(i) for i in order if int(made.labels[i]) == want][:1]
    index = torch.tensor(picked, device="cpu")
    images, sources_of = made.images(index), true_train.images(made.source_index[index])
    names = made.classes
    if isinstance(p.recipes[key], MatchRepresentation):
        rows = [("labelled image", sources_of)]
        starts = made.start_index[index]
        if bool((starts >= 0).all()):
            start_images = true_train.images(starts)
            rows.append(("start", start_images))
            difference = ("constructed\nminus start", images - start_images)
        else:
            difference = ("constructed\nminus labelled", images - sources_of)
        captions = [f"label {names[int(made.labels[i])]}" for i in index]
    else:
        rows = [("original", sources_of)]
        difference = ("difference", images - sources_of)
        captions = [f"{names[int(made.original_labels[i])]}\n→ {names[int(made.labels[i])]}" for i in index]
    png = plots.sample_grid([*rows, ("constructed", images)], captions, difference)
    return Picture(key, TITLES[key], png, describe_set(p.recipes[key]))


EXPERIMENT = Experiment(
    name="main",
    title="Robust and non-robust features",
    source="Figure 2, Tables 1 and 7",
    paper="the six models in one table",
    plan=plan,
    report=report,
)
