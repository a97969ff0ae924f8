"""Restricted ImageNet (Tables 1 to 6, Figure 12): the same recipes on an ImageNet folder with nine super-classes."""

from __future__ import annotations

from advfeat import plots
from advfeat.datasets.recipes import FAST, fast_version
from advfeat.datasets.recipes import PRESETS as RECIPES
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.paper import figure2, table1
from advfeat.experiments.presets import ARCHS, Preset
from advfeat.experiments.result import Cell, Picture, Result, Table
from advfeat.experiments.shared_stages import (
    LABELS,
    at_every_radius,
    both_evaluated,
    clean,
    describe_attacks,
    follows,
    guessing,
    model,
    outcomes,
    robust_cells,
    robust_columns,
)
from advfeat.experiments.workspace import Workspace
from advfeat.training import paper_attack

# Accuracy and robust accuracy at 0.5 (read off Figure 12); for D_rand and D_det Table 1. The figure's standard model
# differs from Table 1's, which has 96.6 %.
PAPER = {
    "standard": (98.0, 18.5),
    "adversarial": (95.7, 92.8),
    "robust": (86.8, 70.6),
    "rand": (87.9, None),
    "det": (64.4, None),
}
# For a preset made for two cores, which would take weeks for the whole set.
_SMALL_LIMIT, _SMALL_TEST_LIMIT = 9_000, 1_800


def setting(p: Preset) -> Preset:
    """Adapt a preset: its network and length of training, the paper's radii, recipes and training settings (Table 3).

    Learning rates, batch sizes and augmentation on each set are those of Table 3. Images are stored in 8 bits: the full
    set of 257,748 then takes 39 GB.

    Args:
        p: The preset.

    Returns:
        The adapted preset.
    """
    small = p.imagenet_side < 224
    # A checkpoint after each epoch, so that an interrupted run loses only minutes.
    standard = p.standard.replace(augment="crop-flip", weight_decay=5e-4, checkpoint_every=1)
    differs = f"{standard.epochs} epochs with a one-cycle learning rate replace the paper's long trainings"
    if small:
        differs += (
            f"; a {ARCHS[standard.arch]} on {p.limit or _SMALL_LIMIT:,} images of {p.imagenet_side} pixels replaces a "
            "ResNet-50 on 257,748 of 224; the radii are the paper's, which are relatively larger for smaller images"
        )
    return p.replace(
        name=p.name,
        dataset="restricted-imagenet",
        differs=differs,
        size=p.imagenet_side if small else None,
        limit=(p.limit or _SMALL_LIMIT) if small else None,
        test_limit=(p.test_limit or _SMALL_TEST_LIMIT) if small else None,
        standard=standard,
        adversarial=standard.replace(epochs=p.adversarial.epochs, attack=paper_attack(3.0)),
        on={
            "robust": standard.replace(lr=0.01, batch_size=128),
            "nonrobust": standard.replace(lr=0.01, batch_size=128),
            "rand": standard.replace(lr=0.01, batch_size=256, augment="none"),
            "det": standard.replace(lr=0.05, batch_size=256, augment="none"),
        },
        recipes=RECIPES[fast_version("restricted-imagenet") if p.name.endswith(FAST) else "restricted-imagenet"],
        radii=(0.5, 3.0),
        batch_size=min(p.batch_size, 250),
        dtype="uint8",
    )


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    return both_evaluated(p, {key: [model(p, key, seed) for seed in p.seeds] for key in PAPER})


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    found = {row: outcomes(workspace, of_row) for row, of_row in steps.items()}
    accuracy = {key: clean(found[key, "paper"]) for key in PAPER}
    under_attack = {key: at_every_radius(p, found[key, "strong"]) for key in PAPER}
    table = Table(
        "Restricted ImageNet",
        ("trained on", "accuracy, %", *robust_columns(p), "predicts y + 1, %"),
        tuple(
            (
                LABELS[key],
                (
                    Cell(accuracy[key], papers[0], key not in ("rand", "det")),
                    *robust_cells(p, found[key, "strong"], found[key, "paper"], {p.radii[0]: papers[1]}, True),
                    Cell(follows(found[key, "paper"])),
                ),
            )
            for key, papers in PAPER.items()
        ),
        "The paper's numbers in the first three rows are read off its Figure 12, at 0.5; it has none for D_NR. "
        f"{describe_attacks(p)}.",
    )
    chance = guessing(workspace, p)
    shown = {key: under_attack[key] for key in ("standard", "adversarial", "robust")}
    bars = [
        (
            LABELS[key],
            (accuracy[key].mean, *accuracy[key].interval),
            (numbers[0].mean, *numbers[0].interval),
            PAPER[key],
        )
        for key, numbers in shown.items()
    ]
    return Result(
        tables=[table],
        findings=[
            *figure2.findings(shown, p.radii, accuracy, chance),
            *table1.findings(accuracy, follows(found["det", "paper"]), chance),
        ],
        pictures=[
            Picture(
                "figure12",
                "Accuracy by training set",
                plots.paired_bars(bars, f"robust accuracy, L2 {p.radii[0]:g}"),
                "Bars are our results under the strong attack, with their spread; marks are the paper's, read off its "
                "figure.",
            )
        ],
    )


EXPERIMENT = Experiment(
    name="restricted-imagenet",
    title="The experiments on Restricted ImageNet",
    source="Figure 12 and Table 1",
    paper="accuracy / robust at 0.5: D 98.0 / 18.5, adversarial 95.7 / 92.8, D_R 86.8 / 70.6; D_rand 87.9, D_det 64.4",
    plan=plan,
    report=report,
    setting=setting,
    needs="an ImageNet folder (train/<class>/, val/<class>/) as --root or in it as imagenet; 120 GB for the sets of "
    "the preset cifar10",
)
