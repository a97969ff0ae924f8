"""Small files in the forms of the official ones of CIFAR-10, CIFAR-10.1, MNIST and Fashion-MNIST."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from advfeat.datasets import official


def cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Writes files with 4 images each, whose MD5 sums are taken for the official ones while they are patched."""
    folder, files = root / "cifar-10-batches-py", {"train": [], "test": []}
    folder.mkdir(parents=True)
    for split, names in (("train", ("data_batch_1", "data_batch_2")), ("test", ("test_batch",))):
        for i, name in enumerate(names):
            pixels = np.random.default_rng(i).integers(0, 256, 4 * 3072, dtype=np.uint8)
            rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(4, 3072)
            data = pickle.dumps({"labels": [1, 2, 3, i], "data": _Python2Array(rows)}, protocol=2)
            (folder / name).write_bytes(data)
            files[split].append((name, hashlib.md5(data).hexdigest()))
    patch.setattr(official, "_CIFAR10_FILES", files)


class _Python2Array:
    """Pickled as numpy under Python 2 pickled an array: its bytes as one string."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        state = (1, self.array.shape, np.dtype("uint8"), False, self.array.tobytes().decode("latin-1"))
        return np.ndarray, (self.array.shape,), state


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def fashion_mnist(root: Path) -> None:
    """Writes a test set of three images."""
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([9, 0, 4], dtype=np.uint8)))


def cifar10_1(folder: Path, version: str = "v6", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Writes files like the official ones, as one reads them: images [n, 32, 32, 3], labels [n]."""
    n = {"v6": 2000, "v4": 2021}[version]
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(n) % 10).astype(np.int32)
    np.save(folder / f"cifar10.1_{version}_data.npy", images)
    np.save(folder / f"cifar10.1_{version}_labels.npy", labels)
    return images, labels
