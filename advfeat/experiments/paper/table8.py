"""Table 8 (Appendix D.3): robust accuracy of D_R's model on D_R, on a robustified test set and on the test set."""

from __future__ import annotations

from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Result, Table, compare, fewest_seeds
from advfeat.experiments.shared_stages import (
    clean,
    constructed,
    data,
    describe_attacks,
    evaluated,
    evaluated_as_paper,
    model,
    outcomes,
    robust,
)
from advfeat.experiments.stages import Evaluated
from advfeat.experiments.workspace import Workspace

PAPER = {"robust training set": 77.33, "robust test set": 62.49, "test set": 48.27}


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    steps: dict[tuple[str, str], list[Evaluated]] = {(row, kind): [] for row in PAPER for kind in ("strong", "paper")}
    for seed in p.seeds:
        sets = (constructed(p, "robust", seed), constructed(p, "robust", seed, of="test"), data(p, "test"))
        for row, on in zip(PAPER, sets, strict=True):
            limit = p.test_limit if row == "robust training set" else None
            steps[row, "strong"].append(evaluated(p, model(p, "robust", seed), on=on, radii=p.radii[:1], limit=limit))
            steps[row, "paper"].append(evaluated_as_paper(p, model(p, "robust", seed), on=on, limit=limit))
    return steps


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    eps = p.radii[0]
    found = {row: outcomes(workspace, of_row) for row, of_row in steps.items()}
    accuracy = {row: clean(found[row, "paper"]) for row in PAPER}
    under_attack = {row: robust(found[row, "strong"], 0) for row in PAPER}
    papers_attack = {row: robust(found[row, "paper"], 0) for row in PAPER}
    beside = PAPER if eps == 0.25 else dict.fromkeys(PAPER)
    table = Table(
        "Robust accuracy of D_R's model",
        ("tested on", "accuracy, %", f"robust at {eps:g}, %", f"paper's attack at {eps:g}, %"),
        tuple(
            (row, (Cell(accuracy[row]), Cell(under_attack[row]), Cell(papers_attack[row], beside[row])))
            for row in PAPER
        ),
        "The robust test set is D_R's construction applied to the test set, with the same source model. "
        f"{describe_attacks(p)}.",
    )
    train, test, true = (under_attack[row] for row in PAPER)
    return Result(
        tables=[table],
        findings=[
            Finding(
                "Some of the robustness learned on D_R does not transfer to the true distribution: D_R's model is more "
                "robust on a robustified test set than on the true one.",
                "No higher robust accuracy on the robustified test set than on the true one.",
                f"{test} against {true}.",
                compare(test, true),
                seeds=fewest_seeds(test, true),
            ),
            Finding(
                "Some does not generalise from D_R's own images to new images of the same kind.",
                "No gap between the robust training and test sets.",
                f"{train} on D_R, {test} on the robustified test set.",
                compare(train, test),
                seeds=fewest_seeds(train, test),
            ),
        ],
    )


EXPERIMENT = Experiment(
    name="table8",
    title="Where the robustness of D_R's model is lost",
    source="Table 8, Appendix D.3",
    paper="77.33 on D_R, 62.49 on a robustified test set, 48.27 on the test set",
    plan=plan,
    report=report,
)
