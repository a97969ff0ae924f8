"""Table 1: test accuracy on D of standard models trained on D, D_rand and D_det."""

from __future__ import annotations

from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Number, Result, Table, compare, fewest_seeds, worst
from advfeat.experiments.shared_stages import LABELS, TITLES, clean, evaluated, follows, guessing, model, outcomes
from advfeat.experiments.workspace import Workspace

PAPER = {"standard": (95.3, 96.6), "rand": (63.3, 87.9), "det": (43.7, 64.4)}


def plan(p: Preset) -> Plan:
    return {key: [evaluated(p, model(p, key, seed)) for seed in p.seeds] for key in PAPER}


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    found = {key: outcomes(workspace, steps[key]) for key in steps}
    chance = guessing(workspace, p)
    table = Table(
        "Test accuracy on D",
        ("trained on", "accuracy, %", "says y + 1, %", "paper: Restricted ImageNet"),
        tuple(
            (LABELS[key], (Cell(clean(found[key]), paper), Cell(follows(found[key])), Cell(None, imagenet)))
            for key, (paper, imagenet) in PAPER.items()
        ),
        "Standard training on each. Labels of D_rand are drawn at random, those of D_det are all one class too high.",
    )
    return Result(
        tables=[table],
        findings=findings({key: clean(found[key]) for key in found}, follows(found["det"]), chance),
    )


def findings(accuracy: dict[str, Number], det_follows: Number, chance: float) -> list[Finding]:
    """The claims of Section 3.2; accuracy of the models trained on D_rand and D_det, in per cent."""
    rand, det = accuracy["rand"], accuracy["det"]
    return [
        Finding(
            f"A model trained on {TITLES['rand']}, whose labels have nothing to do with what a person sees, is right "
            "on the true test set.",
            f"Accuracy near chance ({chance:.0f} %): no more than twice as much.",
            f"{rand} where chance is {chance:.0f} %.",
            compare(rand, 2 * chance),
            seeds=fewest_seeds(rand),
        ),
        Finding(
            f"A model trained on {TITLES['det']}, whose labels are all wrong in the same way, is right on the true "
            "test set more often than it repeats that way.",
            "Accuracy no more than twice chance, or below the share of images put one class too high.",
            f"{det} right, {det_follows} one class too high.",
            worst([compare(det, 2 * chance), compare(det, det_follows)]),
            seeds=fewest_seeds(det, det_follows),
        ),
    ]


EXPERIMENT = Experiment(
    name="table1",
    title="Wrong-looking labels teach the right ones",
    source="Table 1, Section 3.2",
    paper="95.3 / 63.3 / 43.7 on D, D_rand, D_det; Restricted ImageNet 96.6 / 87.9 / 64.4",
    plan=plan,
    report=report,
)
