"""Images in folders, one folder per class, decoded on demand."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from advfeat._names import printable
from advfeat.datasets.base import Indices, Source, as_indices
from advfeat.datasets.class_folders import (
    SPLITS,
    ClassFolder,
    check_same_folders,
    class_folders,
    find_splits,
)
from advfeat.datasets.class_images import find_images, no_images_message
from advfeat.datasets.image_file import Header, read_header, read_pixels
from advfeat.datasets.reading import open_regular, size_of, what_is_in
from advfeat.random import derive_seed

_THREADS = min(8, os.cpu_count() or 1)


class FolderSource(Source):
    """A folder of images by class: ``root/<split>/<class>/*.png``, also in subfolders of the class.

    Classes are in the sorted order of their names, or as an export of this package lists them in
    ``advfeat-classes.json``.

    The folder of the training split may be called train or training; that of the test split is the first that exists of
    test, testing, val, valid, validation and dev. Upper and lower case do not matter. If the root has no such folders,
    ``root/<class>`` is the training set, and there is no test set unless one is held out. A folder "train" that lies
    beside class folders and contains none is a class of this name.

    How files are read:

    * The formats are PNG, JPEG, WebP, BMP, PPM (PGM, PBM), GIF and TIFF, regardless of the suffix, with at most 8 bits
      per channel. Files with more bits are refused, as is PostScript. Of several frames or pages, the first is read.
    * Whether an image is grey or colour depends on how the file stores it, not on its pixels; a palette is colour.
    * An image may have at most ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, by default 89 million.
    * Transparent pixels become white. CMYK becomes RGB by Pillow's formula; colour profiles are not applied.
    * The orientation in EXIF data is applied, as image viewers do (torchvision does not).
    * Names that begin with a dot, and files of the operating system (``__MACOSX``, ``Thumbs.db``), are ignored. A
      RuntimeWarning counts the other files that are left out, by suffix.
    * Symbolic links are followed as long as no image counts twice: they may point to images elsewhere, but not back
      into the split, above it, or into another split. A file with hard links in two classes or splits gives a warning.

    Args:
        root: The folder that holds the splits, or the class folders.
        split: "train" or "test".
        size: The side, or (height, width), in pixels, to which images are resized in the way usual for ImageNet: scaled
            bilinearly until they just cover 8/7 of it (256 for 224), then cropped at the centre; images that have this
            size are unchanged. None if all images have one size.
        channels: 3 reads grey images as colour, too; 1 refuses colour; None means colour if any image of the set has
            colour, else grey.
        class_ranges: A dict from class name to (first, last), both inclusive and counted from 0 over the sorted class
            folders: these super-classes replace the folders, and folders in none of them are left out (Restricted
            ImageNet: :data:`advfeat.datasets.sources.RESTRICTED_IMAGENET`).
        check_folders: Called with the names of the class folders before any is read; it should raise an error if they
            are not the folders that ``class_ranges`` refers to.
        holdout: The share of the training images that becomes the test set of a root without one. A hash of ``seed``
            and the image's path decides, class by class, on which side an image is, so that it stays there if images
            are added to the folder. Each class has at least one image on each side; for the same seed the two sides are
            disjoint.
        seed: Seed of ``holdout``.
        allow_empty: Accept class folders without images. An export by :func:`advfeat.datasets.export_folder` is read
            back without this option.
        name: The name of the data set.

    Raises:
        FileNotFoundError: If a folder is missing; the message lists what was expected and what is there.
        ValueError: If a class has no images, images differ in size and ``size`` is None, an image has colour and
            ``channels`` is 1, a link counts images twice or is broken, a file is a FIFO or a device, or ranges overlap
            or exceed the folders; on reading, if an image cannot be decoded (the message names the file).
        OSError: If a folder cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        class_ranges: Mapping[str, tuple[int, int]] | None = None,
        check_folders: Callable[[Sequence[str]], None] | None = None,
        holdout: float | None = None,
        seed: int = 0,
        allow_empty: bool = False,
        name: str = "folder",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split should be train or test, got {split!r}")
        if channels not in (None, 1, 3) or isinstance(channels, bool):
            raise ValueError(f"channels should be 1 or 3, got {channels!r}")
        self.name, self.split, self.size = name, split, _sides(size)
        root = Path(root).expanduser()
        splits = find_splits(root)
        self.root = _split_folder(root, splits, split, holdout)
        others = {other: folder for other, folder in splits.items() if folder != self.root}
        folders = class_folders(self.root)
        if check_folders is not None:
            check_folders([folder.path.name for folder in folders])
        if class_ranges is not None:
            for other in others.values():
                check_same_folders(self.root, folders, other)
        groups = _grouped(folders, class_ranges)
        find_images(self.root, [folder for group in groups.values() for folder in group], others)
        self.classes = tuple(groups)
        self._files: list[Path] = []
        labels = []
        for label, group in enumerate(groups.values()):
            for folder in group:
                if not (folder.files or folder.listed == 0 or allow_empty):
                    raise ValueError(no_images_message(folder.path))
                self._files += folder.files
                labels += [label] * len(folder.files)
        if not self._files:
            raise ValueError(f"{printable(self.root)} has no image in its class folders")
        self.labels = torch.tensor(labels, dtype=torch.int64, device="cpu")
        self.image_shape = self._look(channels)
        self._fingerprint: str | None = None
        if holdout is not None:
            self._keep(_held_out(self, holdout, seed) == (split == "test"))

    def images(self, indices: Indices = None) -> Tensor:
        """See :meth:`advfeat.datasets.Source.images`."""
        index = as_indices(indices, len(self), self.name).tolist()
        images = torch.empty((len(index), *self.image_shape), dtype=torch.float32, device="cpu")
        for row, image in enumerate(self._decoded(index)):
            images[row] = image
        return images.div_(255)

    def file(self, index: int) -> Path:
        """The file of a sample.

        Args:
            index: Position of the sample, in 0 .. N-1.
        """
        return self._files[index]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over how images are read, and path (below the split), label, size and bytes of each file."""
        if self._fingerprint is None:
            hashed = hashlib.sha256(f"folder 2 {self.image_shape}".encode())  # 2: the rules of reading
            for file, label in zip(self._files, self.labels.tolist(), strict=True):
                with open_regular(file) as stream:
                    size = size_of(stream)
                    path = os.fsencode(file.relative_to(self.root).as_posix())
                    hashed.update(b"\0%s\0%d\0%d\0" % (path, label, size))
                    read = 0
                    while piece := stream.read(1 << 22):
                        hashed.update(piece)
                        read += len(piece)
                if read != size:
                    raise ValueError(f"{printable(file)} changed while it was read: {read:,} bytes, then {size:,}")
            self._fingerprint = hashed.hexdigest()
        return self._fingerprint

    def subset(self, indices: Indices) -> FolderSource:
        """See :meth:`advfeat.datasets.Source.subset`."""
        index = as_indices(indices, len(self), self.name)
        if len(index) == 0:
            raise ValueError(f"a part of {self.name!r} should have at least one sample")
        part = object.__new__(FolderSource)
        part.__dict__.update(self.__dict__)
        part._keep(index)
        return part

    def _keep(self, indices: Tensor) -> None:
        index = as_indices(indices, len(self), self.name)
        self._files, self.labels, self._fingerprint = [self._files[i] for i in index], self.labels[index], None

    def _look(self, channels: int | None) -> tuple[int, int, int]:
        """(C, H, W), from the files' headers: of all of them without ``size``, else as far as the first in colour."""
        colour, first = None if channels is None else channels == 3, None
        for file, header in zip(self._files, _headers(self._files), strict=True):
            first = first or header
            if self.size is None and (header.height, header.width) != (first.height, first.width):
                raise ValueError(
                    "images should have one size, or size be given to bring them to one: "
                    f"{printable(self._files[0])} is {first.width}x{first.height}, {printable(file)} is "
                    f"{header.width}x{header.height}"
                )
            if not header.grey and channels == 1:
                raise ValueError(f"{printable(file)} has colour, where grey images were asked for (channels=1)")
            if channels is None and not header.grey:
                colour = True
            if self.size is not None and (colour or channels is not None):
                break
        if self.size is not None:
            return (3 if colour else 1, *self.size)
        if first is None:
            raise ValueError("there should be at least one image to look at")
        return (3 if colour else 1, first.height, first.width)

    def _decoded(self, index: list[int]) -> Iterator[Tensor]:
        if len(index) == 1 or get_worker_info() is not None:  # a DataLoader's worker is one of several already
            yield from map(self._decode, index)
            return
        # Decoding lets go of the interpreter lock, so threads are enough.
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(self._decode, index)

    def _decode(self, index: int) -> Tensor:
        file = self._files[index]
        image = read_pixels(file, self.image_shape[0], self.size)
        if tuple(image.shape) != self.image_shape:  # changed since the set was opened
            raise ValueError(f"{printable(file)} should be {self.image_shape}, got {tuple(image.shape)}")
        return image


def _sides(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(
        isinstance(side, Integral) and not isinstance(side, bool) and side >= 1 for side in sides
    ):
        raise ValueError(f"size should be at least 1, a side or (height, width), got {size!r}")
    return int(sides[0]), int(sides[1])


def _headers(files: list[Path]) -> Iterator[Header]:
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), 64):  # some at once: the caller may have seen enough
            yield from pool.map(read_header, files[start : start + 64])


def _split_folder(root: Path, splits: dict[str, Path], split: str, holdout: float | None) -> Path:
    if holdout is not None:
        if not isinstance(holdout, Real) or not 0 < holdout < 1:
            raise ValueError(f"holdout should be in (0, 1), the share of the test images, got {holdout!r}")
        if "test" in splits:
            raise ValueError(f"holdout is for a root without test images: there is {printable(splits['test'])}")
        return splits.get("train", root)
    if split in splits:
        return splits[split]
    if splits:
        raise FileNotFoundError(f"{printable(root)} has no folder {' or '.join(SPLITS[split])}. {what_is_in(root)}")
    if split == "test":
        # The same images twice would make the test a test of memory.
        raise FileNotFoundError(
            f"{printable(root)} has no folders train and test (or val), so all of it is the training set: put the test "
            f"images into {printable(root / 'test')}/<class>, or hold a share of the images out (holdout). "
            f"{what_is_in(root)}"
        )
    return root


def _held_out(source: FolderSource, share: float, seed: int) -> Tensor:
    """Which samples are the test set, bool [N]: those whose hash is below ``share``, and at least one of each class."""
    # Names in one form of Unicode, whichever the file system writes: the same images from a Mac as from Linux.
    paths = [
        unicodedata.normalize("NFC", printable(source.file(i).relative_to(source.root).as_posix()))
        for i in range(len(source))
    ]
    hashes = [derive_seed(seed, "holdout", path) / 2**63 for path in paths]
    place = torch.tensor(hashes, dtype=torch.float64, device="cpu")
    held = place < share
    for label, name in enumerate(source.classes):
        rows = (source.labels == label).nonzero()[:, 0]
        if len(rows) == 1:
            raise ValueError(f"class {name!r} should have two images or more to hold one out, got 1")
        if len(rows):
            held[rows[place[rows].argmin()]] = True
            held[rows[place[rows].argmax()]] = False
    return held


def _grouped(folders: list[ClassFolder], ranges: Mapping[str, tuple[int, int]] | None) -> dict[str, list[ClassFolder]]:
    if ranges is None:
        return {folder.name: [folder] for folder in folders}
    if not isinstance(ranges, Mapping):
        raise TypeError(f"class_ranges should be a dict of name: (first, last), got {ranges!r}")
    if not ranges:
        raise ValueError("class_ranges should have at least one class, got none")
    owner: dict[int, str] = {}
    for name, both in ranges.items():
        if not isinstance(both, Sequence) or len(both) != 2 or not all(isinstance(place, Integral) for place in both):
            raise ValueError(f"class_ranges[{name!r}] should be (first, last), two places in the folders, got {both}")
        first, last = both
        if not 0 <= first <= last < len(folders):
            raise ValueError(
                f"class_ranges[{name!r}] should lie in 0 .. {len(folders) - 1}, the class folders of "
                f"{folders[0].path.parent}, got {first} .. {last}"
            )
        for i in range(first, last + 1):
            if i in owner:
                raise ValueError(f"class_ranges {owner[i]!r} and {name!r} both hold class {i} ({folders[i].name})")
            owner[i] = name
    return {name: folders[first : last + 1] for name, (first, last) in ranges.items()}
