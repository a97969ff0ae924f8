"""The paper's four constructions as recipes: the starting image, the objective, and the label that is stored.

A recipe is a frozen dataclass, which :func:`advfeat.datasets.build` carries out. ``preset("cifar10", "det")`` has the
paper's settings: Appendix C.4 (Table 5, Figure 5) and C.5 (Table 6, Figure 6).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from advfeat._arguments import meant
from advfeat.attacks import PGD, Converged
from advfeat.datasets.registry import known
from advfeat.objectives import Margin, Representation
from advfeat.random import normals, uniform_numbers
from advfeat.settings import OMITTED_AT_DEFAULT, settings_of
from advfeat.threat import L2, Threat, check_norm

Schedule = Literal["constant", "cosine"]

# Streams of random numbers, distinct from those of random starts (0 and 1).
_STREAM_TARGET, _STREAM_START = 2, 3


@dataclass(frozen=True)
class MatchRepresentation:
    """D_R and D_NR: an image with the representation of x, found from an unrelated start (paper C.4, Equation (5)).

    min_z ||g(z) - g(x)||_2 over z in [0, 1]^d by normalised gradient steps of fixed length, starting from another image
    of the data set drawn independently of the label ("image") or from noise ("noise", N(0.5, 1/20) clipped); no norm
    ball. The label is that of x. With an adversarially trained g the set is D_R ("robust"), with a standard one it is
    D_NR ("nonrobust").

    Args:
        name: "robust" or "nonrobust".
        steps: Gradient steps.
        step_size: L2 length of a step, in pixel scale, or "polyak"; see :class:`advfeat.PGD`.
        start: "image" or "noise".
        stop: Stops a sample early once its distance has stopped falling (:class:`advfeat.Converged`); None takes all
            steps, as the paper does.
        schedule: How the step size changes over the steps, see :class:`advfeat.PGD`; constant in the paper.
        momentum: See :class:`advfeat.PGD`; 0 in the paper.

    Raises:
        ValueError: If the name or start is another one.
    """

    name: Literal["robust", "nonrobust"]
    steps: int
    step_size: float | Literal["polyak"]
    start: Literal["image", "noise"] = "image"
    stop: Converged | None = None
    schedule: Schedule = field(default="constant", metadata=OMITTED_AT_DEFAULT)
    momentum: float = field(default=0.0, metadata=OMITTED_AT_DEFAULT)

    def __post_init__(self) -> None:
        _check_choice("name", self.name, ("robust", "nonrobust"))
        _check_choice("start", self.start, ("image", "noise"))

    @property
    def source_model(self) -> str:
        """The kind of source model that the recipe needs: "robust" (adversarially trained) or "standard"."""
        return "robust" if self.name == "robust" else "standard"

    def attack(self) -> PGD:
        """The attack that makes the images."""
        return PGD(
            L2(math.inf),
            steps=self.steps,
            step_size=self.step_size,
            objective=Representation(relative=True),
            targeted=True,
            stop=self.stop,
            schedule=self.schedule,
            momentum=self.momentum,
        )

    def to_dict(self) -> dict:
        """The settings as JSON values, as stored in a manifest."""
        return {"kind": "match-representation", **_written(self)}


@dataclass(frozen=True)
class PerturbTowardsTarget:
    """D_rand and D_det: x with a small targeted perturbation, labelled with the target t (paper C.5, Equation (6)).

    min L(x', t) over ||x' - x|| <= eps by normalised gradient steps on a standard model, from x itself. t is uniform
    over the classes, possibly y (D_rand), or (y + 1) mod C (D_det). Every sample is kept, whether or not the model
    predicts t.

    Args:
        name: "rand" or "det".
        eps: Radius of the ball, in pixel scale.
        steps: Gradient steps.
        step_size: Length of a step in the norm, in pixel scale.
        norm: "l2", as in the paper, or another name in :data:`advfeat.threat.NORMS`.
        schedule: How the step size changes over the steps, see :class:`advfeat.PGD`; constant in the paper.
        momentum: See :class:`advfeat.PGD`; 0 in the paper.

    Raises:
        ValueError: If the name or norm is another one.
    """

    name: Literal["rand", "det"]
    eps: float
    steps: int
    step_size: float
    norm: str = "l2"
    schedule: Schedule = field(default="constant", metadata=OMITTED_AT_DEFAULT)
    momentum: float = field(default=0.0, metadata=OMITTED_AT_DEFAULT)

    def __post_init__(self) -> None:
        _check_choice("name", self.name, ("rand", "det"))
        check_norm(self.norm)

    @property
    def source_model(self) -> str:
        """The kind of source model that the recipe needs: "robust" (adversarially trained) or "standard"."""
        return "standard"

    def attack(self) -> PGD:
        """The attack that makes the images."""
        threat = Threat.of(self.norm, self.eps)
        return PGD(
            threat,
            steps=self.steps,
            step_size=self.step_size,
            objective=Margin(1.0),
            targeted=True,
            schedule=self.schedule,
            momentum=self.momentum,
        )

    def targets(self, labels: Tensor, classes: int, seed: int, sample_ids: Tensor) -> Tensor:
        """The labels to store, which are the targets of the attack.

        Args:
            labels: The true labels, int64 [B].
            classes: Number of classes.
            seed: Seed of the labels of D_rand.
            sample_ids: Positions in the source, int64 [B]; a drawn label is a function of seed and position.

        Returns:
            int64 [B].
        """
        if self.name == "det":
            return (labels + 1) % classes
        return random_integers(classes, seed, sample_ids, _STREAM_TARGET)

    def to_dict(self) -> dict:
        """The settings as JSON values, as stored in a manifest."""
        return {"kind": "perturb-towards-target", **_written(self)}


Recipe = MatchRepresentation | PerturbTowardsTarget


def _written(recipe: Recipe) -> dict[str, Any]:
    settings = settings_of(recipe)
    return {name: value for name, value in dataclasses.asdict(recipe).items() if name in settings}


def describe_steps(recipe: Recipe) -> str:
    """The steps of a recipe as a phrase, such as "15 steps of length 1 falling along a cosine, with momentum 0.5".

    Args:
        recipe: The recipe.
    """
    most = "at most " if isinstance(recipe, MatchRepresentation) and recipe.stop else ""
    size = "Polyak's length" if recipe.step_size == "polyak" else f"length {recipe.step_size:g}"
    falling = "" if recipe.schedule == "constant" else f", falling along a {recipe.schedule}"
    momentum = f", with momentum {recipe.momentum:g}" if recipe.momentum else ""
    return f"{most}{recipe.steps:,} steps of {size}{falling}{momentum}"


def _check_choice(name: str, value: str, choices: tuple[str, ...], others: Mapping[str, str] | None = None) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(choices)}, got {value!r}{meant(value, choices, others)}")


# The end of the names of fast presets.
FAST = "-fast"

# The paper's name of the set that each recipe makes.
SETS = {"robust": "D_R", "nonrobust": "D_NR", "rand": "D_rand", "det": "D_det"}
_RECIPES = {name: recipe for recipe, name in SETS.items()}


def check_recipe_name(name: str) -> None:
    """Raises a ValueError, with a suggestion, if a recipe has no such name."""
    _check_choice("recipe", name, tuple(SETS), _RECIPES)


def random_integers(n: int, seed: int, sample_ids: Tensor, stream: int) -> Tensor:
    """Uniform integers in [0, n), a function of (seed, sample id, stream) alone.

    Args:
        n: Upper bound, exclusive.
        seed: Seed of the draw.
        sample_ids: int64 [B].
        stream: Number of the stream of random numbers.

    Returns:
        int64 [B].
    """
    u = uniform_numbers(seed, sample_ids, stream)
    return (u * n).to(torch.int64).clamp_(max=n - 1)


def start_indices(n: int, seed: int, sample_ids: Tensor) -> Tensor:
    """For each sample, the position of another sample of the data set to start from, never its own.

    Args:
        n: Number of samples in the data set.
        seed: Seed of the draw.
        sample_ids: Positions of the samples, int64 [B].

    Returns:
        Positions, int64 [B].

    Raises:
        ValueError: If there are fewer than two samples.
    """
    if n < 2:
        raise ValueError(f"a start from another image needs at least 2 samples, the data set has {n}")
    return (sample_ids + 1 + random_integers(n - 1, seed, sample_ids, _STREAM_START)) % n


def noise_start(images: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
    """Noise images N(0.5, 1/20) clipped to [0, 1], a function of (seed, sample id) alone.

    Args:
        images: [B, C, H, W]; the noise has their shape, dtype and device.
        seed: Seed of the noise.
        sample_ids: int64 [B].
    """
    noise = normals(images, seed, sample_ids).reshape(images.shape)
    return (0.5 + noise / 20).clamp(0, 1).to(images.dtype)


def _recipes(match_steps: int, match_step: float, eps: float, steps: int, step_size: float) -> dict[str, Recipe]:
    return {
        "robust": MatchRepresentation("robust", match_steps, match_step),
        "nonrobust": MatchRepresentation("nonrobust", match_steps, match_step),
        "rand": PerturbTowardsTarget("rand", eps, steps, step_size),
        "det": PerturbTowardsTarget("det", eps, steps, step_size),
    }


def _fast(preset: dict[str, Recipe], match: dict[str, tuple[int, float, float]], steps: int) -> dict[str, Recipe]:
    """The recipes of a preset in fewer steps: their sizes fall along a cosine, and there is momentum.

    Args:
        preset: The preset.
        match: For D_R and D_NR the number of steps, the first step size and the momentum.
        steps: The number of steps of D_rand and D_det, of which the first is as long as the radius.
    """
    found: dict[str, Recipe] = {}
    for name, recipe in preset.items():
        if isinstance(recipe, PerturbTowardsTarget):
            found[name] = dataclasses.replace(
                recipe, steps=steps, step_size=recipe.eps, momentum=0.5, schedule="cosine"
            )
        else:
            count, size, momentum = match[name]
            found[name] = dataclasses.replace(recipe, steps=count, step_size=size, momentum=momentum, schedule="cosine")
    return found


PRESETS: dict[str, dict[str, Recipe]] = {
    # Tables 5 and 6.
    "cifar10": _recipes(match_steps=1000, match_step=0.1, eps=0.5, steps=100, step_size=0.1),
    "restricted-imagenet": _recipes(match_steps=2000, match_step=1.0, eps=3.0, steps=100, step_size=0.1),
    # For small networks, chosen by measurement: see docs/decisions.md.
    "digits": _recipes(match_steps=150, match_step=0.05, eps=1.5, steps=100, step_size=0.1),
    "cifar10-cpu": _recipes(match_steps=200, match_step=0.1, eps=1.5, steps=30, step_size=0.1),
}
# About a tenth of the steps for D_R and D_NR, a fifth for D_rand and D_det: docs/performance.md compares the sets.
PRESETS |= {
    f"{name}{FAST}": _fast(PRESETS[name], {"robust": robust, "nonrobust": nonrobust}, steps)
    for name, robust, nonrobust, steps in (
        ("cifar10", (100, 0.5, 0.9), (100, 0.5, 0.75), 20),
        # Ten times CIFAR-10's step sizes, as in the paper; not measured.
        ("restricted-imagenet", (200, 5.0, 0.9), (200, 5.0, 0.75), 20),
        ("digits", (15, 1.0, 0.5), (15, 0.5, 0.5), 20),
        ("cifar10-cpu", (20, 2.0, 0.5), (20, 0.5, 0.5), 10),
    )
}


def fast_version(name: str) -> str:
    """The name of the fast version of a preset, such as "digits-fast" for "digits"; a fast one is its own.

    Args:
        name: Name of a preset.
    """
    return name.removesuffix(FAST) + FAST


def own_recipe(data: str, recipe: str, fast: bool = False) -> Recipe | None:
    """The recipe that a build takes if it is given the name of a recipe alone: of the data set's own preset.

    Args:
        data: Name of the data set.
        recipe: As for :func:`preset`.
        fast: Whether to take the fast version of the preset.

    Returns:
        None for a data set without a preset of its own, such as a folder: no other preset stands in for it, since steps
        and radii depend on the images.
    """
    own = known(data).preset
    return None if own is None else preset(fast_version(own) if fast else own, recipe)


def preset(name: str, recipe: str) -> Recipe:
    """A recipe by name, with the paper's settings (Tables 5 and 6) or settings for small networks (docs/decisions.md).

    Args:
        name: "cifar10" or "restricted-imagenet" for the paper's settings; "digits" or "cifar10-cpu" for small networks.
            With "-fast" at the end: the same sets in about a tenth (D_R, D_NR) or a fifth (D_rand, D_det) of the steps.
        recipe: "robust" (D_R), "nonrobust" (D_NR), "rand" (D_rand) or "det" (D_det).

    Raises:
        ValueError: If a name is another one.
    """
    _check_choice("preset", name, tuple(PRESETS))
    check_recipe_name(recipe)
    return PRESETS[name][recipe]
