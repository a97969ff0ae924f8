"""Table 9 and Figure 10 (Appendices D.4, D.5): D_rand and D_det built with a robust source, and training curves."""

from __future__ import annotations

import dataclasses

from advfeat import plots
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.lab import Lab
from advfeat.experiments.pieces import LABELS, TITLES, clean, constructed, evaluated, guessing, model, outcomes, trained
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Number, Picture, Plain, Result, Table, compare
from advfeat.experiments.steps import Trained
from advfeat.training import paper_attack

PAPER = {"standard": {"rand": 63.3, "det": 43.7}, "robust": {"rand": 25.2, "det": 5.8}}


def robust_source(p: Preset, key: str, seed: int) -> Trained:
    """A model trained adversarially at the radius of D_rand's and D_det's perturbations, as the paper's is (both 0.5).

    One trained at a smaller radius is fooled at the larger one, and its perturbations then show a person the target.
    """
    own = model(p, "adversarial", seed)
    return dataclasses.replace(
        own, config=own.config.replace(attack=paper_attack(p.recipes[key].eps)), label="D, robust source"
    )


def on_robust_source(p: Preset, key: str, seed: int) -> Trained:
    """The model trained on D_rand or D_det that was built with the robust source."""
    name = f"{TITLES[key]}, robust source"
    made = constructed(p, key, seed, source=robust_source(p, key, seed), label=name)
    return trained(p, made, p.on[key], name, seed)


def plan(p: Preset) -> Plan:
    models = {"D": [model(p, "standard", seed) for seed in p.seeds]} | {
        (source, key): [(model if source == "standard" else on_robust_source)(p, key, seed) for seed in p.seeds]
        for source in PAPER
        for key in ("rand", "det")
    }
    return {row: [evaluated(p, m, radii=()) for m in of_row] for row, of_row in models.items()}


def report(lab: Lab, p: Preset, steps: Plan) -> Result:
    numbers = {row: clean(outcomes(lab, of_row)) for row, of_row in steps.items()}
    base = numbers.pop("D")
    table = Table(
        "Test accuracy on D, by source model",
        ("source model", *(f"{name}, %" for name in ("D", "D_rand", "D_det"))),
        tuple(
            (source, (Cell(base, 95.3), *(Cell(numbers[source, key], paper) for key, paper in papers.items())))
            for source, papers in PAPER.items()
        ),
        "At the last epoch. In the paper D_rand from a robust source peaks at about 43 % and falls to 25.2 %.",
    )
    made = {row: [lab.open(step.model.data).target_success.double().mean() for step in steps[row]] for row in numbers}
    fooled = Table(
        "How often the source takes an image for its new label",
        ("source model", "D_rand, %", "D_det, %"),
        tuple(
            (source, tuple(Cell(Plain(tuple(100 * float(v) for v in made[source, key]), 1)) for key in ("rand", "det")))
            for source in PAPER
        ),
        "A source that is robust at the radius of the perturbations resists; where it is fooled as often as the "
        "standard one, the two sets are less different than the paper's.",
    )
    curves, labels = {}, {}
    for source, key in numbers:
        name = key if source == "standard" else f"{key} robust"
        curves[name] = lab.history(steps[source, key][0].model)
        labels[name] = f"{LABELS[key]}, {source} source"
    # A model that learned nothing says nothing of its set, either.
    chance = guessing(lab, p)
    learned = {key: 100 * curves[f"{key} robust"][-1]["train_accuracy"] for key in ("rand", "det")}
    return Result(
        tables=[table, fooled],
        findings=[
            _finding(TITLES[key], numbers["standard", key], numbers["robust", key], learned[key], chance)
            for key in ("rand", "det")
        ],
        pictures=[
            Picture(
                "figure10",
                "Training curves",
                plots.training_curves(curves, labels),
                "Accuracy by epoch: strong line on the true test set, pale line on the set itself.",
            )
        ],
    )


def _finding(name: str, standard: Number, robust: Number, learned: float, chance: float) -> Finding:
    """learned: the accuracy of the robust source's model on its own set, in per cent."""
    seen = f"{standard} with the standard source, {robust} with the robust one."
    failed = learned <= 2 * chance
    if failed:
        seen += f" But that model is right on no more than {learned:.0f} % of its own set."
    return Finding(
        "It is the non-robust features that teach: with a robust source, whose perturbations hold few of them, "
        f"{name} teaches less.",
        "A robust source teaching as much as a standard one.",
        seen,
        "undecided" if failed else compare(standard, robust),
    )


EXPERIMENT = Experiment(
    name="table9",
    title="The same construction with a robust source model",
    source="Table 9 and Figure 10, Appendices D.4 and D.5",
    paper="D_rand 63.3 (standard source), 25.2 (robust); D_det 43.7, 5.8",
    plan=plan,
    report=report,
)
