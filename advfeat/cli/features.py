"""The ``advfeat features`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from advfeat.cli.console import bar, console
from advfeat.cli.files import check_results, load_model, of_what, say_written, write_results
from advfeat.cli.options import radii
from advfeat.evaluation import pgd_attack
from advfeat.features import attacked_ranges, check_labels, usefulness
from advfeat.json_files import to_json
from advfeat.models import check_fits
from advfeat.plots import label
from advfeat.provenance import provenance
from advfeat.threat import NORMS

if TYPE_CHECKING:
    from advfeat.cli import commands


def run(c: commands.Features) -> None:
    """Measure the usefulness of a model's features, print a table and optionally write the results.

    Args:
        c: Parsed options.

    Raises:
        ValueError: If the model does not fit the data set, or its labels have fewer than two classes.
        OSError: If the results cannot be written; the table is printed first.
    """
    failed = None
    if c.out is not None:
        check_results(c.out, "features.png", "features.json")
    eps = radii("--eps", c.eps, NORMS[c.norm], NORMS[c.norm].usual_radii[0])
    device = c.runtime.torch_device()
    model = load_model(c.model).to(device)
    source = c.data.load(c.split, model.input_shape)
    check_fits(model, source.classes, source.image_shape, f"data set {source.name!r}", c.same_classes)
    check_labels(source.labels)
    pgd = pgd_attack(
        eps,
        c.norm,
        steps=c.steps,
        step_size=c.step_size,
        seed=c.seed,
        schedule=c.schedule,
        momentum=c.momentum,
    )
    pgd = pgd.replace(autocast=c.runtime.autocast())
    with bar(f"attacking the features of {c.model} on {source.name}", "attacks") as report:
        ranges = attacked_ranges(
            model.representation, source.images().to(device), pgd, batch_size=c.runtime.batch_size, progress=report
        )
    found = usefulness(ranges, source.labels)
    radius = f"{c.norm} {NORMS[c.norm].write_radius(eps)}"
    if c.out is not None:
        attack = {**pgd.to_dict(), "objective": "each feature, down and up", "targeted": True, "keep": "best"}
        settings = {"attack": attack, **of_what(model, source), "model": str(c.model)}
        results = {**settings, "features": found.rows(), **provenance(device)}
        picture = found.scatter_png(label(f"{c.model}: {source.name}, {radius}", 60))
        failed = write_results([(c.out / "features.png", picture), (c.out / "features.json", to_json(results))])
    console.print(found.table(c.show))
    words = (
        f"rho: usefulness for the class against the rest; gamma: robust usefulness at {radius} (PGD, {c.steps} "
        f"step{'' if c.steps == 1 else 's'}: "
        "an upper bound, which a stronger attack would lower). ± one standard error; robust and non-robust mean more "
        "than three standard errors above or below 0."
    )
    console.print(Text(words, "dim"))
    say_written(c.out, failed, "features.json and features.png")
