"""Checks of data before a model sees it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfeat._class_names import check_same_classes

if TYPE_CHECKING:
    from advfeat.datasets.protocol import LabelledImages


def from_environment(name: str, default: int) -> int:
    """The integer in an environment variable.

    Args:
        name: the variable.
        default: the value where it is unset or empty.

    Returns:
        The integer, at least 0.

    Raises:
        ValueError: the variable holds something else; the message names it.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"the environment variable {name} should be an integer, at least 0, got {text!r}")
    return int(text)


def check_images(images: Tensor, ids: Tensor, name: str) -> None:
    """Checks that images lie in [0, 1].

    Args:
        images: [N, ...].
        ids: int64 [N], the samples' ids for the message.
        name: the name of the data set.

    Raises:
        ValueError: an image holds NaN, infinity or a value outside [0, 1]; the message names the first such sample.
    """
    flat = images.reshape(len(images), -1)
    good = ((flat >= 0) & (flat <= 1)).all(dim=1)  # False for NaN too
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        low, high = flat[row].aminmax()
        what = f"values from {low:.4g} to {high:.4g}" if bool(torch.isfinite(flat[row]).all()) else "NaN or infinity"
        raise ValueError(
            f"images of {name!r} should lie in [0, 1]: sample {int(ids[row])} holds {what}. Normalisation belongs in "
            "the model, advfeat.models.adapt(module, mean=..., std=...); values up to 255 are divided by 255"
        )


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Checks that labels lie in 0 .. num_classes - 1.

    Args:
        labels: int64 [N].
        num_classes: the number of classes.
        name: the name of the data set.

    Raises:
        TypeError: the labels are not an int64 tensor [N].
        ValueError: a label is out of range; the message names the first such sample.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels of {name!r} should be an int64 tensor [N], got {got}")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"labels of {name!r} should be in 0 .. {num_classes - 1} for {num_classes} classes: sample {first} has "
            f"label {int(labels[first])} ({len(wrong)} of {len(labels)} samples are out of range)"
        )


def check_pair(
    train_source: LabelledImages, test_source: LabelledImages | None = None, same_classes: bool = False
) -> None:
    """Checks a training set and its test set.

    At most 10 000 of the test images are checked; the training images are checked when they are read.

    Args:
        train_source: the training set.
        test_source: the test set, or None.
        same_classes: accept any class names if their number is equal.

    Raises:
        ValueError: a set is empty, labels are out of range, or the classes or shapes of the two differ.
    """
    classes = len(train_source.classes)
    if len(train_source) == 0:
        raise ValueError(f"data set {train_source.name!r} has no samples")
    check_labels(train_source.labels, classes, train_source.name)
    if test_source is None:
        return
    if not same_classes or len(test_source.classes) != classes:
        check_same_classes(
            train_source.classes,
            f"training data {train_source.name!r}",
            test_source.classes,
            f"test data {test_source.name!r}",
        )
    if tuple(test_source.image_shape) != tuple(train_source.image_shape):
        raise ValueError(
            "training and test images should have one shape, got "
            f"{tuple(train_source.image_shape)} and {tuple(test_source.image_shape)}"
        )
    if len(test_source) == 0:
        raise ValueError(f"data set {test_source.name!r} has no samples")
    check_labels(test_source.labels, classes, test_source.name)
    for ids in evenly_spaced(len(test_source), 10_000).split(1000):
        check_images(test_source.images(ids), ids, test_source.name)


def evenly_spaced(samples: int, most: int | None) -> Tensor:
    """Evenly spaced positions among 0 .. samples - 1.

    Not the first ones: those of an image folder would all be of one class.

    Args:
        samples: the number of samples.
        most: the largest number of positions; None for all.

    Returns:
        int64 positions.
    """
    n = samples if most is None else min(most, samples)
    return torch.arange(n, device="cpu") * samples // max(n, 1)
