"""Table 9 and Figure 10 (Appendices D.4, D.5): D_rand and D_det built with a robust source, and training curves."""

from __future__ import annotations

import dataclasses

from advfeat import plots
from advfeat.experiments.experiment import Evaluations, Experiment
from advfeat.experiments.presets import Preset, perturbing
from advfeat.experiments.result import Cell, Finding, Number, Picture, Plain, Result, Table, compare, fewest_seeds
from advfeat.experiments.shared_stages import TITLES, clean, constructed, evaluated, guessing, model, outcomes, trained
from advfeat.experiments.stages import Constructed, Trained
from advfeat.experiments.workspace import Workspace

# Accuracy by source model and set. The paper's models have memorised their sets by the end of training.
PAPER = {
    "standard": {"rand": 63.3, "by heart": 63.3, "det": 43.7},
    "robust": {"rand": 25.2, "by heart": 25.2, "det": 5.8},
}
NAMES = {"rand": "D_rand", "by heart": "memorised D_rand", "det": "D_det"}


def robust_source(p: Preset, key: str, seed: int) -> Trained:
    """Return a model trained adversarially at the radius of the perturbations, as in the paper (both 0.5).

    A model trained at a smaller radius is fooled at the larger one, and its perturbations then visibly show the target.

    Args:
        p: The preset.
        key: "rand" or "det", whose perturbations set the radius.
        seed: Seed.
    """
    own = model(p, "adversarial", seed)
    attack, eps = own.config.attack, perturbing(p.recipes, key).eps
    assert attack is not None  # of an adversarial training
    if attack.threat.eps != eps:
        step_size = attack.step_size
        if isinstance(step_size, float):
            step_size = eps / (float(attack.threat.eps) / step_size)
        attack = attack.replace(threat=dataclasses.replace(attack.threat, eps=eps), step_size=step_size)
    return dataclasses.replace(own, config=own.config.replace(attack=attack), label="D, robust source")


def made_by_robust_source(p: Preset, key: str, seed: int) -> Constructed:
    """Return D_rand or D_det built with the robust source.

    Args:
        p: The preset.
        key: "rand" or "det".
        seed: Seed.
    """
    return constructed(p, key, seed, source=robust_source(p, key, seed), label=f"{TITLES[key]}, robust source")


def on_robust_source(p: Preset, key: str, seed: int) -> Trained:
    """Return the model trained on D_rand or D_det built with the robust source.

    Args:
        p: The preset.
        key: "rand" or "det".
        seed: Seed.
    """
    return trained(p, made_by_robust_source(p, key, seed), p.on[key], f"{TITLES[key]}, robust source", seed)


def _model(p: Preset, source: str, key: str, seed: int) -> Trained:
    if key != "by heart":
        return (model if source == "standard" else on_robust_source)(p, key, seed)
    usual = _model(p, source, "rand", seed)
    config = p.on["rand"].replace(augment="none", weight_decay=5e-4, epochs=p.by_heart_epochs or p.on["rand"].epochs)
    return trained(p, usual.data, config, f"D_rand, {source} source, by heart", seed)


def plan(p: Preset) -> Evaluations:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    models = {"D": [model(p, "standard", seed) for seed in p.seeds]} | {
        (source, key): [_model(p, source, key, seed) for seed in p.seeds] for source in PAPER for key in NAMES
    }
    return {row: [evaluated(p, m, radii=()) for m in of_row] for row, of_row in models.items()}


def report(workspace: Workspace, p: Preset, steps: Evaluations) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    numbers = {row: clean(outcomes(workspace, of_row)) for row, of_row in steps.items()}
    base = numbers.pop("D")
    curves = {row: [workspace.history(step.model) for step in steps[row]] for row in numbers}
    own = {row: Plain(tuple(100 * c[-1]["train_accuracy"] for c in of_row), 1) for row, of_row in curves.items()}
    made = {
        row: Plain(
            tuple(100 * float(workspace.open(step.model.data).target_success.double().mean()) for step in steps[row]), 1
        )
        for row in numbers
    }
    columns = ("source model", *(f"{name}, %" for name in NAMES.values()))
    tables = [
        Table(
            "Test accuracy on D, by source model",
            (*columns[:1], "D, %", *columns[1:]),
            tuple(
                (source, (Cell(base, 95.3), *(Cell(numbers[source, key], paper) for key, paper in papers.items())))
                for source, papers in PAPER.items()
            ),
            "At the last epoch. In the paper D_rand from a robust source peaks at about 43 % and falls to 25.2 %. "
            "Memorised: trained without augmentation, with a weight decay of 5e-4, until the set is memorised.",
        ),
        Table(
            "Accuracy of each model on its own set",
            columns,
            tuple((source, tuple(Cell(own[source, key]) for key in NAMES)) for source in PAPER),
            "Training accuracy at the last epoch. A set that is not yet memorised may have taught only what all of its "
            "images have in common.",
        ),
        Table(
            "How often the source predicts the new label of an image",
            ("source model", "D_rand, %", "D_det, %"),
            tuple((source, tuple(Cell(made[source, key]) for key in ("rand", "det"))) for source in PAPER),
            "A source that is robust at the radius of the perturbations resists them; if it is fooled as often as the "
            "standard one, the two sets differ less than the paper's.",
        ),
    ]
    # A model that learned nothing says nothing about its set.
    chance = guessing(workspace, p)
    return Result(
        tables=tables,
        findings=[
            _finding(NAMES[key], numbers["standard", key], numbers["robust", key], own["robust", key].mean, chance)
            for key in NAMES
        ],
        pictures=[
            Picture(
                "figure10",
                "Training curves",
                plots.training_curves(
                    {f"{source} {key}": of_row[0] for (source, key), of_row in curves.items()},
                    {f"{source} {key}": f"{NAMES[key]}, {source} source" for source, key in curves},
                ),
                "Accuracy by epoch: solid line on the true test set, pale line on the training set.",
            )
        ],
        why_different=[
            "The length of training on D_rand from a robust source matters: the paper's curve peaks at 43 % before the "
            "labels are memorised, and ends at 25.2 %. Hence the two columns for D_rand, compared with the same number."
        ],
    )


def _finding(name: str, standard: Number, robust: Number, learned: float, chance: float) -> Finding:
    """Judge whether the robust source teaches less; ``learned`` is its model's accuracy on its own set, in per cent."""
    seen = f"{standard} with the standard source, {robust} with the robust one."
    failed = learned <= 2 * chance
    if failed:
        seen += f" But that model reaches only {learned:.0f} % on its own set."
    return Finding(
        "The non-robust features are what generalises: with a robust source, whose perturbations contain few of them, "
        f"{name} gives lower accuracy.",
        "A robust source giving as high an accuracy as a standard one.",
        seen,
        "inconclusive" if failed else compare(standard, robust),
        seeds=fewest_seeds(standard, robust),
    )


EXPERIMENT = Experiment(
    name="table9",
    title="The same construction with a robust source model",
    source="Table 9 and Figure 10, Appendices D.4 and D.5",
    paper="D_rand 63.3 (standard source), 25.2 (robust); D_det 43.7, 5.8",
    plan=plan,
    report=report,
)
