"""Table 1: test accuracy on D of standard models trained on D, D_rand and D_det."""

from __future__ import annotations

from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Number, Result, Table, compare, fewest_seeds, worst
from advfeat.experiments.shared_stages import LABELS, TITLES, clean, evaluated, follows, guessing, model, outcomes
from advfeat.experiments.workspace import Workspace

PAPER = {"standard": (95.3, 96.6), "rand": (63.3, 87.9), "det": (43.7, 64.4)}


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    return {key: [evaluated(p, model(p, key, seed)) for seed in p.seeds] for key in PAPER}


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    found = {key: outcomes(workspace, steps[key]) for key in steps}
    chance = guessing(workspace, p)
    table = Table(
        "Test accuracy on D",
        ("trained on", "accuracy, %", "predicts y + 1, %", "paper: Restricted ImageNet"),
        tuple(
            (LABELS[key], (Cell(clean(found[key]), paper), Cell(follows(found[key])), Cell(None, imagenet)))
            for key, (paper, imagenet) in PAPER.items()
        ),
        "Standard training on each set. D_rand's labels are random, D_det's are all the class after the true one.",
    )
    return Result(
        tables=[table],
        findings=findings({key: clean(found[key]) for key in found}, follows(found["det"]), chance),
    )


def findings(accuracy: dict[str, Number], det_follows: Number, chance: float) -> list[Finding]:
    """Judge the claims of Section 3.2.

    Args:
        accuracy: Accuracy of the models trained on D_rand ("rand") and D_det ("det").
        det_follows: How often D_det's model predicts the class after the label.
        chance: Accuracy of guessing in per cent.

    Returns:
        The claims with verdicts.
    """
    rand, det = accuracy["rand"], accuracy["det"]
    return [
        Finding(
            f"A model trained on {TITLES['rand']}, whose labels are unrelated to the image content, generalises to the "
            "true test set.",
            f"Accuracy near chance ({chance:.0f} %): no more than twice that.",
            f"{rand}; chance is {chance:.0f} %.",
            compare(rand, 2 * chance),
            seeds=fewest_seeds(rand),
        ),
        Finding(
            f"A model trained on {TITLES['det']}, whose labels are all shifted by one class, predicts the true class "
            "on the test set more often than the shifted one.",
            "Accuracy no more than twice chance, or below the share predicted as the shifted class.",
            f"{det} true class, {det_follows} shifted class.",
            worst([compare(det, 2 * chance), compare(det, det_follows)]),
            seeds=fewest_seeds(det, det_follows),
        ),
    ]


EXPERIMENT = Experiment(
    name="table1",
    title="Training on labels that look wrong generalises to the true ones",
    source="Table 1, Section 3.2",
    paper="95.3 / 63.3 / 43.7 on D, D_rand, D_det; Restricted ImageNet 96.6 / 87.9 / 64.4",
    plan=plan,
    report=report,
)
