"""Predictions on the images themselves, and what an evaluation needs to know of a model and its data beforehand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advfeat import _model_checks, forward
from advfeat._arguments import flag
from advfeat._checks import check_images, check_labels, evenly_spaced
from advfeat.datasets.base import read_images
from advfeat.datasets.protocol import Data, LabelledImages
from advfeat.datasets.torch_dataset import TorchDataset, as_source
from advfeat.forward import class_margins, predicted_classes, unwrapped
from advfeat.models import check_fits, fingerprint
from advfeat.progress import Reporter

BATCH = 500  # default batch size


def checked(model: Any, source: Data, same_classes: Any) -> tuple[Callable, LabelledImages, bool]:
    """Check a model and a data set.

    Args:
        model: As for :func:`advfeat.evaluation.evaluate`.
        source: As for :func:`advfeat.evaluation.evaluate`.
        same_classes: As for :func:`advfeat.evaluation.evaluate`.

    Returns:
        The three in the form used internally.

    Raises:
        ValueError: If the model cannot be used.
        TypeError: If an argument has the wrong type.
    """
    same_classes = flag("same_classes", same_classes)
    _model_checks.check_model(model)
    _model_checks.check_values(model)
    model = unwrapped(model)
    return model, as_source(source, model), same_classes


def selected(model: Callable, source: LabelledImages, limit: int | None, same_classes: bool) -> Tensor:
    """Select the samples to evaluate on, after checking that the model fits the data.

    Args:
        model: The model.
        source: The data set.
        limit: Number of samples, evenly spaced; None for all.
        same_classes: Match classes by index instead of by name.

    Returns:
        int64 [n], their positions in the data set.

    Raises:
        ValueError: If there is no sample, or the model does not fit the data.
    """
    if len(source) == 0:
        raise ValueError(f"there should be at least one sample to evaluate on, {source.name!r} has none")
    index = evenly_spaced(len(source), limit)
    name = getattr(source, "name", "data")
    check_fits(model, source.classes, source.image_shape, f"data set {name!r}", same_classes)
    if isinstance(source.labels, Tensor) and source.labels.device.type != "cpu":
        raise ValueError(f"labels of {name!r} should be on the CPU, got them on {source.labels.device}")
    check_labels(source.labels, len(source.classes), name)
    return index


class Answers(NamedTuple):
    """Properties of a model's output.

    Attributes:
        deterministic: Whether two passes give the same logits.
        depend_on_batch: Whether the logits of an image depend on its batch.
        probabilities: Whether the output looks like probabilities.
    """

    deterministic: bool = True
    depend_on_batch: bool = False
    probabilities: bool = False


def clean_predictions(
    model: Callable, source: LabelledImages, index: Tensor, batch_size: int, report: Reporter, asked: Callable
) -> tuple[Tensor, Tensor, Answers]:
    """Compute predictions and margins, and properties of the model's output.

    Args:
        model: The model.
        source: The data set.
        index: int64 [n], positions of the samples.
        batch_size: Images per batch.
        report: Progress; counts samples.
        asked: What predicts: the model, or its average over several passes.

    Returns:
        The predictions, int64 [n], the margins, float32 [n], and the properties.

    Raises:
        ValueError: If images are outside [0, 1], or the logits do not have the data set's classes.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    device, classes, answers = forward.device_of(model), len(source.classes), Answers()
    for ids in index.split(batch_size):
        images = read_images(source, ids)
        check_images(images, ids, getattr(source, "name", "data"))
        if not parts and isinstance(source, TorchDataset):
            _check_still(images, read_images(source, ids), source.name)
        x = images.to(device)
        logits = forward.logits(asked, x if parts else x.clone(), classes).cpu()  # a model may modify its input
        if not parts:
            same = _model_checks.is_deterministic(model, x, classes)
            by_batch = same and _model_checks.depends_on_batch(model, x, classes)
            answers = Answers(same, by_batch, _model_checks.are_probabilities(logits, model))
        parts.append((predicted_classes(logits), class_margins(logits, source.labels[ids])))
        report.advance(len(ids))
    prediction, margins = (torch.cat(part) for part in zip(*parts, strict=True))
    return prediction, margins.float(), answers


def _check_still(first: Tensor, second: Tensor, name: str) -> None:
    """Warn about a data set whose images change between readings, as with random transforms."""
    if not torch.equal(first, second):
        warnings.warn(
            f"images of {name!r} should not change from one reading to the next: each attack would see other images "
            "than the clean accuracy was measured on. Leave out transforms that draw random numbers",
            RuntimeWarning,
            stacklevel=4,
        )


def layers_in_train_mode(model: Callable) -> int:
    """Count the layers that are in train mode and behave otherwise there than in eval mode.

    Args:
        model: The model.
    """
    if not isinstance(model, nn.Module):
        return 0
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
    return sum(isinstance(module, kinds) and module.training for module in model.modules())


def model_fingerprint(model: Callable) -> str | None:
    """Return the fingerprint of a model, None for one that has none, such as a function.

    Args:
        model: The model.
    """
    try:
        return fingerprint(model) if isinstance(model, nn.Module) else None
    except TypeError:  # the state holds more than tensors and JSON values
        return None


def data_fingerprint(source: LabelledImages, index: Tensor) -> str | None:
    """Return the fingerprint of the evaluated samples, so that a subset of a large folder is not hashed in full.

    Args:
        source: The data set.
        index: int64 [n], positions of the samples.

    Returns:
        The fingerprint, None for a data set that has none.
    """
    if len(index) < len(source) and hasattr(source, "subset"):
        source = source.subset(index)
    try:
        return getattr(source, "fingerprint", None)
    except (TypeError, NotImplementedError):  # raised by the base class for a user's own data set
        return None
