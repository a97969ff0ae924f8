"""The ``advfeat attack`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch

from advfeat.cli.console import bar, say
from advfeat.cli.files import check_results, load_model, of_what, say_written, write_results
from advfeat.cli.options import radii
from advfeat.evaluation import pgd_attack
from advfeat.forward import output, predicted_classes
from advfeat.json_files import to_json
from advfeat.models import check_fits
from advfeat.plots import label, sample_grid
from advfeat.provenance import provenance
from advfeat.threat import NORMS

if TYPE_CHECKING:
    from advfeat.cli import commands


def run(c: commands.Attack) -> None:
    """Attack the images of a data set and write the examples, their statistics and a picture.

    Args:
        c: Parsed options.

    Raises:
        ValueError: If the model does not fit the data set, or the radius covers the whole box.
        OSError: If the results cannot be written; the summary is printed first.
    """
    check_results(c.out, "adversarial.safetensors", "samples.png", "attack.json")
    eps = radii("--eps", c.eps, NORMS[c.norm], NORMS[c.norm].usual_radii[-1])
    device = c.runtime.torch_device()
    model = load_model(c.model).to(device)
    source = c.data.load(c.split, model.input_shape)
    check_fits(model, source.classes, source.image_shape, f"data set {source.name!r}", c.same_classes)
    targeted = c.target == "next"
    pgd = pgd_attack(
        eps,
        c.norm,
        steps=c.steps,
        step_size=c.step_size,
        restarts=c.restarts,
        seed=c.seed,
        schedule=c.schedule,
        momentum=c.momentum,
    )
    pgd = pgd.replace(targeted=targeted, autocast=c.runtime.autocast())
    labels = source.labels
    target = (labels + 1) % len(source.classes) if targeted else labels
    parts, images = [], []
    with bar(f"attacking {c.model} on {source.name}", "images") as report:
        for index in torch.arange(len(source)).split(c.runtime.batch_size):
            x = source.images(index)
            images.append(x)
            parts.append(pgd.run(model, x.to(device), target[index].to(device), sample_ids=index.to(device)))
            report(int(index[-1]) + 1, len(source))
    x, x_adv = torch.cat(images), torch.cat([p.x_adv.cpu() for p in parts])
    success = torch.cat([p.success.cpu() for p in parts])
    tensors = {
        "images": x_adv,
        "label": labels,
        "target": target,
        "success": success,
        "value": torch.cat([p.value.float().cpu() for p in parts]),
        "distance": torch.cat([p.distance.float().cpu() for p in parts]),
        "zero_grad_steps": torch.cat([p.zero_grad_steps.cpu() for p in parts]),
        "nonfinite_grad_steps": torch.cat([p.nonfinite_grad_steps.cpu() for p in parts]),
    }
    # safetensors refuses tensors that share memory
    own = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    summary = {"attack": pgd.to_dict(), **of_what(model, source), "success": float(success.float().mean())}
    shown = success.nonzero()[:10, 0] if success.any() else torch.arange(min(10, len(source)))
    said = predicted_classes(output(model, x_adv[shown].to(device))).tolist()
    names = [label(name, 26) for name in (*source.classes, "nothing")]  # -1 is no prediction
    captions = [f"{names[int(labels[i])]}\n→ {names[s]}" for i, s in zip(shown, said, strict=True)]
    rows = [("original", x[shown]), ("attacked", x_adv[shown])]
    picture = sample_grid(rows, captions, ("difference", (x_adv - x)[shown]))
    failed = write_results(
        [
            (c.out / "adversarial.safetensors", safetensors.torch.save(own)),
            (c.out / "samples.png", picture),
            (c.out / "attack.json", to_json({**summary, "model": str(c.model), **provenance(device)})),
        ]
    )
    verb = "reached the next class" if targeted else "are misclassified"
    radius = f"{c.norm} {NORMS[c.norm].write_radius(eps)}"
    say(f"{100 * summary['success']:.1f} % of {len(source):,} images {verb} at {radius}")
    say_written(c.out, failed, "adversarial.safetensors, attack.json and samples.png")
