"""How often a model predicts the label of a sample, and how often the class that its set was relabelled to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from advfeat import _model_checks
from advfeat._arguments import whole_number
from advfeat.datasets.loader import batch_size_for
from advfeat.datasets.protocol import Data
from advfeat.datasets.torch_dataset import some_of
from advfeat.evaluation.clean import BATCH, checked, clean_predictions, selected
from advfeat.evaluation.results import BATCHES
from advfeat.intervals import Share
from advfeat.progress import Reporter


def label_agreement(
    model: nn.Module | Callable,
    source: Data,
    relabel: Callable[[Tensor], Tensor] | None = None,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    same_classes: bool = False,
) -> dict[str, Share]:
    """Measure how often a model predicts the label, and how often the relabelled target.

    A model trained on D_det predicts y + 1 if it follows the robust features, and y if it follows the non-robust ones
    (Table 10, Appendix D.6: 43.7 % y, 16.2 % y + 1).

    Args:
        model: See :func:`evaluate`.
        source: See :func:`evaluate`.
        relabel: Function from labels int64 [n] to labels int64 [n]; None is ``(y + 1) mod classes``.
        batch_size: See :func:`evaluate`.
        limit: See :func:`evaluate`.
        same_classes: See :func:`evaluate`.

    Returns:
        The shares "label", "relabelled" and "other".

    Raises:
        ValueError: If ``relabel`` gives labels of another shape or device; also as :func:`evaluate`.
        TypeError: If ``relabel`` is not a function or gives no integer tensor; also as :func:`evaluate`.
    """
    if relabel is not None and not callable(relabel):
        raise TypeError(f"relabel should be a function of labels, got {type(relabel).__name__}")
    limit = None if limit is None else whole_number("limit", limit)
    batch_size = batch_size_for(source, batch_size, BATCH)
    source, _ = some_of(source, limit)
    model, source, same_classes = checked(model, source, same_classes)
    index = selected(model, source, limit, same_classes)
    n, labels, classes = len(index), source.labels[index], len(source.classes)
    other = (labels + 1) % classes if relabel is None else relabel(labels)
    if not isinstance(other, Tensor):
        raise TypeError(f"relabel should give a tensor of labels, got {type(other).__name__}")
    if other.shape != labels.shape:
        raise ValueError(f"relabel should give labels of shape {tuple(labels.shape)}, got {tuple(other.shape)}")
    if other.is_floating_point() or other.is_complex() or other.dtype == torch.bool:
        raise TypeError(f"relabel should give labels, int64, got {other.dtype}")
    if other.device != labels.device:
        raise ValueError(f"relabel should give labels on the device of its own, {labels.device}, got {other.device}")
    if bool(((other < 0) | (other >= classes)).any()):
        least, most = (int(value) for value in other.aminmax())
        raise ValueError(f"relabel should give labels from 0 to {classes - 1}, got values from {least} to {most}")
    prediction, _, answers = clean_predictions(model, source, index, batch_size, Reporter(None, "", 0), model)
    if not answers.deterministic:
        _model_checks.warn_of_randomness("a prediction is a single draw", 2)
    if answers.depend_on_batch:
        _model_checks.warn_of_batches(BATCHES, 2)
    same, moved = prediction == labels, prediction == other
    return {
        "label": Share(int(same.sum()), n),
        "relabelled": Share(int(moved.sum()), n),
        "other": Share(int((~same & ~moved).sum()), n),
    }
