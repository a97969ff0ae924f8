"""Images in folders, one folder a class; decoded when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advfeat.datasets.base import Indices, Source, as_indices
from advfeat.datasets.official import what_is_in

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Names of the folders of a split; "val" is what ImageNet calls the images that everybody tests on.
_SPLITS = {"train": ("train",), "test": ("test", "val")}
_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa"}
_THREADS = min(8, os.cpu_count() or 1)


class FolderSource(Source):
    """root/<split>/<class>/*.png (jpg, jpeg, webp, bmp; also in folders below), classes by name in sorted order.

    split: "train", or "test", which may also be called "val". Without split folders, ``root/<class>`` is the training
    set, and there is no test set.
    size: None where all images have one size, else the side to which they are brought as is usual for ImageNet: the
    shorter side to 8/7 of it (256 for 224), bilinear, and the middle cut out; images of just this size stay untouched.
    class_ranges: name -> (first, last), both inclusive and counted from 0 over the sorted class folders: these
    super-classes replace the folders, and folders in none of them are left out (Restricted ImageNet:
    :data:`advfeat.datasets.sources.RESTRICTED_IMAGENET`).
    Images have one channel if the first one is grey, else three.

    Errors: FileNotFoundError saying what was looked for and what is there; ValueError for a class without images,
    images of several sizes without ``size``, ranges that overlap or leave the folders, and, when it is read, for an
    image that cannot be decoded, naming the file.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        size: int | None = None,
        class_ranges: Mapping[str, tuple[int, int]] | None = None,
        name: str = "folder",
    ) -> None:
        if size is not None and size < 1:
            raise ValueError(f"size should be at least 1, got {size}")
        self.name, self.split, self.size = name, split, size
        self.root = _split_folder(Path(root), split)
        folders = sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise FileNotFoundError(f"{self.root} should hold a folder for each class. {what_is_in(self.root)}")
        groups = _grouped(folders, class_ranges)
        self.classes = tuple(groups)
        self._files: list[Path] = []
        labels = []
        for label, group in enumerate(groups.values()):
            for folder in group:
                found = _images_in(folder)
                if not found:
                    raise ValueError(
                        f"class folder {folder} has no image ({', '.join(SUFFIXES)}). {what_is_in(folder)}"
                    )
                self._files += found
                labels += [label] * len(found)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self._mode = _read(self._files[0], lambda image: "L" if image.mode in ("1", "L", "LA") else "RGB")
        self.image_shape = (1 if self._mode == "L" else 3, *self._common_size())
        self._fingerprint: str | None = None

    def images(self, indices: Indices = None) -> Tensor:
        index = as_indices(indices, len(self), self.name).tolist()
        images = torch.empty((len(index), *self.image_shape), dtype=torch.float32)
        # Decoding lets go of the interpreter lock, so threads are enough.
        with ThreadPoolExecutor(_THREADS) as pool:
            for row, image in enumerate(pool.map(self._decode, index)):
                images[row] = image
        return images.div_(255)

    def file(self, index: int) -> Path:
        """The file of a sample."""
        return self._files[index]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over how images are read, and path (below the split), label, size and bytes of each file."""
        if self._fingerprint is None:
            hashed = hashlib.sha256(f"folder {self.size} {self._mode} {self.image_shape}".encode())
            for file, label in zip(self._files, self.labels.tolist(), strict=True):
                data = file.read_bytes()
                hashed.update(f"\0{file.relative_to(self.root).as_posix()}\0{label}\0{len(data)}\0".encode())
                hashed.update(data)
            self._fingerprint = hashed.hexdigest()
        return self._fingerprint

    def subset(self, indices: Indices) -> FolderSource:
        index = as_indices(indices, len(self), self.name)
        if len(index) == 0:
            raise ValueError(f"a part of {self.name!r} should have at least one sample")
        part = object.__new__(FolderSource)
        part.__dict__.update(self.__dict__)
        part._files, part.labels, part._fingerprint = [self._files[i] for i in index], self.labels[index], None
        return part

    def _common_size(self) -> tuple[int, int]:
        if self.size is not None:
            return self.size, self.size
        first = None
        for file in self._files:
            size = _read(file, lambda image: (image.height, image.width))
            first = first or size
            if size != first:
                raise ValueError(
                    f"images should have one size, or size be given to bring them to one: {self._files[0]} is "
                    f"{first[1]}x{first[0]}, {file} is {size[1]}x{size[0]}"
                )
        return first

    def _decode(self, index: int) -> Tensor:
        file = self._files[index]

        def pixels(image: Image) -> Tensor:
            if image.mode not in _EIGHT_BIT:
                raise ValueError(f"{file} should have 8 bits a channel, got mode {image.mode}")
            image = image.convert(self._mode)
            if self.size is not None:
                image = _resize_and_crop(image, self.size)
            flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            return flat.view(image.height, image.width, -1).permute(2, 0, 1)

        image = _read(file, pixels)
        if tuple(image.shape) != self.image_shape:  # changed since the set was opened
            raise ValueError(f"{file} should be {self.image_shape}, got {tuple(image.shape)}")
        return image


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"root={root} is {'not a folder' if root.exists() else 'not there'}")
    for name in _SPLITS[split]:
        if (root / name).is_dir():
            return root / name
    if any((root / name).is_dir() for names in _SPLITS.values() for name in names):
        raise FileNotFoundError(f"{root} has no folder {' or '.join(_SPLITS[split])}. {what_is_in(root)}")
    if split == "test":
        # The same images twice would make the test a test of memory.
        raise FileNotFoundError(
            f"{root} has no folders train and test (or val), so all of it is the training set: put the test images "
            f"into {root / 'test'}/<class>. {what_is_in(root)}"
        )
    return root


def _grouped(folders: list[Path], ranges: Mapping[str, tuple[int, int]] | None) -> dict[str, list[Path]]:
    if ranges is None:
        return {folder.name: [folder] for folder in folders}
    owner: dict[int, str] = {}
    for name, (first, last) in ranges.items():
        if not 0 <= first <= last < len(folders):
            raise ValueError(
                f"class_ranges[{name!r}] should lie in 0 .. {len(folders) - 1}, the class folders of "
                f"{folders[0].parent}, got {first} .. {last}"
            )
        for i in range(first, last + 1):
            if i in owner:
                raise ValueError(f"class_ranges {owner[i]!r} and {name!r} both hold class {i} ({folders[i].name})")
            owner[i] = name
    return {name: folders[first : last + 1] for name, (first, last) in ranges.items()}


def _images_in(folder: Path) -> list[Path]:
    found = []
    for path, below, files in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(path, f) for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
    # By parts, not by text: "a-b" sorts before "a/b" as text, and the order would depend on the separator.
    return sorted(found, key=lambda path: path.parts)


def _read(file: Path, use: Callable[[Image], Any]) -> Any:
    """What ``use`` makes of the opened image; whatever goes wrong names the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"reading image folders needs Pillow (pip install pillow): {error}") from error
    try:
        with Image.open(file) as image:
            return use(image)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _resize_and_crop(image: Image, size: int) -> Image:
    from PIL.Image import Resampling

    if image.size == (size, size):
        return image
    side = round(size * 8 / 7)
    short, long = sorted(image.size)
    long = int(side * long / short)  # cut off, as torchvision does
    image = image.resize((side, long) if image.width <= image.height else (long, side), resample=Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))
