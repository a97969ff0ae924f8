"""The talk's binary experiment: cats turned into "dogs" and dogs into "cats" teach to tell true cats from true dogs."""

from __future__ import annotations

import dataclasses

from advfeat.experiments.experiment import Evaluations, Experiment
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Result, Table, compare, fewest_seeds
from advfeat.experiments.shared_stages import clean, evaluated, outcomes, trained
from advfeat.experiments.stages import Constructed, Data, Trained
from advfeat.experiments.workspace import Workspace


def plan(p: Preset) -> Evaluations:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    train = Data(p.dataset, "train", p.limit, p.pair, label=" and ".join(p.pair))
    test = dataclasses.replace(train, split="test")
    models: dict[str, list[Trained]] = {"D": [], "adversarial examples": []}
    for seed in p.seeds:
        source = trained(p, train, p.standard, "/".join(p.pair), seed, test=test)
        made = Constructed(
            p.recipes["det"], source, train, seed, p.batch_size, p.amp, p.dtype, label="to the other class"
        )
        models["D"].append(source)
        models["adversarial examples"].append(trained(p, made, p.on["det"], "on the other class", seed, test=test))
    return {name: [evaluated(p, m, on=test, radii=()) for m in of_name] for name, of_name in models.items()}


def report(workspace: Workspace, p: Preset, steps: Evaluations) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    accuracy = {name: clean(outcomes(workspace, steps[name])) for name in steps}
    made = workspace.open(steps["adversarial examples"][0].model.data)
    n = len(made)
    success = 100 * float(made.target_success.float().mean())
    table = Table(
        f"Accuracy on true {p.pair[0]} and {p.pair[1]}",
        ("trained on", "accuracy, %"),
        (
            ("D", (Cell(accuracy["D"]),)),
            (
                "adversarial examples, labelled as the other class",
                (Cell(accuracy["adversarial examples"], 78.0, True),),
            ),
        ),
        f"{n:,} training images; each is moved towards the other class (which the source model predicts for "
        f"{success:.1f} %) and labelled with it, so that every label contradicts the image content.",
    )
    found = accuracy["adversarial examples"]
    return Result(
        tables=[table],
        findings=[
            Finding(
                "A model trained on images that all look mislabelled tells the true classes apart.",
                "Accuracy of 50 % or less: below 50 %, the model has learned the image content.",
                f"{found} on true images; guessing gives 50 %, a model that follows the image content nearly 0 %.",
                compare(found, 50.0),
                seeds=fewest_seeds(found),
            )
        ],
    )


EXPERIMENT = Experiment(
    name="cats-vs-dogs",
    title="Cats labelled as dogs teach what a cat is",
    source="The authors' talk",
    paper="78 % on the true test set",
    plan=plan,
    report=report,
)
