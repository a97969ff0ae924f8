"""Data sets by name: :func:`load`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advfeat._arguments import check_path, meant, whole_number
from advfeat._names import printable
from advfeat.datasets.base import ArraySource, Source, Subset, balanced_subset, keyed_order
from advfeat.datasets.registry import NAMES, known, not_taken, takes

__all__ = ["NAMES", "RESTRICTED_IMAGENET", "ArraySource", "Source", "Subset", "load", "options_for", "takes"]

_IMAGENET_CLASSES = 1000

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
_DIGITS_SEED = 0  # Fixed: with a split that depended on a seed, one run would train on the test images of another.


def load(
    name: str | Path = "digits",
    split: str = "train",
    root: str | Path | None = None,
    *,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    limit: int | None = None,
    holdout: float | None = None,
    class_ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Source:
    """A data set by name.

    The names are:

    * "digits": scikit-learn's 1797 scanned digits, 10 classes, 1x8x8, values k/16; 1347 train, 450 test;
    * "planted": generated images with known features, see :class:`advfeat.datasets.Planted`;
    * "cifar10": root/cifar-10-batches-py;
    * "cifar10.1": root/cifar10.1_v6_data.npy and ..._labels.npy, which may also lie in root/cifar10.1 or a clone of its
      repository, root/CIFAR-10.1; only the test split exists;
    * "fashion-mnist": root/FashionMNIST/raw;
    * "mnist": root/MNIST/raw;
    * "folder": root/<split>/<class>/*.png, see :class:`advfeat.datasets.FolderSource`;
    * "restricted-imagenet": root/<split>/<class>/, the 1,000 class folders of ImageNet as the paper's 9 super-classes
      (Table 2), 224x224 unless size is given;
    * a path: a set built by :func:`advfeat.datasets.build` (a folder with a manifest.json), or one that the paper's
      authors released (a folder with CIFAR_ims and CIFAR_lab).

    Args:
        name: One of these names, or a path.
        split: "train" or "test".
        root: The folder that contains the data set. "cifar10", "cifar10.1", "fashion-mnist", "mnist", "folder" and
            "restricted-imagenet" need it; "digits", "planted" and paths do not.
        seed: Seed of the images of "planted", of the samples chosen by ``limit``, and of the test images chosen by
            ``holdout``.
        size: For image folders and "planted": the side in pixels, or (height, width).
        channels: For image folders: 1 or 3, see :class:`advfeat.datasets.FolderSource`. To match the input of a model,
            see :func:`advfeat.datasets.sources.options_for`.
        limit: Take only this many samples, spread evenly over the classes.
        holdout: For "folder": the share of the training images to hold out as the test set, in (0, 1).
        class_ranges: For "folder": a dict from class name to (first, last) of the sorted class folders.

    Returns:
        The data set, a ``torch.utils.data.Dataset`` of (float32 [C, H, W] in [0, 1], int).

    Raises:
        ValueError: If the name or split is unknown, the data set does not take an argument, or a file is damaged.
        FileNotFoundError: If files are missing; the message lists what was expected and what is there.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split should be train or test, got {split!r}")
    if not isinstance(name, (str, Path)):
        raise TypeError(f"name should be that of a data set, or a path, got {name!r}")
    if root is not None:
        check_path("root", root)
    name, seed = str(name), whole_number("seed", seed, None)
    options: dict[str, Any] = {"channels": channels, "holdout": holdout, "class_ranges": class_ranges}
    for option, value in {"size": size, **options}.items():
        if value is not None and not takes(name, option):
            raise ValueError(not_taken(option, [printable(name)], value))
    if _is_folder(name):
        source = _load_folder(name, split, root, size, {**options, "seed": seed})
    else:
        source = _load(name, split, root, seed, size)
    return source if limit is None else source.subset(balanced_subset(source.labels, limit, seed))


def _is_folder(name: str | Path) -> bool:
    return takes(name, "channels")


def options_for(name: str | Path, input_shape: Sequence[int]) -> dict[str, Any]:
    """The options of :func:`load` with which the images of a folder have the input shape of a model.

    Args:
        name: Name of the data set.
        input_shape: (C, H, W) of the model.

    Returns:
        {"size": (H, W), "channels": C} for image folders; {} for other sets, whose images have a fixed size.
    """
    channels, *size = input_shape
    return {"size": tuple(size), "channels": channels} if _is_folder(name) else {}


def _load(name: str, split: str, root: str | Path | None, seed: int, size: int | tuple[int, int] | None) -> Source:
    if name == "digits":
        return _digits(split)
    if name == "planted":
        from advfeat.datasets.planted import Planted, PlantedConfig

        sides = _two_sides(size)
        return Planted(split, seed=seed, config=PlantedConfig() if sides is None else PlantedConfig((3, *sides)))
    if known(name).needs_root:
        from advfeat.datasets import official

        path = _root(name, root)
        if name == "cifar10":
            return official.load_cifar10(path, split)
        return official.load_cifar10_1(path, split) if name == "cifar10.1" else official.load_idx(name, path, split)
    return _constructed(name, split)


def _two_sides(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or any(not isinstance(side, Integral) or isinstance(side, bool) for side in sides):
        raise ValueError(f"size should be an integer, a side or (height, width), got {size!r}")
    return sides


def _load_folder(
    name: str, split: str, root: str | Path | None, size: int | tuple[int, int] | None, options: dict[str, Any]
) -> Source:
    from advfeat.datasets.folder import FolderSource

    if name == "restricted-imagenet":
        size = 224 if size is None else size
        options |= {"class_ranges": RESTRICTED_IMAGENET, "check_folders": _check_imagenet}
    return FolderSource(_root(name, root), split, size=size, name=name, **options)


def _check_imagenet(folders: Sequence[str]) -> None:
    """Table 2 refers to classes by number: one folder more or less would shift all classes after it."""
    strange = [folder for folder in folders if not re.fullmatch(r"n\d{8}", folder)]
    if strange or len(folders) != _IMAGENET_CLASSES:
        also = f", {len(strange)} of them not named like n01440764 ({strange[0]})" if strange else ""
        raise ValueError(
            f"root should have all {_IMAGENET_CLASSES:,} class folders of ImageNet for restricted-imagenet, whose "
            f"numbers it counts, got {len(folders):,}{also}; for a part of them use the data set 'folder' with "
            "class_ranges of its own"
        )


def _constructed(name: str, split: str) -> Source:
    from advfeat.datasets.store import ConstructedSet

    path = Path(name).expanduser()
    if not name or not path.exists():
        raise ValueError(
            f"name should be one of {', '.join(NAMES)}, or the folder of a built set, got {name!r}{meant(name, NAMES)}"
        )
    if path.is_dir() and not (path / "manifest.json").is_file():
        if (path / "CIFAR_ims").is_file() or (path / "CIFAR_lab").is_file():
            return _released(path, split)
        raise FileNotFoundError(
            f"name should be a data set or the folder of a built set, got {printable(path)}, which has no "
            f"manifest.json; for a folder of images use the data set 'folder' with root={printable(path)}"
        )
    made = ConstructedSet.open(path)
    if made.split and made.split != split:
        raise ValueError(_other_split(path, made.split, made.built_from, split))
    return made


def _other_split(path: Path, own: str, built_from: str | None, split: str) -> str:
    return f"split should be {own} for {printable(path)}, which was built from that of {built_from}, got {split!r}"


def _released(path: Path, split: str) -> Source:
    """A set released by the paper's authors: built from CIFAR-10's training images, and tested on CIFAR-10."""
    from advfeat.datasets.exchange import import_lists

    if split != "train":
        raise ValueError(_other_split(path, "train", "cifar10", split))
    made = import_lists(path, built_from="cifar10")
    if made.image_shape != (3, 32, 32):
        raise ValueError(
            f"{path} should hold 3x32x32 images of CIFAR-10, got {'x'.join(map(str, made.image_shape))}; for lists of "
            "another data set there is advfeat.datasets.import_lists"
        )
    return made


def _root(name: str, root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(f"root should be the folder with the data set {name!r}, got None")
    path = Path(root).expanduser()
    if not path.is_dir():
        packed = path.name.lower().endswith((".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2"))
        how = "an archive: unpack it, and give the folder" if packed else "not a folder"
        why = f"is {how if path.exists() else 'not there'}"
        raise FileNotFoundError(
            f"root should be the folder with the data set {name!r}, got {printable(path)}, which {why}"
        )
    return path


def _digits(split: str) -> ArraySource:
    """The test set is the first digits of each class in the order of a hash, in the class proportions of the whole."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32, device="cpu").div(16).view(-1, 1, 8, 8)
    labels = torch.tensor(labels, dtype=torch.int64, device="cpu")
    test = _stratified(labels, _DIGITS_TEST, keyed_order(len(labels), "digits", _DIGITS_SEED))
    rest = torch.ones_like(labels, dtype=torch.bool).index_fill(0, test, False).nonzero().flatten()
    index = test if split == "test" else rest
    return ArraySource(images[index], labels[index], tuple("0123456789"), "digits", split)


def _stratified(labels: Tensor, n: int, order: Tensor) -> Tensor:
    """Positions of n samples, ascending: the first of each class in ``order``, in proportion (largest remainders)."""
    exact = labels.bincount().double() * n / len(labels)
    counts = exact.floor().long()
    most = torch.argsort(exact - exact.floor(), descending=True, stable=True)[: n - int(counts.sum())]
    counts[most] += 1
    chosen = [order[labels[order] == label][:count] for label, count in enumerate(counts.tolist())]
    return torch.cat(chosen).sort().values
