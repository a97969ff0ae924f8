"""The ``advfeat build`` command."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from advfeat.attacks import Converged
from advfeat.cli.console import bar
from advfeat.cli.files import check_place, describe_set, load_model
from advfeat.cli.options import option_of
from advfeat.datasets.building import build
from advfeat.datasets.recipes import PRESETS, MatchRepresentation, Recipe, fast_version, own_recipe, preset

if TYPE_CHECKING:
    from advfeat.cli import commands


def run(c: commands.Build) -> None:
    """Build a data set with a trained model.

    Args:
        c: Parsed options.

    Raises:
        ValueError: If an option does not apply to the recipe, ``--converge`` is given with falling steps, the model
            does not fit the data set, or no preset is given for a data set that has none of its own.
    """
    check_place(c.out, "manifest.json")
    device = c.runtime.torch_device()
    model = load_model(c.model)
    source = c.data.load("train", model.input_shape)
    recipe = _recipe(c, source.name)
    given: dict[str, Any] = {"eps": c.eps, "steps": c.steps, "step_size": c.step_size, "start": c.start}
    given |= {"schedule": c.schedule, "momentum": c.momentum, "stop": Converged() if c.converge else None}
    fields = {f.name for f in dataclasses.fields(recipe)}
    for name, value in given.items():
        if value is not None and name not in fields:
            option = "--converge" if name == "stop" else option_of(name)
            raise ValueError(f"{option} has no meaning for the recipe {c.recipe!r}")
    recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
    if isinstance(recipe, MatchRepresentation) and recipe.stop is not None and recipe.schedule != "constant":
        raise ValueError(
            "--converge needs steps of constant length: steps that fall gain most at the end, so fewer of them are "
            "better than stopping early; give --steps, or --schedule constant"
        )
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


def _recipe(c: commands.Build, data: str) -> Recipe:
    """Return the recipe of the given preset, or of the data set's own, as :func:`advfeat.datasets.build` does."""
    if c.preset is None:
        recipe = own_recipe(data, c.recipe, c.fast)
    else:
        recipe = preset(fast_version(c.preset) if c.fast else c.preset, c.recipe)
    if recipe is None:
        raise ValueError(
            f"--preset should be one of {', '.join(PRESETS)}, since data set {data!r} has no preset of its own, "
            "got none"
        )
    return recipe
