"""A remark of Section 3.1: D_R and D_NR built with one architecture and used to train another give "the same"."""

from __future__ import annotations

from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.paper.figure2 import findings
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Result, Table
from advfeat.experiments.shared_stages import (
    LABELS,
    at_every_radius,
    clean,
    constructed,
    data,
    describe_strong,
    evaluated,
    guessing,
    model,
    outcomes,
    trained,
)
from advfeat.experiments.stages import Trained
from advfeat.experiments.workspace import Workspace

ROWS = ("standard", "robust", "nonrobust")


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    seed = p.seeds[0]
    models = {("own", key): model(p, key, seed) for key in ROWS} | {("other", key): other(p, key, seed) for key in ROWS}
    return {row: [evaluated(p, m)] for row, m in models.items()}


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
    under_attack = {row: at_every_radius(p, found[row]) for row in found}
    tables = []
    for who, title in (("other", f"Trained with {p.other}"), ("own", f"Trained with {p.standard.arch}, the source")):
        tables.append(
            Table(
                title,
                ("trained on", "accuracy, %", *(f"robust at {eps:g}, %" for eps in p.radii)),
                tuple(
                    (LABELS[key], (Cell(clean(found[who, key])), *(Cell(n) for n in under_attack[who, key])))
                    for key in ROWS
                ),
                "The paper states that other architectures give the same result, without numbers. One seed. "
                f"Robust accuracy, L2: {describe_strong(p)}.",
            )
        )
    numbers = {key: under_attack["other", key] for key in ROWS}
    accuracy = {key: clean(found["other", key]) for key in ROWS}
    return Result(
        tables=tables,
        findings=findings(numbers, p.radii, accuracy, guessing(workspace, p)),
    )


def other(p: Preset, key: str, seed: int) -> Trained:
    """Return the preset's other architecture, trained on D or on a set built with the preset's own network.

    Args:
        p: The preset.
        key: One of ``ROWS``.
        seed: Seed.
    """
    on = data(p) if key == "standard" else constructed(p, key, seed)
    config = p.others[p.other]
    config = config.replace(epochs=p.other_epochs or config.epochs)
    return trained(p, on, config, f"{p.other} on {LABELS[key]}", seed)


EXPERIMENT = Experiment(
    name="cross-architecture",
    title="Sets built with one architecture, learned by another",
    source="Section 3.1",
    paper='"the same", without numbers',
    plan=plan,
    report=report,
)
