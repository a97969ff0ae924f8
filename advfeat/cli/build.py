"""The ``advfeat build`` command."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from advfeat.attacks import Converged
from advfeat.cli.console import bar
from advfeat.cli.files import check_place, describe_set, load_model
from advfeat.cli.options import option_of
from advfeat.datasets.building import build
from advfeat.datasets.recipes import PRESETS, preset

if TYPE_CHECKING:
    from advfeat.cli import commands


def run(c: commands.Build) -> None:
    """Build a data set with a trained model.

    Args:
        c: Parsed options.

    Raises:
        ValueError: If an option does not apply to the recipe, or the model does not fit the data set.
    """
    check_place(c.out, "manifest.json")
    device = c.runtime.torch_device()
    model = load_model(c.model)
    source = c.data.load("train", model.input_shape)
    recipe = preset(c.preset or _preset_of(c.data.dataset), c.recipe)
    given: dict[str, Any] = {"eps": c.eps, "steps": c.steps, "step_size": c.step_size, "start": c.start}
    given["stop"] = Converged() if c.converge else None
    fields = {f.name for f in dataclasses.fields(recipe)}
    for name, value in given.items():
        if value is not None and name not in fields:
            option = "--converge" if name == "stop" else option_of(name)
            raise ValueError(f"{option} has no meaning for the recipe {c.recipe!r}")
    recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
    with bar(f"building {c.recipe} from {source.name}", "images") as report:
        made = build(
            recipe,
            model,
            source,
            c.out,
            seed=c.seed,
            batch_size=c.runtime.batch_size,
            shard_size=c.shard_size,
            dtype=c.dtype,
            device=device,
            autocast=c.runtime.autocast(),
            compile=c.compile,
            same_classes=c.same_classes,
            any_source=c.any_source,
            progress=report,
        )
    describe_set(made, c.out)


def _preset_of(dataset: str) -> str:
    """Return the preset that belongs to a data set."""
    return dataset if dataset in PRESETS else ("digits" if dataset in ("planted",) else "cifar10")
