"""The talk's binary experiment: cats turned into "dogs" and dogs into "cats" teach to tell true cats from true dogs."""

from __future__ import annotations

from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Cell, Finding, Result, Table, compare, fewest_seeds
from advfeat.experiments.shared_stages import clean, evaluated, outcomes, trained
from advfeat.experiments.stages import Constructed, Data, Trained
from advfeat.experiments.workspace import Workspace


def plan(p: Preset) -> Plan:
    train, test = (Data(p.dataset, split, p.limit, p.pair, label=" and ".join(p.pair)) for split in ("train", "test"))
    models: dict[str, list[Trained]] = {"D": [], "adversarial examples": []}
    for seed in p.seeds:
        source = trained(p, train, p.standard, "/".join(p.pair), seed, test=test)
        made = Constructed(
            p.recipes["det"], source, train, seed, p.batch_size, p.amp, p.dtype, label="to the other class"
        )
        models["D"].append(source)
        models["adversarial examples"].append(trained(p, made, p.on["det"], "on the other class", seed, test=test))
    return {name: [evaluated(p, m, on=test, radii=()) for m in of_name] for name, of_name in models.items()}


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
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
        f"{n:,} training images; each is moved towards the other class ({success:.1f} % reach it for the source) and "
        "labelled with it, so that to a person every label is wrong.",
    )
    found = accuracy["adversarial examples"]
    return Result(
        tables=[table],
        findings=[
            Finding(
                "A model trained on images that all look wrongly labelled tells the true classes apart.",
                "Accuracy at 50 % or below: below it, the model has learned what a person sees.",
                f"{found} on true images, where a coin has 50 % and a model that follows what one sees nearly 0 %.",
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
