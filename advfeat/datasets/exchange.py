"""Import and export of data sets: the paper authors' lists of tensors, and folders of PNG images."""

from __future__ import annotations

import csv
import io
import os
import pickle
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from advfeat._arguments import check_path
from advfeat.datasets.base import ArraySource, read_images
from advfeat.datasets.class_folders import CLASSES_FILE
from advfeat.datasets.official import CIFAR10_CLASSES
from advfeat.datasets.protocol import Data, LabelledImages
from advfeat.datasets.reading import what_is_in
from advfeat.datasets.torch_dataset import as_source
from advfeat.files import check_writable_folder, new_folder, write_bytes, write_together
from advfeat.json_files import write_json

_BATCH = 1000
# What torch's reader raises for files with a byte changed or cut off.
_UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    pickle.UnpicklingError,
)


def export_lists(source: Data, path: str | Path, prefix: str = "CIFAR") -> None:
    """Writes a set in the format of the paper's authors: two files, ``path/CIFAR_ims`` and ``path/CIFAR_lab``.

    Each is a list of batches saved by ``torch.save``: float32 [n, C, H, W] in [0, 1], and int64 [n]. The authors' code
    reads them with ``torch.cat(torch.load(file))``. The format has no place for source and start indices, and 8-bit
    images become float32. Each file is written completely or not at all, and new images are never left beside the
    labels of an older set.

    Args:
        source: The data set, or a ``torch.utils.data`` dataset of (image, label).
        path: The folder, created if missing.
        prefix: Prefix of the file names, before ``_ims`` and ``_lab``.

    Raises:
        TypeError: If an argument is not a data set or a path.
        OSError: If the disk is full, or the folder cannot be written.
    """
    source = as_source(source)
    check_path("path", path)
    check_writable_folder(path)
    images, labels = [], []
    for _, x, y in _batches(source):
        images.append(x)
        labels.append(y)
    files = []
    for name, batches in (("ims", images), ("lab", labels)):
        buffer = io.BytesIO()
        torch.save(batches, buffer)
        files.append((Path(path) / f"{prefix}_{name}", buffer.getvalue()))
    write_together(files)


def import_lists(
    path: str | Path,
    classes: Sequence[str] = CIFAR10_CLASSES,
    prefix: str = "CIFAR",
    name: str | None = None,
    built_from: str | None = None,
) -> ArraySource:
    """Reads a set in the format of the paper's authors: a folder with ``CIFAR_ims`` and ``CIFAR_lab``.

    These are the sets that they released, and those that :func:`export_lists` writes. The authors' folders are
    ``d_robust_CIFAR``, ``d_non_robust_CIFAR``, ``drand_CIFAR`` and ``ddet_CIFAR`` (their description omits the ``d_``
    of the first two). No code in the files is executed (``weights_only``), and tensors saved on a GPU are loaded to the
    CPU.

    Args:
        path: The folder.
        classes: The class names, by label.
        prefix: Prefix of the file names.
        name: The name of the data set; None for the path.
        built_from: The data set that it was built from, on which ``advfeat train`` tests.

    Returns:
        The data set, in memory.

    Raises:
        FileNotFoundError: If a file is missing; the message lists what is there.
        ValueError: If a file is damaged, holds anything but a list of tensors, or does not match the other file; the
            message names it.
    """
    check_path("path", path)
    folder = Path(path)
    files = [folder / f"{prefix}_{kind}" for kind in ("ims", "lab")]
    before = [_state(file) for file in files]
    images, labels = map(_load_list, files)
    if before != [_state(file) for file in files]:
        raise ValueError(f"{folder} was written to while it was read: read it again")
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"{folder / f'{prefix}_ims'} should hold float images [n, C, H, W], got {images.dtype} of shape "
            f"{tuple(images.shape)}"
        )
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not integers or labels.shape != (len(images),):
        raise ValueError(
            f"{folder / f'{prefix}_lab'} should hold {len(images)} integers, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    made = ArraySource(images.float(), labels.long(), classes, name or str(folder))
    made.built_from = built_from
    return made


def _batches(source: LabelledImages) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(positions, images, labels), some at a time."""
    for index in torch.arange(len(source), device="cpu").split(_BATCH):
        yield index, read_images(source, index), source.labels[index]


def _state(file: Path) -> tuple[int, int, int] | None:
    """A value that changes when the file is replaced or written to."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _load_list(file: Path) -> Tensor:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing. {what_is_in(file.parent)}")
    try:
        batches = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"{file} is damaged, or holds more than tensors: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    batches = [batches] if isinstance(batches, Tensor) else batches
    if not isinstance(batches, (list, tuple)) or not batches or not all(isinstance(b, Tensor) for b in batches):
        raise ValueError(f"{file} should hold a list of tensors, got {type(batches).__name__}")
    for batch in batches:
        if batch.layout is not torch.strided or batch.is_nested or batch.is_quantized or batch.device.type == "meta":
            raise ValueError(f"{file} should hold plain tensors, got {batch.layout} on {batch.device}")
    size = sum(batch.numel() * batch.element_size() for batch in batches)
    if size > file.stat().st_size:  # a file of a few numbers can describe tensors that repeat them without end
        raise ValueError(f"{file} is damaged: its tensors would be {size:,} bytes, more than the file")
    try:
        return torch.cat(list(batches))
    except RuntimeError as error:
        raise ValueError(f"{file} should hold batches of one shape: {error}") from error


