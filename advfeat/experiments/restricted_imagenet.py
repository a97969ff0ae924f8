"""Restricted ImageNet (Tables 1 to 6, Figure 12): the same recipes on an ImageNet folder with nine super-classes."""

from __future__ import annotations

from advfeat.datasets.recipes import PRESETS as RECIPES
from advfeat.experiments import figure2, table1
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.lab import Lab
from advfeat.experiments.pieces import LABELS, clean, data, evaluated, follows, model, outcomes, robust
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Result, Table
from advfeat.training import paper_attack

# Accuracy and robust accuracy at 0.5 (Figure 12, read off); for D_rand and D_det Table 1. The figure's standard model
# is another one than Table 1's, which has 96.6 %.
PAPER = {
    "standard": (98.0, 18.5),
    "adversarial": (95.7, 92.8),
    "robust": (86.8, 70.6),
    "rand": (87.9, None),
    "det": (64.4, None),
}
_SMALL_SIDE = 64  # pixels, for networks made for two cores


def setting(p: Preset) -> Preset:
    """The preset's network and length of training, with the paper's radii, recipes and Table 3 for this data."""
    full = p.standard.arch != "small-convnet"
    standard = p.standard.replace(augment="crop-flip")
    return p.replace(
        name=f"{p.name}, Restricted ImageNet",
        dataset="restricted-imagenet",
        differs=f"{standard.epochs} epochs of a one-cycle learning rate stand for the paper's long trainings"
        + ("" if full else f"; a small convnet on images of {_SMALL_SIDE} pixels for a ResNet-50 on 224"),
        size=None if full else _SMALL_SIDE,
        standard=standard,
        adversarial=standard.replace(epochs=p.adversarial.epochs, attack=paper_attack(3.0)),
        on={
            "robust": standard.replace(lr=0.01),
            "nonrobust": standard.replace(lr=0.01),
            "rand": standard.replace(lr=0.01, batch_size=256, augment="none"),
            "det": standard.replace(lr=0.05, batch_size=256, augment="none"),
        },
        recipes=RECIPES["restricted-imagenet"],
        radii=(0.5, 3.0),
        batch_size=min(p.batch_size, 250),
    )


def plan(p: Preset) -> Plan:
    p = setting(p)
    return {key: [evaluated(p, model(p, key, seed)) for seed in p.seeds] for key in PAPER}


def report(lab: Lab, p: Preset, steps: Plan) -> Result:
    p = setting(p)
    found = {key: outcomes(lab, steps[key]) for key in PAPER}
    accuracy = {key: clean(found[key]) for key in PAPER}
    under_attack = {key: [robust(found[key], i) for i in range(len(p.radii))] for key in PAPER}
    table = Table(
        "Restricted ImageNet",
        ("trained on", "accuracy, %", *(f"robust at {eps:g}, %" for eps in p.radii), "says y + 1, %"),
        tuple(
            (
                LABELS[key],
                (
                    Cell(accuracy[key], papers[0], key not in ("rand", "det")),
                    Cell(under_attack[key][0], papers[1], True),
                    *(Cell(n) for n in under_attack[key][1:]),
                    Cell(follows(found[key])),
                ),
            )
            for key, papers in PAPER.items()
        ),
        "The paper's numbers of the first three rows are read off its Figure 12, at 0.5; there is none for D_NR.",
    )
    shown = {key: under_attack[key] for key in ("standard", "adversarial", "robust")}
    return Result(
        tables=[table],
        findings=[
            *figure2.findings(shown, p.radii),
            *table1.findings(accuracy, follows(found["det"]), 100 / len(lab.open(data(p, "test")).classes)),
        ],
        extra={"setting": p.to_dict()},
    )


EXPERIMENT = Experiment(
    name="restricted-imagenet",
    title="The same on Restricted ImageNet",
    source="Figure 12 and Table 1",
    paper="accuracy / robust at 0.5: D 98.0 / 18.5, adversarial 95.7 / 92.8, D_R 86.8 / 70.6; D_rand 87.9, D_det 64.4",
    plan=plan,
    report=report,
    needs="an ImageNet folder (train/<class>/, val/<class>/) as --root, or in its folder imagenet",
)
