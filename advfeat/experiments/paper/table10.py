"""Table 10 (Appendix D.6): D_det's model on the test set, and on the test set relabelled as D_det is."""

from __future__ import annotations

from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.paper.table9 import on_robust_source
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Result, Table, compare, fewest_seeds
from advfeat.experiments.shared_stages import clean, evaluated, follows, model, outcomes
from advfeat.experiments.workspace import Workspace

PAPER = {"standard": (43.7, 16.2), "robust": (5.8, 65.5)}


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    make = {"standard": model, "robust": on_robust_source}
    return {source: [evaluated(p, make[source](p, "det", seed), radii=()) for seed in p.seeds] for source in PAPER}


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    found = {source: outcomes(workspace, steps[source]) for source in PAPER}
    right = {source: clean(found[source]) for source in PAPER}
    moved = {source: follows(found[source]) for source in PAPER}
    table = Table(
        "D_det's model on D and on relabelled D",
        ("source model", "accuracy on D, %", "on D with labels y + 1, %"),
        tuple(
            (source, (Cell(right[source], PAPER[source][0]), Cell(moved[source], PAPER[source][1]))) for source in PAPER
        ),
        "The two columns are the shares of test images classified as the true class y and as the class after it.",
    )
    return Result(
        tables=[table],
        findings=[
            Finding(
                "With a standard source the non-robust features win: D_det's model predicts y more often than y + 1.",
                "The model following the image content of D_det, y + 1, more often.",
                f"{right['standard']} against {moved['standard']}.",
                compare(right["standard"], moved["standard"]),
                seeds=fewest_seeds(right["standard"], moved["standard"]),
            ),
            Finding(
                "With a robust source the robust features win: the model predicts y + 1 more often than y.",
                "The model predicting y more often.",
                f"{moved['robust']} against {right['robust']}.",
                compare(moved["robust"], right["robust"]),
                seeds=fewest_seeds(moved["robust"], right["robust"]),
            ),
        ],
    )


EXPERIMENT = Experiment(
    name="table10",
    title="Which of two conflicting kinds of features a model follows",
    source="Table 10, Appendix D.6",
    paper="on D / relabelled D: 43.7 / 16.2 with a standard source, 5.8 / 65.5 with a robust one",
    plan=plan,
    report=report,
)