def export_folder(source: Data, path: str | Path) -> None:
    """Writes ``path/<split>/<class>/00000.png``, numbered by position, and ``path/<split>/metadata.csv``.

    The split is the source's, or "train". Values are rounded to the nearest k / 255, not truncated: truncation, as by
    ``byte()``, would darken every image by half a level on average. Rounding can move an image of a float32 constructed
    set out of its ball; build the set as uint8 if that matters. The CSV has the name and label of each file, and for a
    constructed set all that the set records of each sample. torchvision's ImageFolder, Hugging Face's imagefolder and
    this package's "folder" read the result; "folder" also restores the exact class names, and classes without images,
    from ``advfeat-classes.json``. The folder of the split appears only once it is complete.

    Args:
        source: The data set, or a ``torch.utils.data`` dataset of (image, label).
        path: The folder, created if missing.

    Raises:
        TypeError: If an argument is not a data set or a path.
        ValueError: If images do not have 1 or 3 channels, a class name cannot be the name of a folder, or the folder of
            the split is not empty.
        OSError: If the disk is full.
    """
    from PIL import Image

    source = as_source(source)
    check_path("path", path)
    channels = source.image_shape[0]
    if channels not in (1, 3):
        raise ValueError(f"an image file has 1 or 3 channels, {source.name!r} has {channels}")
    folders = [c.replace("/", "_") for c in source.classes]
    if len(set(folders)) < len(folders) or any(not f or f.startswith(".") or os.sep in f for f in folders):
        raise ValueError(f"names of classes should do as names of folders, got {', '.join(map(repr, source.classes))}")
    # Classes are read in sorted order, so numbers in front of their names preserve the labels.
    if sorted(folders) != folders:
        digits = len(str(len(folders) - 1))
        folders = [f"{i:0{digits}d}_{f}" for i, f in enumerate(folders)]
    name = getattr(source, "split", "") or "train"
    if name in (".", "..") or Path(name).name != name:  # from a manifest, which is not trusted
        raise ValueError(f"the split of {source.name!r} should be the name of a folder, got {name!r}")
    split = Path(path) / name
    check_writable_folder(split)
    if split.is_dir() and any(split.iterdir()):
        raise ValueError(f"{split} holds files already, which would count as images of this set: take another folder")
    counts = source.labels.bincount(minlength=len(folders)).tolist()
    extra = [n for n in ("original_labels", "source_index", "start_index", "target_success") if hasattr(source, n)]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file_name", "label", *extra])
    with new_folder(split) as root:
        for folder in folders:  # also for a class without images: otherwise the labels after it would shift
            (root / folder).mkdir()
        write_json(
            root / CLASSES_FILE,
            [{"folder": f, "name": c, "images": n} for f, c, n in zip(folders, source.classes, counts, strict=True)],
        )
        for positions, images, labels in _batches(source):
            pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            for position, image, label in zip(positions.tolist(), pixels.numpy(), labels.tolist(), strict=True):
                name = f"{folders[label]}/{position:05d}.png"
                buffer = io.BytesIO()
                Image.fromarray(image[:, :, 0] if channels == 1 else image).save(buffer, "PNG")
                (root / name).write_bytes(buffer.getvalue())
                rows.writerow([name, label, *(getattr(source, n)[position].item() for n in extra)])
        write_bytes(root / "metadata.csv", table.getvalue().encode(errors="surrogateescape"))
