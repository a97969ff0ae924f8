"""Figure 2: standard and robust accuracy of training on D, D_NR, adversarially, and on D_R; and samples of the sets."""

from __future__ import annotations

import torch

from advfeat import plots
from advfeat.experiments.claims import Measured, more_robust
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Number, Picture, Result, Table
from advfeat.experiments.shared_stages import (
    LABELS,
    at_every_radius,
    both_evaluated,
    clean,
    constructed,
    data,
    describe_attacks,
    guessing,
    model,
    outcomes,
    robust_cells,
    robust_columns,
)
from advfeat.experiments.workspace import Workspace

# At eps 0.25. The figure's D_R bar is Table 7's row from noise, its D_NR bar the row from images [both: Figure 2b].
PAPER = {
    "standard": (95.25, 4.49),
    "nonrobust": (87.68, 0.82),
    "adversarial": (90.83, 82.48),
    "robust": (84.10, 48.27),
}


def plan(p: Preset) -> Plan:
    return both_evaluated(p, {key: [model(p, key, seed) for seed in p.seeds] for key in PAPER})


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    found = {row: outcomes(workspace, of_row) for row, of_row in steps.items()}
    accuracy = {key: clean(found[key, "paper"]) for key in PAPER}
    under_attack = {key: at_every_radius(p, found[key, "strong"]) for key in PAPER}
    rows = []
    for key, (paper_clean, paper_robust) in PAPER.items():
        cells = robust_cells(p, found[key, "strong"], found[key, "paper"], {0.25: paper_robust})
        rows.append((LABELS[key], (Cell(accuracy[key], paper_clean), *cells)))
    table = Table(
        "Standard and robust accuracy",
        ("trained on", "accuracy, %", *robust_columns(p)),
        tuple(rows),
        f"{describe_attacks(p)}. The paper's figure is at 0.25.",
    )
    # The figure's own radius; where the preset has another data set and radii, the one that tells the most.
    gaps = [under_attack["adversarial"][i].mean - under_attack["standard"][i].mean for i in range(len(p.radii))]
    at = p.radii.index(0.25) if 0.25 in p.radii else gaps.index(max(gaps))
    bars = [
        (
            LABELS[key],
            (accuracy[key].mean, *accuracy[key].interval),
            (under_attack[key][at].mean, *under_attack[key][at].interval),
            PAPER[key],
        )
        for key in PAPER
    ]
    return Result(
        tables=[table],
        findings=findings(under_attack, p.radii, accuracy, guessing(workspace, p)),
        pictures=[
            Picture(
                "figure2a",
                "Random samples of each set",
                samples(workspace, p),
                "In each column an image of D, and the images of D_R and D_NR that carry its label.",
            ),
            Picture(
                "figure2b",
                "Accuracy by what was trained on",
                plots.paired_bars(bars, f"robust accuracy, L2 {p.radii[at]:g}"),
                "Bars are ours under the strong attack, with the spread; the marks are the paper's under its own, "
                "at 0.25.",
            ),
        ],
        notes=[
            "Each claim is looked at at the radius where the two models lie furthest apart.",
            "Claims are decided by the strong attack. What it leaves standing is an upper bound still: AutoAttack goes "
            "on with FAB and Square.",
        ],
        why_different=[
            "The paper's bar of D_R is its set built from noise, that of D_NR the set built from images (Table 7); "
            "here both are built from images.",
            "The attack behind the paper's 4.49 % is not given. Its authors' library reads 8.66 and 7.34 % with 20 and "
            "100 steps for a model of the same accuracy.",
        ],
    )


def findings(
    under_attack: dict[str, list[Number]], radii: tuple[float, ...], accuracy: dict[str, Number], chance: float
) -> list[Finding]:
    """The claims of Section 3.1 on the models that are given; robust accuracy of each at each radius."""

    def claim(text: str, more: str, less: str, against: str) -> Finding | None:
        if more not in under_attack or less not in under_attack:
            return None
        a, b = (Measured(LABELS[key], accuracy[key], under_attack[key]) for key in (more, less))
        return more_robust(text, against, a, b, radii, chance)

    claims = [
        claim(
            "Adversarial training gives a more robust model than standard training.",
            "adversarial",
            "standard",
            "No more robust accuracy at any radius.",
        ),
        claim(
            "Standard training on D_R gives a more robust model than standard training on D.",
            "robust",
            "standard",
            "Robust accuracy of D_R's model no higher than that of D's.",
        ),
        claim(
            "The source model does it: the same construction with a standard one (D_NR) gives less.",
            "robust",
            "nonrobust",
            "D_NR's model as robust as D_R's: then the construction alone would do it, not the features.",
        ),
    ]
    return [found for found in claims if found is not None]


def samples(workspace: Workspace, p: Preset) -> bytes:
    """Images of D above those of D_R and D_NR made for them, one a class."""
    source = workspace.open(data(p))
    sets = {key: workspace.open(constructed(p, key, p.seeds[0])) for key in ("robust", "nonrobust")}
    order = torch.randperm(len(source), device="cpu", generator=torch.Generator().manual_seed(0))
    labels = source.labels[order]
    picked = torch.stack([order[(labels == c).nonzero()[0, 0]] for c in range(min(len(source.classes), 10))])
    rows = [("D", source.images(picked)), *((LABELS[key], made.images(picked)) for key, made in sets.items())]
    return plots.image_grid(rows, [source.classes[int(source.labels[i])] for i in picked])


EXPERIMENT = Experiment(
    name="figure2",
    title="Robust features alone give a robust model",
    source="Figure 2, Section 3.1",
    paper="accuracy / robust at 0.25: D 95.25 / 4.49, D_NR 87.68 / 0.82, adversarial 90.83 / 82.48, D_R 84.10 / 48.27",
    plan=plan,
    report=report,
)
