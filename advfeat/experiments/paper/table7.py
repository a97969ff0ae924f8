"""Table 7 (Appendix D.1): D_R and D_NR built from images and from noise, at two radii."""

from __future__ import annotations

from advfeat.experiments.claims import Measured, drop, failed, more_robust
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Number, Result, Table, compare, fewest_seeds, worst
from advfeat.experiments.shared_stages import (
    LABELS,
    TITLES,
    at_every_radius,
    both_evaluated,
    clean,
    constructed,
    describe_attacks,
    from_noise,
    guessing,
    model,
    outcomes,
    robust_cells,
    robust_columns,
    trained,
)
from advfeat.experiments.stages import Trained
from advfeat.experiments.workspace import Workspace

RADII = (0.25, 0.5)
# Accuracy, then robust accuracy at these radii.
PAPER = {
    "standard": (95.25, 4.49, 0.0),
    "adversarial": (90.83, 82.48, 70.90),
    "nonrobust": (87.68, 0.82, 0.0),
    "nonrobust from noise": (45.60, 1.50, 0.0),
    "robust": (85.40, 48.20, 21.85),
    "robust from noise": (84.10, 48.27, 29.40),
}


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    seeds = {row: p.first if row.endswith("noise") else p.seeds for row in PAPER}
    return both_evaluated(p, {row: [_model(p, row, seed) for seed in seeds[row]] for row in PAPER})


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
    numbers = {row: (clean(found[row, "paper"]), *at_every_radius(p, found[row, "strong"])) for row in PAPER}
    table = Table(
        "From images and from noise",
        ("trained on", "accuracy, %", *robust_columns(p)),
        tuple(
            (
                _name(row),
                (
                    Cell(numbers[row][0], PAPER[row][0]),
                    *robust_cells(
                        p, found[row, "strong"], found[row, "paper"], dict(zip(RADII, PAPER[row][1:], strict=True))
                    ),
                ),
            )
            for row in PAPER
        ),
        f"{describe_attacks(p)}. The paper's radii are 0.25 and 0.5. From noise: {p.noise_steps:,} steps (the paper: "
        "10,000), one seed.",
    )
    models = {row: Measured(_name(row), n[0], n[1:]) for row, n in numbers.items()}
    chance = guessing(workspace, p)
    robust_noise, nonrobust_noise = models["robust from noise"], models["nonrobust from noise"]
    return Result(
        tables=[table],
        findings=[
            more_robust(
                "The start does not matter for D_R: built from noise, it also gives a more robust model than D.",
                "D_R from noise giving no more robustness than D: the robustness would come from the starting images.",
                robust_noise,
                models["standard"],
                p.radii,
                chance,
            ),
            more_robust(
                "From noise, too, the robustness comes from the source model: D_NR gives less than D_R.",
                "D_NR from noise giving as much robustness as D_R from noise.",
                robust_noise,
                nonrobust_noise,
                p.radii,
                chance,
            ),
            _cost_of_noise(
                nonrobust=numbers["nonrobust"][0],
                nonrobust_noise=numbers["nonrobust from noise"][0],
                robust=numbers["robust"][0],
                robust_noise=numbers["robust from noise"][0],
                chance=chance,
            ),
        ],
        notes=["Each claim about robustness is evaluated at the radius with the largest gap between the two models."],
    )


def _cost_of_noise(
    nonrobust: Number, nonrobust_noise: Number, robust: Number, robust_noise: Number, chance: float
) -> Finding:
    drops = drop(nonrobust, nonrobust_noise), drop(robust, robust_noise)
    verdict = worst([compare(nonrobust, nonrobust_noise), compare(*drops)])
    seen = f"D_NR: {nonrobust} from images, {nonrobust_noise} from noise; D_R: {robust} and {robust_noise}."
    if any(failed(accuracy, chance) for accuracy in (nonrobust_noise, robust_noise)):
        verdict, seen = "inconclusive", f"{seen} Accuracy no more than twice chance may be a failed training."
    return Finding(
        "Noise costs D_NR much of its accuracy (87.7 to 45.6 %), and D_R less (85.4 to 84.1 %).",
        "D_NR losing no accuracy, or no more than D_R.",
        seen,
        verdict,
        seeds=fewest_seeds(nonrobust, nonrobust_noise, robust, robust_noise),
    )


def _model(p: Preset, row: str, seed: int) -> Trained:
    if not row.endswith("noise"):
        return model(p, row, seed)
    key = row.split()[0]
    made = constructed(p, key, seed, recipe=from_noise(p, key), label=_name(row))
    return trained(p, made, p.on[key], _name(row), seed)


def _name(row: str) -> str:
    key = row.split()[0]
    return f"{TITLES[key]} from noise" if row.endswith("noise") else LABELS[key]


EXPERIMENT = Experiment(
    name="table7",
    title="The start of the construction: images or noise",
    source="Table 7, Appendix D.1",
    paper="D_R 85.4 / 48.2 / 21.9 from images, 84.1 / 48.3 / 29.4 from noise; D_NR 87.7 / 0.8 / 0 and 45.6 / 1.5 / 0",
    plan=plan,
    report=report,
)
