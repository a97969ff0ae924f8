"""Datasets of ``torch.utils.data`` as data sets of this package."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from advfeat._checks import evenly_spaced
from advfeat._class_names import class_names, known
from advfeat.datasets.base import Source, as_indices
from advfeat.datasets.concatenated import Concatenated
from advfeat.datasets.loader import dataset_of
from advfeat.datasets.protocol import Data, Indices, LabelledImages

_NEEDS = ("images", "labels", "classes", "image_shape")
_HOW = "advfeat.datasets.ArraySource(images, labels, classes) makes one of tensors"
_AT_ONCE = 64  # samples of a dataset that gives many


class TorchDataset(Source):
    """A map-style dataset of (image, label), read on demand.

    Labels are read once, together with the images unless the dataset stores them separately; a label that changes later
    is an error.

    Args:
        dataset: Gives images as tensors [C, H, W], uint8 (read as k / 255) or floating point in [0, 1], and labels as
            integers.
        classes: The class names, by label.
        name: The name of the data set; if empty, that of the dataset's Python class.

    Raises:
        TypeError: If items have another form.
        ValueError: On reading, if images differ in shape or a label changes.
    """

    def __init__(self, dataset: Dataset, classes: Sequence[str], name: str = "") -> None:
        self.dataset, self.classes = dataset, tuple(classes)
        self.name = name or type(dataset.dataset if isinstance(dataset, _Some) else dataset).__name__
        self.labels = labels_of(dataset)
        channels, height, width = self._item(0)[0].shape if len(self.labels) else (0, 0, 0)
        self.image_shape = (channels, height, width)
        self._fingerprint: str | None = None

    def images(self, indices: Indices = None) -> Tensor:
        """See :meth:`advfeat.datasets.Source.images`."""
        index = as_indices(indices, len(self), self.name)
        images = torch.empty((len(index), *self.image_shape), dtype=torch.float32, device="cpu")
        for row, (position, (image, label)) in enumerate(self._items(index.tolist())):
            if tuple(image.shape) != self.image_shape:
                raise ValueError(
                    f"images of {self.name!r} should have one shape: sample 0 is {self.image_shape}, sample {position} "
                    f"{tuple(image.shape)}"
                )
            if label != int(self.labels[position]):
                raise ValueError(
                    f"labels of {self.name!r} should not change: sample {position} had label "
                    f"{int(self.labels[position])} and now has {label}"
                )
            images[row] = image.float() / 255 if image.dtype == torch.uint8 else image
        return images

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all images, as they are read, and labels."""
        if self._fingerprint is None:
            hashed = hashlib.sha256(f"torch {self.image_shape}".encode())
            for index in torch.arange(len(self), device="cpu").split(1000):
                hashed.update(self.images(index).numpy().data)
            hashed.update(self.labels.numpy().data)
            self._fingerprint = hashed.hexdigest()
        return self._fingerprint

    def _item(self, position: int) -> tuple[Tensor, int]:
        return _item(self.dataset, position, self.name)

    def _items(self, positions: list[int]) -> Iterator[tuple[int, tuple[Tensor, int]]]:
        """(position, sample) of each, read with ``__getitems__`` if the dataset has it, as a ``DataLoader`` does."""
        several = getattr(self.dataset, "__getitems__", None)
        if not callable(several):
            yield from ((position, self._item(position)) for position in positions)
            return
        for begin in range(0, len(positions), _AT_ONCE):
            some = positions[begin : begin + _AT_ONCE]
            for position, item in zip(some, several(some), strict=True):
                yield position, _checked(item, position, self.name)


def labels_of(dataset: Any) -> Tensor:
    """The labels of a map-style dataset.

    Args:
        dataset: A dataset of (image, label).

    Returns:
        int64 [N], on the CPU.

    Raises:
        TypeError: If items have another form.
    """
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        found = dataset.tensors[1]
        if found.dim() == 1 and not found.is_floating_point():
            return found.detach().cpu().to(torch.int64)
    name = type(dataset).__name__
    return torch.tensor([_item(dataset, i, name)[1] for i in range(len(dataset))], dtype=torch.int64, device="cpu")


