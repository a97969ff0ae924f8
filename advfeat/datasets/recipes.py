"""The paper's four constructions as recipes: what is started from, what is optimised, which label is stored.

A recipe is a frozen dataclass; :func:`advfeat.datasets.build` carries it out. ``preset("cifar10", "det")`` gives
the paper's settings, Appendix C.4 (Table 5, Figure 5) and C.5 (Table 6, Figure 6).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advfeat._arguments import meant
from advfeat.attacks import PGD, Converged
from advfeat.datasets.registry import known
from advfeat.objectives import Margin, Representation
from advfeat.random import normals, uniform_numbers
from advfeat.threat import L2, Threat, check_norm

# Streams of random numbers of their own, beside those of random starts (0 and 1).
_STREAM_TARGET, _STREAM_START = 2, 3


@dataclass(frozen=True)
class MatchRepresentation:
    """D_R and D_NR: an image with the representation of x, found from an unrelated start (paper C.4, Equation (5)).

    min_z ||g(z) - g(x)||_2 over z in [0, 1]^d by normalised gradient steps of fixed length, starting from another image
    of the data set drawn independently of the label ("image") or from noise ("noise", N(0.5, 1/20) clipped); no norm
    ball. Labelled like x. With an adversarially trained g the set is D_R ("robust"), with a standard one D_NR
    ("nonrobust").

    Args:
        name: "robust" or "nonrobust".
        steps: Gradient steps.
        step_size: Their L2 length, in pixel scale.
        start: "image" or "noise".
        stop: A sample is done before its last step once its distance has stopped falling (:class:`advfeat.Converged`);
            None takes all steps, as the paper does.

    Raises:
        ValueError: For another name or start.
    """

    name: Literal["robust", "nonrobust"]
    steps: int
    step_size: float
    start: Literal["image", "noise"] = "image"
    stop: Converged | None = None

    def __post_init__(self) -> None:
        _check_choice("name", self.name, ("robust", "nonrobust"))
        _check_choice("start", self.start, ("image", "noise"))

    @property
    def source_model(self) -> str:
        """What the model is that it is carried out with: "robust", adversarially trained, or "standard"."""
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
        )

    def to_dict(self) -> dict:
        """The settings as JSON values, as a manifest has them."""
        return {"kind": "match-representation", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class PerturbTowardsTarget:
    """D_rand and D_det: x with a small targeted perturbation, labelled with the target t (paper C.5, Equation (6)).

    min L(x', t) over ||x' - x|| <= eps by normalised gradient steps on a standard model, from x itself. t is uniform
    over the classes, possibly y ("uniform", D_rand), or (y + 1) mod C ("next", D_det). Every sample is kept, fooled or
    not.

    Args:
        name: "rand" or "det".
        eps: Radius of the ball, in pixel scale.
        steps: Gradient steps.
        step_size: Their length in the norm, in pixel scale.
        norm: "l2", as in the paper, or another that :class:`advfeat.threat.Threat` knows.

    Raises:
        ValueError: For another name or norm.
    """

    name: Literal["rand", "det"]
    eps: float
    steps: int
    step_size: float
    norm: str = "l2"

    def __post_init__(self) -> None:
        _check_choice("name", self.name, ("rand", "det"))
        check_norm(self.norm)

    @property
    def source_model(self) -> str:
        """What the model is that it is carried out with: "robust", adversarially trained, or "standard"."""
        return "standard"

    def attack(self) -> PGD:
        """The attack that makes the images."""
        threat = Threat.of(self.norm, self.eps)
        return PGD(threat, steps=self.steps, step_size=self.step_size, objective=Margin(1.0), targeted=True)

    def targets(self, labels: Tensor, classes: int, seed: int, sample_ids: Tensor) -> Tensor:
        """The labels that are stored.

        Args:
            labels: The true ones, int64 [B].
            classes: How many there are.
            seed: Of what is drawn for D_rand.
            sample_ids: Positions in the source, int64 [B]: a label is a function of seed and position.

        Returns:
            int64 [B].
        """
        if self.name == "det":
            return (labels + 1) % classes
        return random_integers(classes, seed, sample_ids, _STREAM_TARGET)

    def to_dict(self) -> dict:
        """The settings as JSON values, as a manifest has them."""
        return {"kind": "perturb-towards-target", **dataclasses.asdict(self)}


Recipe = MatchRepresentation | PerturbTowardsTarget


def _check_choice(name: str, value: str, choices: tuple[str, ...], others: Mapping[str, str] | None = None) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(choices)}, got {value!r}{meant(value, choices, others)}")


# What the paper calls the set of each.
SETS = {"robust": "D_R", "nonrobust": "D_NR", "rand": "D_rand", "det": "D_det"}
_RECIPES = {name: recipe for recipe, name in SETS.items()}


def check_recipe_name(name: str) -> None:
    """Raises ValueError for what is no name of a recipe, with the one that it may stand for."""
    _check_choice("recipe", name, tuple(SETS), _RECIPES)


def random_integers(n: int, seed: int, sample_ids: Tensor, stream: int) -> Tensor:
    """Uniform integers in [0, n), a function of (seed, sample id, stream) alone.

    Args:
        n: How many there are to choose from.
        seed: Of the draw.
        sample_ids: int64 [B].
        stream: Which of the streams of random numbers that a sample has.

    Returns:
        int64 [B].
    """
    u = uniform_numbers(seed, sample_ids, stream)
    return (u * n).to(torch.int64).clamp_(max=n - 1)


def start_indices(n: int, seed: int, sample_ids: Tensor) -> Tensor:
    """For each sample of a data set another one to start from, never the sample itself.

    Args:
        n: Samples of the data set.
        seed: Of the draw.
        sample_ids: Their positions, int64 [B].

    Returns:
        Positions, int64 [B].

    Raises:
        ValueError: For fewer than two samples.
    """
    if n < 2:
        raise ValueError(f"a start from another image needs at least 2 samples, the data set has {n}")
    return (sample_ids + 1 + random_integers(n - 1, seed, sample_ids, _STREAM_START)) % n


def noise_start(images: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
    """Noise images N(0.5, 1/20) clipped to [0, 1], a function of (seed, sample id) alone.

    Args:
        images: Of their shape, [B, C, H, W], dtype and device.
        seed: Of the draw.
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


PRESETS: dict[str, dict[str, Recipe]] = {
    # Tables 5 and 6.
    "cifar10": _recipes(match_steps=1000, match_step=0.1, eps=0.5, steps=100, step_size=0.1),
    "restricted-imagenet": _recipes(match_steps=2000, match_step=1.0, eps=3.0, steps=100, step_size=0.1),
    # Small ones, measured: see docs/decisions.md.
    "digits": _recipes(match_steps=150, match_step=0.05, eps=1.5, steps=100, step_size=0.1),
    "cifar10-cpu": _recipes(match_steps=200, match_step=0.1, eps=1.5, steps=30, step_size=0.1),
}


def own_recipe(data: str, recipe: str) -> Recipe | None:
    """The recipe that a build takes if it is given the name of a recipe alone: of the data set's own preset.

    Args:
        data: Name of the data set.
        recipe: As for :func:`preset`.

    Returns:
        None for a data set without a preset of its own, such as a folder: no other preset stands in for it, since steps
        and radii depend on the images.
    """
    own = known(data).preset
    return None if own is None else preset(own, recipe)


def preset(name: str, recipe: str) -> Recipe:
    """A recipe by name, with settings that were measured (docs/decisions.md) or are the paper's (Tables 5 and 6).

    Args:
        name: "cifar10" or "restricted-imagenet", the paper's; "digits" or "cifar10-cpu", for small networks.
        recipe: "robust" (D_R), "nonrobust" (D_NR), "rand" (D_rand) or "det" (D_det).

    Raises:
        ValueError: For another name.
    """
    _check_choice("preset", name, tuple(PRESETS))
    check_recipe_name(recipe)
    return PRESETS[name][recipe]
