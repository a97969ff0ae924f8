"""Whether a model is one to carry out a recipe with: what would give another set than was meant is said before."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from advfeat import _model_checks, forward
from advfeat._checks import evenly_spaced
from advfeat._class_names import known
from advfeat.attacks.no_trace import no_trace
from advfeat.datasets.protocol import LabelledImages
from advfeat.datasets.recipes import SETS, MatchRepresentation, Recipe
from advfeat.forward import class_logits, predicted_classes
from advfeat.intervals import wilson
from advfeat.models import check_fits

_SAMPLES = 500  # on which the accuracy of the source model is measured
_SHOWN_TWICE = 32


def check_fitness(
    recipe: Recipe, model: nn.Module, source: LabelledImages, device: torch.device, same_classes: bool, any_source: bool
) -> None:
    """One forward pass of one image, so that a wrong model fails before anything is written.

    Args:
        recipe: What is to be made.
        model: On ``device``.
        source: What it is made of.
        device: Where the model runs.
        same_classes: Take the model's classes for the source's, whatever their names are.
        any_source: Take a model that was trained in another way than the recipe asks for.

    Raises:
        ValueError: For other classes or shapes, a model without a representation where the recipe matches one, and one
            that was trained in another way.
    """
    if len(source) == 0:
        raise ValueError(f"source {source.name} has no images")
    check_fits(model, source.classes, source.image_shape, f"data set {source.name!r}", same_classes)
    if not any_source:
        _check_training(recipe, model)
    image = source.images(torch.tensor([0], device="cpu")).to(device)
    with no_trace(model, device), torch.no_grad():
        try:
            logits = forward.output(model, image)
        except RuntimeError as error:
            raise ValueError(
                f"model does not take images of shape {tuple(source.image_shape)} as {source.name} has: {error}"
            ) from error
    classes = len(source.classes)
    if logits.dim() != 2 or class_logits(logits).shape[1] != classes:
        raise ValueError(
            f"model should give {classes} logits, one a class of {source.name}, got shape {tuple(logits.shape)}"
        )
    if isinstance(recipe, MatchRepresentation) and not callable(getattr(model, "representation", None)):
        raise ValueError(
            f"recipe {recipe.name!r} matches representations: the model should have a method representation(x) -> "
            "[B, k] (advfeat.models.adapt gives one to a module of yours)"
        )


def _check_training(recipe: Recipe, model: nn.Module) -> None:
    """Raises ValueError where the model says that it was trained in another way than the recipe's source model."""
    record = known(model, "trained_with")
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(config, dict) or "attack" not in config:
        return
    attack = config["attack"]
    adversarial = isinstance(attack, dict) and attack.get("eps") != 0 and attack.get("steps") != 0
    if adversarial == (recipe.source_model == "robust"):
        return
    name = SETS.get(recipe.name, recipe.name)
    if adversarial:
        trained = f"an adversarially trained one ({attack.get('norm')}, eps {attack.get('eps')})"
        wanted, instead = "a standard model", "D_R" if recipe.name == "nonrobust" else "another set"
    else:
        trained, wanted, instead = "one of standard training", "an adversarially trained model", "D_NR"
    raise ValueError(
        f"recipe {recipe.name!r} ({name}) is carried out with {wanted}, got {trained}, as it was saved with: it would "
        f"give {instead} under the name of {name}; any_source=True (--any-source) takes the model all the same"
    )


def is_deterministic(model: nn.Module, source: LabelledImages, device: torch.device) -> bool:
    """Whether the model says the same twice of the first images.

    Args:
        model: On ``device``.
        source: Whose images it is shown.
        device: Where the model runs.

    Warns:
        RuntimeWarning: Where it does not, and where what it says depends on the batch.
    """
    x = source.images(torch.arange(min(_SHOWN_TWICE, len(source)), device="cpu")).to(device)
    with no_trace(model, device):  # the random state is put back afterwards, not in between
        same = _model_checks.is_deterministic(model, x, len(source.classes))
        by_batch = same and _model_checks.depends_on_batch(model, x, len(source.classes))
    if by_batch:
        _model_checks.warn_of_batches("an image of the set depends on batch_size and on those built beside it", 3)
    if not same:
        _model_checks.warn_of_randomness("a build that is stopped and goes on gives other images", 3)
    return same


def warn_of_chance(model: nn.Module, source: LabelledImages, device: torch.device, batch_size: int) -> None:
    """Warns where the model gets images of the source right no more often than chance does.

    Looked at are at most 500, evenly spaced. Chance is one in the number of classes; saying one class for all images is
    chance, too.

    Args:
        model: On ``device``.
        source: Whose images it is shown.
        device: Where the model runs.
        batch_size: Images at once.

    Warns:
        RuntimeWarning: As above.
    """
    index = evenly_spaced(len(source), _SAMPLES)
    parts: list[Tensor] = []
    with no_trace(model, device):
        for ids in index.split(batch_size):
            parts.append(predicted_classes(forward.output(model, source.images(ids).to(device))).cpu())
    labels, predicted = source.labels[index], torch.cat(parts)
    right, n, chance = int((predicted == labels).sum()), len(index), 1 / len(source.classes)
    # Of a few images every share lies within its interval of chance: then it has to be below the middle, too.
    at_chance = wilson(right, n)[0] <= chance and right / n < (1 + chance) / 2
    constant = bool((predicted == predicted[0]).all()) and bool((labels != labels[0]).any())
    if at_chance or constant:
        said = f", saying {source.classes[int(predicted[0])]!r} of all" if constant and predicted[0] >= 0 else ""
        warnings.warn(
            f"the model gets {100 * right / n:.1f} % of {n} images of {source.name!r} right{said}; chance is "
            f"{100 * chance:.1f} %. A set built with it holds no features of the classes. Is its normalisation missing "
            "or done twice (images are in [0, 1]), or was it trained on other classes?",
            RuntimeWarning,
            stacklevel=3,
        )