class _Some(Subset):
    """The samples to which an evaluation is limited; it has the name of the whole dataset."""


def some_of(data: Data, limit: int | None, name: str = "source") -> tuple[Any, Tensor | None]:
    """Restricts a torch dataset to a few evenly spaced samples.

    A torch dataset returns labels only together with images, so otherwise all images would be read to get the labels.

    Args:
        data: The user's argument.
        limit: Number of samples; None for all.
        name: Name of the argument, for messages.

    Returns:
        The samples as a dataset, and their positions, int64 [limit]. If ``data`` is not a torch dataset or has no more
        than ``limit`` samples: ``data`` itself (for a ``DataLoader``, its dataset) and None.

    Raises:
        ValueError: If a ``DataLoader`` changes the samples of its dataset, as for :func:`as_source`.
    """
    found = dataset_of(data, name)
    if (source := _of_sources(found)) is not None:
        found = source
    is_of_torch = isinstance(found, Dataset) and not isinstance(found, IterableDataset) and not hasattr(found, "images")
    if limit is None or not is_of_torch or not hasattr(found, "__len__") or len(found) <= limit:
        return found, None
    positions = evenly_spaced(len(found), limit)
    return _Some(found, positions.tolist()), positions


def as_source(data: Data, model: Callable | LabelledImages | None = None, name: str = "source") -> LabelledImages:
    """Converts a ``torch.utils.data`` dataset to a data set of this package; one of this package is returned as it is.

    Args:
        data: A source; ``Subset`` and ``ConcatDataset`` over sources become one source, which reads images in batches.
            A ``DataLoader`` stands for its dataset (:func:`advfeat.datasets.loader.dataset_of`). Any other map-style
            dataset becomes a :class:`TorchDataset`.
        model: A model or data set whose class names are used if the dataset has none; otherwise the classes are named
            "0", "1", ...
        name: Name of the argument, for messages.

    Raises:
        TypeError: If ``data`` is anything else; the message says what is missing.
        ValueError: If a ``DataLoader`` changes the samples of its dataset.
    """
    found = dataset_of(data, name)
    if isinstance(found, IterableDataset):
        raise TypeError(f"{name} should have samples by position, got the iterable dataset {type(found).__name__}")
    if (source := _of_sources(found)) is not None:
        return source
    missing = [need for need in _NEEDS if not hasattr(found, need)]
    if not missing and not hasattr(found, "__len__"):
        missing = ["__len__"]
    images = getattr(found, "images", None)
    if not isinstance(found, Source) and (isinstance(found, Dataset) or (missing and _is_map_style(found))):
        if missing or not callable(images):
            return TorchDataset(found, _classes(found, model))
    if missing or not callable(images):
        lacks = f", which has no {', '.join(missing)}" if missing else ""
        how = f"advfeat.datasets.load({str(found)!r}) opens one by name" if _is_path(found) else _HOW
        raise TypeError(f"{name} should be a data set, got {type(found).__name__}{lacks}: {how}")
    return found


def _of_sources(data: Any) -> Source | None:
    """The source that a ``Subset`` or ``ConcatDataset`` over sources stands for, None for anything else."""
    held = [part if isinstance(part, Source) else _of_sources(part) for part in _parts(data)]
    parts = [part for part in held if part is not None]
    if not parts or len(parts) < len(held):
        return None
    given = class_names(data)  # a user's own, set on what torch made
    if given is not None and any(given != tuple(part.classes) for part in parts):
        return None
    if isinstance(data, Subset):
        (whole,) = parts
        count = len(whole)
        return whole.subset([i + count if i < 0 else i for i in map(operator.index, data.indices)])
    return Concatenated(parts)


