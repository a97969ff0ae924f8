"""``advfeat evaluate --curve``: robust accuracy at all radii, as a table, a picture and a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.text import Text

from advfeat.attacks import DDN, FMN, Attack, Auto, RadiusSearch
from advfeat.cli.breakdown import percent
from advfeat.cli.console import bar, table
from advfeat.cli.evaluate import attack_in_words, check_output, evaluation_attack
from advfeat.cli.files import load_model, say_written, write_results
from advfeat.cli.options import option_of, radii
from advfeat.evaluation import RobustnessCurve, curve_attack, robustness_curve
from advfeat.files import check_writable_file
from advfeat.json_files import to_json
from advfeat.provenance import provenance
from advfeat.threat import NORMS

if TYPE_CHECKING:
    from advfeat.cli import commands


def run(c: commands.Evaluate) -> None:
    """Search for nearest adversarial examples, print accuracies at the radii of the table and write file and picture.

    Args:
        c: Parsed options.

    Raises:
        ValueError: If an option has no meaning for a curve or for the attack, ``--out`` would replace a file of a run,
            set or result, or the model does not fit the data set.
        OSError: If the results cannot be written; the table is printed first.
    """
    norm = NORMS[c.norm]
    if c.eps is not None:
        raise ValueError("--eps has no meaning for --curve, which searches over all radii: --radii sets those printed")
    if c.step_size is not None:
        raise ValueError("--step-size has no meaning for --curve, which attacks each sample at radii of its own")
    for option in ("table", "examples", "state", "diagnose", "transfer"):
        if getattr(c, option) not in (None, False):
            raise ValueError(f"{option_of(option)} has no meaning for --curve")
    if len(c.model) > 1:
        raise ValueError(f"--curve is for one --model, got {len(c.model)}")
    (folder,) = c.model
    shown = radii("--radii", c.radii, norm, norm.usual_radii)
    _attack(c, 1)  # tells wrong options before the model is read
    picture, failed = None, None
    if c.out is not None:
        if c.out.suffix.lower() == ".png":
            raise ValueError(f"--out should be a JSON file, beside which the picture is written, got {c.out}")
        check_output("--out", c.out)
        # Not with_suffix: a name may contain a radius, whose decimal point does not start a suffix.
        picture = check_writable_file(c.out.with_name(f"{c.out.name.removesuffix('.json')}.png"))
    device = c.runtime.torch_device()
    model = load_model(folder).to(device)
    source = c.data.load(c.split, model.input_shape)
    attack = _attack(c, math.prod(source.image_shape))
    with bar(f"nearest adversarial examples for {folder} on {source.name}", "samples") as report:
        curve = robustness_curve(
            model,
            source,
            attack,
            radii=shown,
            batch_size=c.runtime.batch_size,
            same_classes=c.same_classes,
            progress=report,
        )
    if c.out is not None and picture is not None:
        # Before printing, so that the results survive a failure of the terminal.
        results = {"model": str(folder), "picture": picture.name, **curve.to_dict(samples=True), **provenance(device)}
        title = f"{folder.name} on {source.name}, {len(source):,} samples"
        failed = write_results([(picture, curve.png(title)), (c.out, to_json(results))])
    rows: list[list[str | Text]] = [["clean", percent(curve.clean), curve.note or ""]]
    rows += [[f"{c.norm} {norm.write_radius(eps)}", percent(curve.at(eps)), ""] for eps in curve.radii if eps > 0]
    if curve.never_broken.count:
        rows.append(["any radius", percent(curve.never_broken), "no adversarial example found"])
    table("accuracy against the radius", ["", "accuracy", "notes"], rows, _caption(c, curve, attack))
    say_written(c.out, failed, f"picture to {picture.name}" if picture else "")


def _attack(c: commands.Evaluate, dim: int) -> Attack:
    """The search, for images of ``dim`` values."""
    if c.attack == "strong":
        for name, given in (
            ("restarts", c.restarts != 1),
            ("schedule", c.schedule is not None),
            ("momentum", c.momentum is not None),
            ("stop", c.stop),
        ):
            if given:
                raise ValueError(f"{option_of(name)} has no meaning for --curve with --attack strong")
        steps = {} if c.steps is None else {"steps": c.steps}
        return curve_attack(c.norm, dim=dim, seed=c.seed, autocast=c.runtime.autocast(), **steps)
    attack = evaluation_attack(c, NORMS[c.norm].holds_the_box(1.0, dim))
    return attack if isinstance(attack, (DDN, FMN)) else RadiusSearch(attack)


def _caption(c: commands.Evaluate, curve: RobustnessCurve, attack: Attack) -> str:
    parts = [
        f"{curve.clean.n:,} samples; 95 % Wilson intervals",
        "upper bounds: a sample counts as robust where no adversarial example was found at that distance or less",
    ]
    if math.isfinite(curve.median):
        parts.append(f"median smallest distance {curve.median:.3g} (0 if misclassified)")
    parts.append(_in_words(c, attack))
    of, kind = ("forward", "passes") if c.attack == "square" else ("backward", "gradient passes")
    passes = getattr(curve, f"{of}_passes") / max(curve.attacked, 1)
    parts.append(f"{passes:,.0f} {kind} per attacked sample")
    for count, what in (
        (curve.unconfirmed, "with an example that the model does not confirm"),
        (curve.zero_gradient, "with zero gradients"),
        (curve.nonfinite_gradient, "with non-finite gradients"),
    ):
        parts += [f"{count:,} {what}"] if count else []
    return "; ".join(parts)


def _in_words(c: commands.Evaluate, attack: Attack) -> str:
    if not isinstance(attack, RadiusSearch):
        return attack_in_words(c, attack)
    search = f"at up to {attack.rounds} radii per sample"
    if attack.first is not None and isinstance(auto := attack.attack, Auto):  # --attack strong
        first = attack.first.to_dict()
        return (
            f"{first['attack']}, {first['steps']} steps, then {search} {auto.steps} steps of Auto-PGD on the margin "
            f"and towards each of {auto.target_classes} other classes"
        )
    return f"{search}, {attack_in_words(c, attack.attack)}"
