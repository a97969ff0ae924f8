"""CIFAR-10, Fashion-MNIST and MNIST from their official files, in the folders that torchvision keeps them in.

Read here and not by torchvision, which unpickles CIFAR-10's batch files and which many machines lack. No file is
executed: the pickles are scanned as data. Also CIFAR-10.1, which torchvision has not.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickletools
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advfeat.datasets.base import ArraySource

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

_CIFAR10_1 = {"v6": 2000, "v4": 2021}  # how many images; v6 has as many of each class, and its authors advise it
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


def load_cifar10(root: Path, split: str) -> ArraySource:
    """CIFAR-10 from ``root/cifar-10-batches-py``: 50,000 or 10,000 images 3x32x32.

    Errors: FileNotFoundError saying what was looked for and what is there; ValueError naming a file whose MD5 is wrong.
    """
    folder = _folder(root, "cifar-10-batches-py", "cifar10")
    images, labels = [], []
    for name, md5 in _CIFAR10_FILES[split]:
        path = folder / name
        data = _read(path)
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise ValueError(
                f"{path} is truncated or altered: {len(data):,} bytes with MD5 {found}, expected MD5 {md5}; unpack "
                "cifar-10-python.tar.gz again"
            )
        pixels, batch_labels = scan_cifar_batch(data, path)
        images.append(pixels)
        labels += batch_labels
    return ArraySource(torch.cat(images), torch.tensor(labels), CIFAR10_CLASSES, "cifar10", split)


def scan_cifar_batch(data: bytes, path: Path) -> tuple[Tensor, list[int]]:
    """Pixels uint8 [n, 3, 32, 32] and labels of one batch file, taken out of the pickle without running it.

    The file is a pickled dict. Its operations are listed (``pickletools.genops``), never carried out: the labels are
    the integers between the key "labels" and the next key, the pixels are the one string of n * 3072 bytes.
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
            elif inside and operation.name.startswith("BININT"):
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
    """CIFAR-10.1, a later test set: 2,000 images 3x32x32 of v6, or 2,021 of v4 where only that one is there.

    Reads ``cifar10.1_v6_data.npy`` and ``cifar10.1_v6_labels.npy`` from ``root``, ``root/cifar10.1``,
    ``root/CIFAR-10.1`` or ``root/CIFAR-10.1/datasets``. No pickled objects are read.
    Errors: ValueError for the train split, and naming a damaged file; FileNotFoundError saying what was looked for and
    what is there.
    """
    if split != "test":
        raise ValueError(f"cifar10.1 is a test set: it has no {split} split")
    data, labels, n = _find_cifar10_1(root)
    images = _read_npy(data)
    if images.dtype != np.uint8 or images.shape != (n, 32, 32, 3):
        raise ValueError(f"{data} should hold uint8 [{n}, 32, 32, 3], got {images.dtype} of shape {images.shape}")
    values = _read_npy(labels)
    if values.dtype.kind not in "iu" or values.shape != (n,):
        raise ValueError(f"{labels} should hold {n} integers, got {values.dtype} of shape {values.shape}")
    if values.min() < 0 or values.max() > 9:
        raise ValueError(f"{labels} should hold labels in 0 .. 9, got {values.min()} .. {values.max()}")
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ArraySource(pixels, torch.from_numpy(values.astype(np.int64)), CIFAR10_CLASSES, "cifar10.1", split)


def _find_cifar10_1(root: Path) -> tuple[Path, Path, int]:
    """The files of images and labels, and how many there should be; one of them may be missing."""
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


def _read_npy(path: Path) -> np.ndarray:
    file = io.BytesIO(_read(path))
    try:
        # Not np.load, which takes what is no .npy file for a pickle, and says how to run it.
        return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # the head is Python, and a damaged one fails in as many ways as Python has
        raise ValueError(f"{path} is truncated or altered: {error}") from error


def load_idx(name: str, root: Path, split: str) -> ArraySource:
    """ "mnist" or "fashion-mnist" from ``root/MNIST/raw`` or ``root/FashionMNIST/raw``, plain or .gz: 60,000 or 10,000
    images 1x28x28.

    Errors: FileNotFoundError saying what was looked for and what is there; ValueError naming a damaged file.
    """
    folder = _folder(root, "MNIST/raw" if name == "mnist" else "FashionMNIST/raw", name)
    prefix = _IDX_PREFIX[split]
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images):,} images but {len(labels):,} labels in the {prefix} files")
    classes = MNIST_CLASSES if name == "mnist" else FASHION_CLASSES
    return ArraySource(images.unsqueeze(1), labels.long(), classes, name, split)


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """A uint8 tensor from an IDX file: 0, 0, 8 (uint8), the number of dimensions, their sizes (big-endian), values."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and packed.exists():
        path = packed
    data = _read(path)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or altered: {error}") from error
    if data[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path} should start with the bytes 0 0 8 {dimensions} of an IDX file, got {list(data[:4])}")
    head = 4 + 4 * dimensions
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, head, 4)]
    if len(data) != head + math.prod(shape):
        raise ValueError(
            f"{path} is truncated or altered: {len(data):,} bytes, expected {head + math.prod(shape):,} for the shape "
            f"{shape} in its head"
        )
    return torch.frombuffer(bytearray(data[head:]), dtype=torch.uint8).view(shape)


def _folder(root: Path, inside: str, name: str) -> Path:
    folder = root / inside
    if not folder.is_dir():
        raise FileNotFoundError(f"{name} should lie in {folder}: not there. {what_is_in(root)}")
    return folder


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {what_is_in(path.parent)}")
    return path.read_bytes()


def what_is_in(folder: Path) -> str:
    """One sentence on what a folder holds, for an error message."""
    if not folder.is_dir():
        return f"{folder} is {'not a folder' if folder.exists() else 'not there either'}."
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if not names:
        return f"{folder} is empty."
    return f"{folder} holds {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}."
