"""The interface of data sets: images in [0, 1] by position, labels, class names and a fingerprint."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from advfeat._arguments import whole_number
from advfeat._checks import check_images, check_labels
from advfeat.datasets.protocol import Indices, LabelledImages
from advfeat.random import derive_seed

_CHUNK = 1000  # images checked or hashed at once


class Source(Dataset[tuple[Tensor, int]]):
    """Images and labels by position; the base class of every data set.

    A source is a ``torch.utils.data.Dataset`` of (image, label): ``source[i]`` has the form of an item of a torchvision
    data set with ``ToTensor``, and a ``DataLoader`` reads each batch with one call, also in worker processes.

    A subclass has ``classes``, ``labels``, ``image_shape``, :meth:`images` and :attr:`fingerprint`::

        class Mine(Source):
            name, classes, image_shape = "mine", ("cat", "dog"), (3, 32, 32)

            def __init__(self, pixels, labels):  # uint8 [N, 3, 32, 32], int64 [N]
                self.pixels, self.labels = pixels, labels

            def images(self, indices=None):
                return self.pixels[as_indices(indices, len(self), self.name)].float() / 255

            @property
            def fingerprint(self):
                return hashlib.sha256(self.pixels.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()

    Attributes:
        name: The name in messages and results; for a data set loaded by name, that name.
        split: "train", "test", or "" for a data set without splits.
        classes: The names of the classes, by label.
        labels: int64 [N], on the CPU.
        image_shape: (C, H, W).
        built_from: The name of the data set that a constructed set was built from; None if unknown.

    Raises:
        AttributeError: If a subclass lacks an attribute; the message says what it should be.
        TypeError: If a subclass lacks ``images`` or ``fingerprint``.
    """

    name: str = ""
    split: str = ""
    built_from: str | None = None
    classes: tuple[str, ...]
    labels: Tensor
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One sample.

        Args:
            index: Its position; a negative one counts from the end.

        Returns:
            The image, float32 [C, H, W] in [0, 1], and its label.

        Raises:
            IndexError: If the position is out of range.
            TypeError: If ``index`` is not an integer, such as a slice or a list.
        """
        ((image, label),) = self.__getitems__([index])
        return image, label

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The samples at ``indices``, read with one call; a ``DataLoader`` calls this for each batch.

        Args:
            indices: Positions; negative ones count from the end.

        Returns:
            (image, label) of each, as :meth:`__getitem__` returns them.

        Raises:
            IndexError: If a position is out of range.
            TypeError: If a position is not an integer.
        """
        positions = [_position(index, len(self), self.name) for index in indices]
        index = torch.tensor(positions, dtype=torch.int64, device="cpu")
        return list(zip(read_images(self, index), self.labels[index].tolist(), strict=True))

    def images(self, indices: Indices = None) -> Tensor:
        """The images at some positions.

        Builds and evaluations call this from a read-ahead thread, one call at a time. It should not use the global
        random state, which an attack on another thread saves and restores.

        Args:
            indices: Positions in 0 .. N-1 as an int64 tensor [n], a list of integers, a range or a slice; or a mask,
                bool [N]; None for all.

        Returns:
            float32 [n, C, H, W] in [0, 1], on the CPU, in the order of ``indices``; the caller may change the tensor.

        Raises:
            IndexError: If a position is outside 0 .. N-1.
            TypeError: If ``indices`` does not hold positions.
        """
        raise TypeError(
            f"{type(self).__name__} should have a method images(indices=None) that gives float32 [n, C, H, W] in "
            "[0, 1]: see advfeat.datasets.Source"
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the contents, without the name: equal hashes mean equal images and labels."""
        raise TypeError(
            f"{type(self).__name__} should have a property fingerprint, a text that differs where images or labels do, "
            "such as hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest(): runs are resumed and results "
            "found by it; see advfeat.datasets.Source"
        )

    def __getattr__(self, name: str) -> Any:
        # Called for attributes that do not exist.
        expected = {
            "labels": "int64 [N], one for each sample",
            "classes": "their names, by label",
            "image_shape": "(C, H, W)",
        }
        if name in expected:
            raise AttributeError(
                f"{type(self).__name__} should have {name}, {expected[name]}: see advfeat.datasets.Source"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def subset(self, indices: Indices) -> Source:
        """Some samples as a data set.

        Args:
            indices: Positions, as :meth:`images` takes them.

        Returns:
            The samples in this order, with the name, split and classes of this data set.

        Raises:
            IndexError: If a position is outside 0 .. N-1.
            ValueError: If there are no positions.
        """
        return Subset(self, as_indices(indices, len(self), self.name))

    def batches(self, batch_size: int, order: Indices = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The samples in batches.

        Args:
            batch_size: Samples per batch; the last batch may have fewer.
            order: Positions, as :meth:`images` takes them; None for all, in the order of the data set.

        Yields:
            Positions, int64 [n], images, float32 [n, C, H, W], and labels, int64 [n], of each batch.

        Raises:
            ValueError: If ``batch_size`` is not an integer of at least 1.
        """
        batch_size = whole_number("batch_size", batch_size)
        for index in as_indices(order, len(self), self.name).split(batch_size):
            yield index, read_images(self, index), self.labels[index]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return (
            f"{type(self).__name__}({self.name!r}, {self.split!r}: {len(self):,} {shape}, {len(self.classes)} classes)"
        )


class ArraySource(Source):
    """A data set whose images are in memory.

    Args:
        images: [N, C, H, W], a tensor or numpy array: uint8 (stored as uint8, a value k is read as k / 255) or floating
            point in [0, 1] (stored as float32). A CPU tensor of dtype uint8 or float32 is not copied; an array is.
        labels: Integers [N], a tensor, array or list.
        classes: The class names, or their number, for classes named "0", "1", ...
        name: The name in messages and results.
        split: "train" or "test".

    Raises:
        ValueError: If a shape or dtype is wrong, there are no samples, a label is out of range, or a value is not in
            [0, 1].
        TypeError: If an argument is not a tensor or array.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | Sequence[int],
        classes: Sequence[str] | int,
        name: str = "arrays",
        split: str = "train",
    ) -> None:
        images = _as_images(_as_tensor(images, "images"))
        labels = _as_tensor(labels, "labels")
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (len(images),):
            raise ValueError(
                f"labels should be int64 [{len(images)}], the number of each sample's class, got {labels.dtype} of "
                f"shape {tuple(labels.shape)}"
            )
        labels = labels.to(torch.int64)
        if len(images) == 0:
            raise ValueError(f"data set {name!r} has no samples")
        names = _as_classes(classes)
        check_labels(labels, len(names), name)
        if images.dtype == torch.float32:
            for index in torch.arange(len(images), device="cpu").split(_CHUNK):
                check_images(images[index], index, name)
        self._images, self.labels, self.classes = images, labels, names
        _, channels, height, width = images.shape
        self.name, self.split, self.image_shape = name, split, (channels, height, width)
        self._fingerprint: str | None = None

    def images(self, indices: Indices = None) -> Tensor:
        """See :meth:`advfeat.datasets.Source.images`."""
        return to_float(self._images[as_indices(indices, len(self), self.name)])

    @property
    def fingerprint(self) -> str:
        """See :attr:`advfeat.datasets.Source.fingerprint`."""
        if self._fingerprint is None:
            hashed = hashlib.sha256(f"{self._images.dtype} {tuple(self._images.shape)}".encode())
            for part in self._images.split(_CHUNK):
                hashed.update(part.contiguous().numpy().data)
            hashed.update(self.labels.contiguous().numpy().data)
            self._fingerprint = hashed.hexdigest()
        return self._fingerprint

    def subset(self, indices: Indices) -> ArraySource:
        """See :meth:`advfeat.datasets.Source.subset`."""
        index = as_indices(indices, len(self), self.name)
        part = ArraySource(self._images[index], self.labels[index], self.classes, self.name, self.split)
        part.built_from = self.built_from
        return part


class Subset(Source):
    """Some samples of another data set, read from it on demand.

    Args:
        parent: The other data set; name, split and classes are the same.
        index: Positions in it, int64 [n].

    Raises:
        ValueError: If there are no positions.
    """

    def __init__(self, parent: Source, index: Tensor) -> None:
        if len(index) == 0:
            raise ValueError(f"a part of {parent.name!r} should have at least one sample")
        self.parent, self.index = parent, index
        self.name, self.split, self.classes = parent.name, parent.split, parent.classes
        self.labels, self.image_shape = parent.labels[index], parent.image_shape
        self.built_from = parent.built_from

    def images(self, indices: Indices = None) -> Tensor:
        """See :meth:`advfeat.datasets.Source.images`."""
        return self.parent.images(self.index[as_indices(indices, len(self), self.name)])

    @property
    def fingerprint(self) -> str:
        """See :attr:`advfeat.datasets.Source.fingerprint`."""
        return hashlib.sha256(self.parent.fingerprint.encode() + self.index.contiguous().numpy().tobytes()).hexdigest()


def _as_tensor(values: Any, name: str) -> Tensor:
    """A CPU tensor without a gradient; arrays are copied, so that byte order, strides and ownership do not matter."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if name == "labels" and isinstance(values, (list, tuple, range)):
        values = np.asarray(values)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iufb":
        what = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"{name} should be a tensor or a numpy array of numbers, got {what}")
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))


def _as_images(images: Tensor) -> Tensor:
    if images.dim() != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"images should be uint8 or float32 [N, C, H, W], got {images.dtype} of shape {tuple(images.shape)}"
        )
    if images.shape[3] in (1, 3, 4) and images.shape[1] > 4:
        raise ValueError(
            f"images should be [N, C, H, W], got shape {tuple(images.shape)}, which looks like [N, H, W, C]: give "
            "images.permute(0, 3, 1, 2), of an array images.transpose(0, 3, 1, 2)"
        )
    return images if images.dtype == torch.uint8 else images.float()


def _as_classes(classes: Sequence[str] | int) -> tuple[str, ...]:
    if isinstance(classes, bool) or not (isinstance(classes, Integral) or hasattr(classes, "__iter__")):
        raise TypeError(f"classes should be a list of names, or how many there are, got {classes!r}")
    if isinstance(classes, Integral):
        if classes < 1:
            raise ValueError(f"classes should be names, or how many there are, at least 1, got {classes}")
        return tuple(map(str, range(int(classes))))
    return tuple(map(str, classes))


def _position(index: Any, n: int, name: str) -> int:
    """A position, possibly negative, as one in 0 .. n-1."""
    try:
        position = None if isinstance(index, bool) else operator.index(index)
    except TypeError:
        position = None
    if position is None:
        raise TypeError(
            f"index of {name!r} should be one position, an integer, got {index!r}: images(indices) gives the images of "
            "several, subset(indices) makes them a data set"
        )
    if not -n <= position < n:
        raise IndexError(f"index of {name!r} should be in {-n} .. {n - 1}, got {position}")
    return position % n


def read_images(source: LabelledImages, index: Tensor) -> Tensor:
    """Reads images from a data set and checks what it returns.

    Args:
        source: The data set, possibly a user's own.
        index: Positions, int64 [k].

    Returns:
        ``source.images(index)``, float32 [k, C, H, W].

    Raises:
        TypeError: If the images are not a float32 tensor.
        ValueError: If their number or shape is wrong.
    """
    images, shape = source.images(index), (len(index), *source.image_shape)
    name = getattr(source, "name", "the data")
    if not isinstance(images, Tensor) or images.dtype != torch.float32:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images of {name!r} should be a float32 tensor, got {got}")
    if images.shape != shape:
        raise ValueError(f"images of {name!r} should have shape {list(shape)}, got {list(images.shape)}")
    return images


def to_float(images: Tensor) -> Tensor:
    """Stored images as float32 in [0, 1]: k / 255 for uint8, the value itself for float16 and float32."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def as_indices(indices: Indices, n: int, name: str = "the data") -> Tensor:
    """Positions in any supported form as a tensor.

    Args:
        indices: int64 tensor [k], a list of integers, a range or a slice; or a mask, bool [n]; None for all.
        n: The number of samples.
        name: The name of the data set, for messages.

    Returns:
        int64 [k], on the CPU.

    Raises:
        IndexError: If a position is outside 0 .. n-1; the message names one.
        TypeError: If ``indices`` does not hold positions.
    """
    if indices is None:
        return torch.arange(n, device="cpu")
    if isinstance(indices, slice):
        if (indices.step or 1) > 0:
            return torch.arange(n, device="cpu")[indices]
        return torch.tensor(range(n)[indices], dtype=torch.int64, device="cpu")
    if not isinstance(indices, Tensor):
        try:
            indices = torch.tensor(np.asarray(list(indices)), device="cpu")
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"indices of {name!r} should be positions [k] as a list, tensor, array, range or slice, got "
                f"{indices!r}; one image is images([0])"
            ) from error
    index = indices.detach().cpu()
    if index.dtype == torch.bool:
        if index.shape != (n,):
            raise IndexError(f"a mask for {name!r} should have shape [{n}], got {tuple(index.shape)}")
        return index.nonzero()[:, 0]
    if index.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    if index.dim() != 1 or index.is_floating_point():
        raise IndexError(f"indices should be integers [k], got {index.dtype} of shape {tuple(index.shape)}")
    index = index.to(torch.int64)
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= n:
        raise IndexError(f"indices of {name!r} should be in 0 .. {n - 1}, got {low if low < 0 else high}")
    return index


def keyed_order(n: int, *key: int | str) -> Tensor:
    """A shuffle that depends on no generator of torch or numpy, whose numbers may change between releases.

    Args:
        n: The number of positions.
        key: Seeds and words that identify the shuffle.

    Returns:
        The positions 0 .. n-1 in the order of a hash of (key, position), int64 [n].
    """
    keys = [derive_seed(*key, i) for i in range(n)]
    return torch.tensor(sorted(range(n), key=keys.__getitem__), dtype=torch.int64, device="cpu")


def balanced_subset(labels: Tensor, n: int, seed: int) -> Tensor:
    """A random subset, spread over the classes as evenly as the data allow.

    Args:
        labels: int64 [N].
        n: The number of samples.
        seed: Seed of the draw. Of two subsets with the same seed, the smaller is part of the larger.

    Returns:
        Positions, int64 [n], ascending; all positions if there are no more than n.

    Raises:
        ValueError: If ``n`` is not an integer of at least 1.
    """
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise ValueError(f"limit should be a number of samples, at least 1, got {n!r}")
    if n >= len(labels):
        return torch.arange(len(labels), device="cpu")
    order = keyed_order(len(labels), seed, "subset")
    label = labels[order]
    rank = torch.empty_like(label)  # how many of its class come before, in this order
    for value in label.unique().tolist():
        rows = (label == value).nonzero()[:, 0]
        rank[rows] = torch.arange(len(rows), device="cpu")
    return order[torch.argsort(rank, stable=True)[:n]].sort().values
