"""Data sets by name: :func:`load`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from advfeat.datasets.base import ArraySource, Source, Subset, balanced_subset, keyed_order

__all__ = ["NAMES", "RESTRICTED_IMAGENET", "ArraySource", "Source", "Subset", "load"]

NAMES = ("digits", "planted", "cifar10", "cifar10.1", "fashion-mnist", "mnist", "folder", "restricted-imagenet")

# The paper's Table 2 (Appendix C.1): first and last of the sorted ImageNet classes, both inclusive.
RESTRICTED_IMAGENET: dict[str, tuple[int, int]] = {
    "dog": (151, 268),
    "cat": (281, 285),
    "frog": (30, 32),
    "turtle": (33, 37),
    "bird": (80, 100),
    "primate": (365, 382),
    "fish": (389, 397),
    "crab": (118, 121),
    "insect": (300, 319),
}

_DIGITS_TEST = 450
_DIGITS_SEED = 0  # The split is part of the data set: a split that moved with a seed would train on test images.


def load(
    name: str | Path = "digits",
    split: str = "train",
    root: str | Path | None = None,
    *,
    seed: int = 0,
    size: int | None = None,
    limit: int | None = None,
    class_ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Source:
    """A data set by name.

    name:
        "digits"               scikit-learn's 1797 scanned digits, 10 classes, 1x8x8, values k/16; 1347 train, 450 test
        "planted"              generated images with known features, see :class:`advfeat.datasets.planted.Planted`
        "cifar10"              root/cifar-10-batches-py
        "cifar10.1"            root/cifar10.1_v6_data.npy and ..._labels.npy, or in root/cifar10.1 or in a clone of its
                               repository, root/CIFAR-10.1; a test set alone
        "fashion-mnist"        root/FashionMNIST/raw
        "mnist"                root/MNIST/raw
        "folder"               root/<split>/<class>/*.png, see :class:`advfeat.datasets.folder.FolderSource`
        "restricted-imagenet"  an ImageNet folder as the paper's 9 super-classes (Table 2), 224x224 unless size is given
        a path                 a set made by :func:`advfeat.datasets.build.build` (a folder with a manifest.json), or
                               one that the paper's authors released (a folder with CIFAR_ims and CIFAR_lab)
    split: "train" or "test". root: the folder the data set lies in; only the named sets and folders need it.
    seed: draws the images of "planted" and the samples of ``limit``. size: side in pixels, for folders and "planted".
    limit: so many samples, evenly over the classes. class_ranges: for "folder", see there.

    Errors: ValueError for an unknown name or split, an argument that the data set does not take, damaged files;
    FileNotFoundError saying what was looked for and what is there.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split should be train or test, got {split!r}")
    name = str(name)
    folder = name in ("folder", "restricted-imagenet")
    if size is not None and not (folder or name == "planted"):
        raise ValueError(f"size is for image folders and planted: {name} has a size of its own, got size={size}")
    if class_ranges is not None and name != "folder":
        raise ValueError(f"class_ranges is for image folders, got it with {name}")
    source = _load_folder(name, split, root, size, class_ranges) if folder else _load(name, split, root, seed, size)
    return source if limit is None else source.subset(balanced_subset(source.labels, limit, seed))


def _load(name: str, split: str, root: str | Path | None, seed: int, size: int | None) -> Source:
    if name == "digits":
        return _digits(split)
    if name == "planted":
        from advfeat.datasets.planted import Planted, PlantedConfig

        return Planted(split, seed=seed, config=PlantedConfig() if size is None else PlantedConfig((3, size, size)))
    if name in ("cifar10", "cifar10.1", "mnist", "fashion-mnist"):
        from advfeat.datasets import official

        path = _root(name, root)
        if name == "cifar10":
            return official.load_cifar10(path, split)
        return official.load_cifar10_1(path, split) if name == "cifar10.1" else official.load_idx(name, path, split)
    return _constructed(name, split)


def _load_folder(
    name: str,
    split: str,
    root: str | Path | None,
    size: int | None,
    class_ranges: Mapping[str, tuple[int, int]] | None,
) -> Source:
    from advfeat.datasets.folder import FolderSource

    if name == "restricted-imagenet":
        class_ranges, size = RESTRICTED_IMAGENET, size or 224
    return FolderSource(_root(name, root), split, size=size, class_ranges=class_ranges, name=name)


def _constructed(name: str, split: str) -> Source:
    from advfeat.datasets.store import ConstructedSet

    path = Path(name)
    if not path.exists():
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown data set {name!r}: should be {', '.join(NAMES)} or the folder of a built set{hint}")
    if path.is_dir() and not (path / "manifest.json").is_file():
        if (path / "CIFAR_ims").is_file() or (path / "CIFAR_lab").is_file():
            return _released(path, split)
        raise FileNotFoundError(
            f"{path} has no manifest.json, so it is not a constructed set; for a folder of images use the data set "
            f"'folder' with root={path}"
        )
    made = ConstructedSet.open(path)
    if made.split and made.split != split:
        raise ValueError(f"{path} was built from the {made.split} split of {made.built_from}; it has no {split} split")
    return made


def _released(path: Path, split: str) -> Source:
    """A set of the paper's authors: built from CIFAR-10's training images, and tested on CIFAR-10."""
    from advfeat.datasets.exchange import import_lists

    if split != "train":
        raise ValueError(f"{path} was built from the train split of cifar10; it has no {split} split")
    made = import_lists(path, built_from="cifar10")
    if made.image_shape != (3, 32, 32):
        raise ValueError(
            f"{path} should hold 3x32x32 images of CIFAR-10, got {'x'.join(map(str, made.image_shape))}; for lists of "
            "another data set there is advfeat.datasets.exchange.import_lists"
        )
    return made


def _root(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(f"root should be given for {name}: the folder in which the data set lies")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"root={path} is {'not a folder' if path.exists() else 'not there'}")
    return path


def _digits(split: str) -> ArraySource:
    """The first digits of each class, in the order of a hash, are for the test; the shares of the classes are kept."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).div(16).view(-1, 1, 8, 8)
    labels = torch.tensor(labels, dtype=torch.int64)
    test = _stratified(labels, _DIGITS_TEST, keyed_order(len(labels), "digits", _DIGITS_SEED))
    index = test if split == "test" else torch.ones(len(labels), dtype=torch.bool).index_fill(0, test, False).nonzero()
    index = index.flatten()
    return ArraySource(images[index], labels[index], tuple("0123456789"), "digits", split)


def _stratified(labels: Tensor, n: int, order: Tensor) -> Tensor:
    """n positions, ascending, with the classes in the shares they have (largest remainders), the first in ``order``."""
    exact = labels.bincount().double() * n / len(labels)
    counts = exact.floor().long()
    most = torch.argsort(exact - exact.floor(), descending=True, stable=True)[: n - int(counts.sum())]
    counts[most] += 1
    chosen = [order[labels[order] == label][:count] for label, count in enumerate(counts.tolist())]
    return torch.cat(chosen).sort().values
