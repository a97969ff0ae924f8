"""Whether a model suits a recipe: checks and warnings before a build, for models that would give another set."""

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
    """Checks a model with one forward pass of one image, so that a wrong model fails before anything is written.

    Args:
        recipe: The recipe.
        model: The source model, on ``device``.
        source: The data set to build from.
        device: Device of the model.
        same_classes: Match the classes of model and source by index instead of by name.
        any_source: Accept a model that was trained in another way than the recipe requires.

    Raises:
        ValueError: If classes or shapes differ, the recipe matches representations and the model has none, or the model
            was trained in another way.
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
            "[B, k] (advfeat.models.adapt adds one to your own module)"
        )


def _check_training(recipe: Recipe, model: nn.Module) -> None:
    """Raises a ValueError if the model's record says that it was trained in another way than the recipe requires."""
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
        trained, wanted, instead = "one trained by standard training", "an adversarially trained model", "D_NR"
    raise ValueError(
        f"recipe {recipe.name!r} ({name}) needs {wanted}, got {trained}, according to its record: the result would be "
        f"{instead} under the name of {name}; any_source=True (--any-source) accepts the model"
    )


def is_deterministic(model: nn.Module, source: LabelledImages, device: torch.device) -> bool:
    """Whether two passes of the model over the first images give the same logits.

    Args:
        model: The model, on ``device``.
        source: The data set.
        device: Device of the model.

    Warns:
        RuntimeWarning: If they do not, or if the logits of an image depend on its batch.
    """
    x = source.images(torch.arange(min(_SHOWN_TWICE, len(source)), device="cpu")).to(device)
    with no_trace(model, device):  # the random state is restored afterwards, not in between
        same = _model_checks.is_deterministic(model, x, len(source.classes))
        by_batch = same and _model_checks.depends_on_batch(model, x, len(source.classes))
    if by_batch:
        _model_checks.warn_of_batches("an image of the set depends on batch_size and on those built beside it", 3)
    if not same:
        _model_checks.warn_of_randomness("an interrupted build that resumes gives other images", 3)
    return same


def warn_of_chance(model: nn.Module, source: LabelledImages, device: torch.device, batch_size: int) -> None:
    """Warns if the model's accuracy on the source is no better than chance.

    It is measured on at most 500 evenly spaced images. Chance is one in the number of classes; predicting one class for
    all images counts as chance, too.

    Args:
        model: The model, on ``device``.
        source: The data set.
        device: Device of the model.
        batch_size: Images per batch.

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
    # With few images the interval of any accuracy contains chance; the accuracy then has to be low as well.
    at_chance = wilson(right, n)[0] <= chance and right / n < (1 + chance) / 2
    constant = bool((predicted == predicted[0]).all()) and bool((labels != labels[0]).any())
    if at_chance or constant:
        only = source.classes[int(predicted[0])] if constant and predicted[0] >= 0 else None
        said = "" if only is None else f" and predicts {only!r} for all of them"
        warnings.warn(
            f"the model classifies {100 * right / n:.1f} % of {n} images of {source.name!r} correctly{said}; chance is "
            f"{100 * chance:.1f} %. A set built with it holds no features of the classes. Is its normalisation missing "
            "or applied twice (images are in [0, 1]), or was it trained on other classes?",
            RuntimeWarning,
            stacklevel=3,
        )