def _parts(data: Any) -> list[Any]:
    """What a ``Subset`` or ``ConcatDataset`` holds; nothing of a subclass that makes other samples of it."""
    for kind in (Subset, ConcatDataset):
        methods = ("__getitem__", "__getitems__", "__len__")
        if isinstance(data, kind) and all(getattr(type(data), m, None) is getattr(kind, m, None) for m in methods):
            return [data.dataset] if isinstance(data, Subset) else list(data.datasets)
    return []


def _is_path(data: Any) -> bool:
    return isinstance(data, str) or hasattr(data, "__fspath__")


def _is_map_style(data: Any) -> bool:
    builtin = isinstance(data, (str, bytes, list, tuple, dict, Tensor, np.ndarray))
    return not builtin and hasattr(type(data), "__getitem__") and hasattr(type(data), "__len__") and len(data) > 0


def _classes(data: Any, model: Callable | LabelledImages | None) -> tuple[str, ...]:
    own = _names_of(data) or class_names(model)
    if own is not None:
        return own
    count = known(model, "num_classes")
    if not isinstance(count, int):
        count = _asked(model, data) if callable(model) else None
    elif count == 1:  # one logit is two classes
        count = 2
    labels = labels_of(data)
    return tuple(map(str, range(max(count or 0, int(labels.max()) + 1 if len(labels) else 0))))


def _names_of(data: Any) -> tuple[str, ...] | None:
    """The names of the classes of a dataset.

    Also of one behind a Subset, as random_split makes them, and of concatenated ones that agree.
    """
    own = class_names(data)
    if own is None and isinstance(data, Subset):
        return _names_of(data.dataset)
    if own is None and isinstance(data, ConcatDataset):
        names = {_names_of(part) for part in data.datasets}
        if len(names - {None}) > 1:
            raise ValueError("the parts of a ConcatDataset should have the same classes in one order, got several")
        return names.pop() if len(names) == 1 else None
    return own


def _asked(model: Callable | None, data: Any) -> int | None:
    """How many classes the model says, for the first image."""
    if model is None or len(data) == 0:
        return None
    from advfeat.forward import device_of, output

    image = _item(data, 0, type(data).__name__)[0]
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    found = output(model, image[None].to(device_of(model)))
    return found.shape[1] if found.dim() == 2 and found.shape[1] > 1 else 2


def _whole(label: Any) -> int:
    """A label as an integer; a float counts if it is one, 1.0 but not 0.9. Errors: TypeError, ValueError."""
    if isinstance(label, Tensor) or hasattr(label, "item"):
        label = label.item()  # of one value
    if isinstance(label, float) and label.is_integer():
        return int(label)
    return operator.index(label)


def _item(dataset: Any, position: int, name: str) -> tuple[Tensor, int]:
    return _checked(dataset[position], position, name)


def _checked(item: Any, position: int, name: str) -> tuple[Tensor, int]:
    """A sample as a tensor on the CPU and an integer, or the TypeError that says what it should be."""
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        what = f"a {type(item).__name__}" + (f" with {', '.join(map(repr, item))}" if isinstance(item, dict) else "")
        raise TypeError(f"{name!r} should give (image, label) for each sample, got {what} for sample {position}")
    image, label = item[0], item[1]
    if not isinstance(image, Tensor) or image.dim() != 3:
        what = f"a tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"images of {name!r} should be tensors [C, H, W] with values in [0, 1], got {what} for sample {position}; "
            "of PIL images torchvision.transforms.ToTensor() makes such"
        )
    if image.shape[2] in (1, 3, 4) and image.shape[0] > 4:
        raise TypeError(
            f"images of {name!r} should be [C, H, W], got shape {tuple(image.shape)} for sample {position}, which "
            "looks like [H, W, C]: give image.permute(2, 0, 1)"
        )
    try:
        return image.detach().cpu(), _whole(label)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"a tensor of shape {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
        raise TypeError(f"labels of {name!r} should be integers, got {what} for sample {position}") from error
