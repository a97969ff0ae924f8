"""CIFAR-10, Fashion-MNIST and MNIST from their official files, in torchvision's folder layout; and CIFAR-10.1.

They are not read by torchvision, which unpickles CIFAR-10's batch files, lacks CIFAR-10.1, and may not be installed. No
code in a file is executed: the pickles are scanned as data.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import pickletools
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from advfeat.datasets.base import ArraySource
from advfeat.datasets.reading import open_regular, read_npy, size_of, what_is_in

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The MD5 sums that torchvision and the data set's page give.
_CIFAR10_FILES = {
    "train": (
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    "test": (("test_batch", "40351d587109b95175f43aff81a1287e"),),
}
_CIFAR10_SHAPE = (3, 32, 32)
_CIFAR10_BYTES = 1 << 26  # a batch file has half of it

_CIFAR10_1 = {"v6": 2000, "v4": 2021}  # number of images; v6 has balanced classes and is recommended by its authors
_CIFAR10_1_FOLDERS = ("", "cifar10.1", "CIFAR-10.1", "CIFAR-10.1/datasets")  # the last as in a clone of its repository

MNIST_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_IMAGES = {"train": 60_000, "test": 10_000}
# The two sets have files of the same names and format; the first labels tell them apart.
_IDX_FIRST = {
    ("mnist", "train"): (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ("mnist", "test"): (7, 2, 1, 0, 4, 1, 4, 9, 5, 9),
    ("fashion-mnist", "train"): (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
    ("fashion-mnist", "test"): (9, 2, 1, 1, 6, 1, 4, 6, 5, 7),
}


def load_cifar10(root: Path, split: str) -> ArraySource:
    """CIFAR-10 from ``root/cifar-10-batches-py``: 50,000 or 10,000 images 3x32x32.

    Args:
        root: The folder that contains it.
        split: "train" or "test".

    Raises:
        FileNotFoundError: If files are missing; the message lists what was expected and what is there.
        ValueError: If the MD5 sum of a file is wrong; the message names it.
    """
    folder = _folder(root, "cifar-10-batches-py", "cifar10", "cifar-10-python.tar.gz")
    images: list[Tensor] = []
    numbers: list[int] = []
    for name, md5 in _CIFAR10_FILES[split]:
        path = folder / name
        with _open(path) as file:
            if size_of(file) > _CIFAR10_BYTES:
                raise ValueError(f"{path} is no batch file of CIFAR-10: it has {size_of(file):,} bytes")
            data = file.read(_CIFAR10_BYTES)
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(
                f"{path} is truncated or altered: {len(data):,} bytes with MD5 {found}, expected MD5 {md5}; unpack "
                "cifar-10-python.tar.gz again"
            )
        pixels, batch_labels = scan_cifar_batch(data, path)
        images.append(pixels)
        numbers += batch_labels
    labels = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    return ArraySource(torch.cat(images), labels, CIFAR10_CLASSES, "cifar10", split)


def scan_cifar_batch(data: bytes, path: Path) -> tuple[Tensor, list[int]]:
    """The contents of a batch file, read without running its pickle.

    The file is a pickled dict. Its operations are listed (``pickletools.genops``), never executed: the labels are the
    integers between the key "labels" and the next key, the pixels are the only string of n * 3072 bytes.

    Args:
        data: The bytes of the file.
        path: The file, for messages.

    Returns:
        Pixels, uint8 [n, 3, 32, 32], and labels.

    Raises:
        ValueError: If the file is not a batch file.
    """
    labels: list[int] = []
    pixels: bytes | None = None
    inside = False
    try:
        for operation, argument, _ in pickletools.genops(data):
            if isinstance(argument, str):
                inside = argument == "labels"
                if len(argument) > 2048:
                    pixels = argument.encode("latin-1")
            elif inside and operation.name.startswith("BININT") and isinstance(argument, int):
                labels.append(argument)
            elif operation.name == "SETITEMS":
                inside = False
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{path} is not a batch file of CIFAR-10: {error}") from error
    expected = len(labels) * math.prod(_CIFAR10_SHAPE)
    if not labels or pixels is None or len(pixels) != expected:
        raise ValueError(
            f"{path} is not a batch file of CIFAR-10: {len(labels)} labels and {len(pixels or b''):,} bytes of pixels"
        )
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, *_CIFAR10_SHAPE), labels


def load_cifar10_1(root: Path, split: str) -> ArraySource:
    """CIFAR-10.1, a later test set: 2,000 images 3x32x32 of v6, or 2,021 of v4 if only v4 is there.

    Reads ``cifar10.1_v6_data.npy`` and ``cifar10.1_v6_labels.npy`` from ``root``, ``root/cifar10.1``,
    ``root/CIFAR-10.1`` or ``root/CIFAR-10.1/datasets``. No pickled objects are read.

    Args:
        root: The folder.
        split: "test".

    Raises:
        ValueError: If the split is "train", or a file is damaged; the message names it.
        FileNotFoundError: If files are missing; the message lists what was expected and what is there.
    """
    if split != "test":
        raise ValueError(f"cifar10.1 is a test set: it has no {split} split")
    data, labels, n = _find_cifar10_1(root)

    def check_images(dtype: np.dtype, shape: tuple[int, ...]) -> None:
        if dtype != np.uint8 or shape != (n, 32, 32, 3):
            raise ValueError(f"{data} should hold uint8 [{n}, 32, 32, 3], got {dtype} of shape {shape}")

    def check_labels(dtype: np.dtype, shape: tuple[int, ...]) -> None:
        if dtype.kind not in "iu" or shape != (n,):
            raise ValueError(f"{labels} should hold {n} integers, got {dtype} of shape {shape}")

    for file in (data, labels):
        _open(file).close()  # if one is missing, the error lists what exists
    images, values = read_npy(data, check_images), read_npy(labels, check_labels)
    if values.min() < 0 or values.max() > 9:
        raise ValueError(f"{labels} should hold labels in 0 .. 9, got {values.min()} .. {values.max()}")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ArraySource(pixels, torch.from_numpy(values.astype(np.int64)), CIFAR10_CLASSES, "cifar10.1", split)


def _find_cifar10_1(root: Path) -> tuple[Path, Path, int]:
    """The files of images and labels, and the number of images expected; one of the files may be missing."""
    folders = [root / folder for folder in _CIFAR10_1_FOLDERS]
    for version, n in _CIFAR10_1.items():
        pairs = [[folder / f"cifar10.1_{version}_{kind}.npy" for kind in ("data", "labels")] for folder in folders]
        data, labels = max(pairs, key=lambda pair: sum(file.is_file() for file in pair))
        if data.is_file() or labels.is_file():
            return data, labels, n
    raise FileNotFoundError(
        f"cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy (or v4) should lie in {', '.join(map(str, folders))}: "
        f"not there. {' '.join(what_is_in(folder) for folder in folders if folder.is_dir())}"
    )


def load_idx(name: str, root: Path, split: str) -> ArraySource:
    """MNIST or Fashion-MNIST, 60,000 or 10,000 images of 1x28x28.

    The files are those of ``root/MNIST/raw`` or ``root/FashionMNIST/raw``, plain or .gz.

    Args:
        name: "mnist" or "fashion-mnist".
        root: The folder.
        split: "train" or "test".

    Raises:
        FileNotFoundError: If files are missing; the message lists what was expected and what is there.
        ValueError: If a file is damaged (the message names it) or belongs to the other data set.
    """
    folder = _folder(root, "MNIST/raw" if name == "mnist" else "FashionMNIST/raw", name)
    prefix = _IDX_PREFIX[split]
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", (_IDX_IMAGES[split], 28, 28))
    file = folder / f"{prefix}-labels-idx1-ubyte"
    labels = _read_idx(file, (_IDX_IMAGES[split],)).long()
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images):,} images but {len(labels):,} labels in the {prefix} files")
    if len(labels) and int(labels.max()) > 9:
        first = int((labels > 9).nonzero()[0])
        raise ValueError(f"{file} should hold labels in 0 .. 9, got {int(labels[first])} for sample {first}")
    for (of, its), begin in _IDX_FIRST.items():
        if (of, its) != (name, split) and tuple(labels[:10].tolist()) == begin:
            raise ValueError(f"{folder} should hold {name}, but its {prefix} files are those of {of}, {its}")
    classes = MNIST_CLASSES if name == "mnist" else FASHION_CLASSES
    return ArraySource(images.unsqueeze(1), labels, classes, name, split)


def _read_idx(path: Path, most: tuple[int, ...]) -> Tensor:
    """A uint8 tensor from an IDX file: 0, 0, 8 (uint8), the number of dimensions, their sizes (big-endian), values.

    most: the expected shape, with the largest number of samples. The shape is checked before the values are read, since
    a few MB of .gz can hold many GB of zeros.
    """
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and packed.exists():
        path = packed
    with _open(path) as file:
        if path.suffix != ".gz":
            return _idx_values(file, path, most, f"{size_of(file):,} bytes")
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _idx_values(unpacked, path, most)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or altered: {error}") from error


def _idx_values(file: BinaryIO | gzip.GzipFile, path: Path, most: tuple[int, ...], size: str = "more bytes") -> Tensor:
    """The values of an open IDX file; no more is read than its header states."""
    start = file.read(4)
    if start != bytes((0, 0, 8, len(most))):
        raise ValueError(f"{path} should start with the bytes 0 0 8 {len(most)} of an IDX file, got {list(start)}")
    sizes = file.read(4 * len(most))
    shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * len(most), 4)]
    if len(sizes) == 4 * len(most) and (shape[0] > most[0] or shape[1:] != list(most[1:])):
        allowed = ", ".join([f"at most {most[0]:,}", *map(str, most[1:])])
        raise ValueError(f"{path} should have the shape [{allowed}], got {shape} in its head")
    expected = math.prod(shape)
    data = file.read(expected + 1)
    if len(sizes) < 4 * len(most) or len(data) != expected:
        head = len(start) + len(sizes)
        found = f"{head + len(data):,} bytes" if len(data) <= expected else size
        raise ValueError(
            f"{path} is truncated or altered: {found}, expected {head + expected:,} for the shape {shape} in its head"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(shape)


def _folder(root: Path, inside: str, name: str, archive: str = "") -> Path:
    folder = root / inside
    if folder.is_dir():
        return folder
    how = ""
    if archive and (root / archive).exists():
        how = f"; unpack {archive} there (tar xzf)"
    elif root.name == folder.name:
        how = f"; give its parent, {root.parent}, as root"
    raise FileNotFoundError(f"{name} should lie in {folder}: not there{how}. {what_is_in(root)}")


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing. {what_is_in(path.parent)}") from None
