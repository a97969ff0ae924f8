"""The image files of class folders; no image may count twice through links."""

from __future__ import annotations

import contextlib
import os
import warnings
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from advfeat._names import printable
from advfeat.datasets.class_folders import CLASSES_FILE, ClassFolder, check_link, entries_of, is_folder, is_image
from advfeat.datasets.image_file import SUFFIXES
from advfeat.datasets.reading import what_is_in
from advfeat.files import kind_of


def find_images(split: Path, classes: list[ClassFolder], others: dict[str, Path]) -> None:
    """Fills in the files of each class, sorted by path, and warns of files that are left out.

    Links to files and folders are followed, but no image may count twice. So a link is refused if it points to a folder
    above the split, into the split itself or into another split, or to an image to which another class or split has a
    link, too. Hard links of one file in two classes or splits, which deduplicating programs create, only give a
    warning. Folders and files whose names begin with a dot are ignored.

    Args:
        split: The folder of the split.
        classes: Its classes, whose ``files`` are filled in.
        others: The folders of the other splits, by name.

    Warns:
        RuntimeWarning: If files are left out, or one file has hard links in two classes or splits.

    Raises:
        ValueError: If a link counts images twice or is broken, something with the name of an image is not a regular
            file, or a class has fewer images than it was exported with.
        OSError: If a folder cannot be read.
    """
    walk = _Walk(split, others)
    for folder in classes:
        if folder.path.is_dir():
            folder.files = sorted(walk.images(folder.path), key=lambda path: path.parts)  # as strings, "a-b" < "a/b"
            if folder.listed is not None and len(folder.files) < folder.listed:
                raise ValueError(
                    f"{printable(folder.path)} was exported with {folder.listed:,} images and holds "
                    f"{len(folder.files):,}: copy it again, or correct the number in {CLASSES_FILE}"
                )
    walk.check_links()
    walk.warn_of_hard_links()
    walk.left_out.update(_suffix(e.name) for e in entries_of(split) if is_image(e.name) and not e.is_dir())
    _warn_of_hidden_folders(split)
    if walk.left_out:
        by_count = sorted(walk.left_out.items(), key=lambda kind: (-kind[1], kind[0]))
        kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in by_count)
        warnings.warn(
            f"{printable(split)}: {_file_count(walk.left_out.total())} left out ({kinds}): images are the files in "
            f"class folders whose names end in {', '.join(SUFFIXES)}",
            RuntimeWarning,
            stacklevel=3,
        )


def _file_count(files: int) -> str:
    return "1 file is" if files == 1 else f"{files:,} files are"


def _warn_of_hidden_folders(split: Path) -> None:
    """Warns of hidden folders that hold images: such a name may be that of a class, such as ".net"."""
    with os.scandir(split) as found:
        hidden = [e for e in found if e.name.startswith(".") and is_folder(e)]
    names = sorted(printable(e.name) for e in hidden if any(is_image(x.name) for x in entries_of(Path(e.path))))
    if names:
        warnings.warn(
            f"{printable(split)}: folders whose names begin with a dot are ignored, but these hold images: "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
            RuntimeWarning,
            stacklevel=4,
        )


class _Walk:
    """Walks the class folders of a split and refuses to enter a folder twice, by whatever path."""

    def __init__(self, split: Path, others: dict[str, Path]) -> None:
        self.given, self.split = split, Path(os.path.realpath(split))
        self.others = {name: Path(os.path.realpath(folder)) for name, folder in others.items()}
        self.left_out: Counter[str] = Counter()
        self.entered: dict[tuple[int, int], Path] = {}
        # Folders and link targets of the other splits, to recognise what both splits contain.
        self.foreign: dict[tuple[int, int], Path] = {}
        # Inode numbers, which os.scandir gives without a system call per file; self.inodes in the order of self.files.
        self.inodes, self.foreign_inodes = array("Q"), array("Q")
        self.files: list[Path] = []
        for folder in others.values():
            self.foreign |= _folders_and_links(folder, self.foreign_inodes)
        self.links: list[tuple[Path, Path]] = []  # (link, its class folder)

    def images(self, folder: Path) -> Iterator[Path]:
        pending, class_folder = [folder], folder
        while pending:
            folder = pending.pop()
            self._enter(folder)
            for entry in entries_of(folder):
                if is_image(entry.name) or entry.is_symlink():
                    check_link(entry)
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif not is_image(entry.name):
                    self.left_out[_suffix(entry.name)] += 1
                elif not entry.is_file():
                    kind = kind_of(entry.stat().st_mode)
                    raise ValueError(f"{printable(entry.path)} should be a regular file, got {kind}")
                else:
                    if entry.is_symlink():
                        self.links.append((Path(entry.path), class_folder))
                    else:
                        self.inodes.append(entry.inode())
                        self.files.append(Path(entry.path))
                    yield Path(entry.path)

    def _enter(self, folder: Path) -> None:
        identity, real = _identity(folder), Path(os.path.realpath(folder))
        if real == self.split or real in self.split.parents:
            raise _counted_twice(folder, f"leads to {printable(real)}, which contains it")
        if identity in self.entered:
            raise _counted_twice(folder, f"and {printable(self.entered[identity])} are one folder")
        if identity in self.foreign:
            raise _counted_twice(folder, f"and {printable(self.foreign[identity])}, of another split, are one folder")
        for name, other in self.others.items():
            if real == other or other in real.parents or real in other.parents:
                raise _counted_twice(folder, f"leads to {printable(real)}, a folder of the {name} split or above it")
        self.entered[identity] = folder

    def check_links(self) -> None:
        """Refuses links to images that are counted already; to be called when all folders have been entered."""
        folders: dict[Path, tuple[int, int]] = {}
        linked: dict[tuple[int, int], tuple[Path, Path]] = {}
        for link, class_folder in self.links:
            real, identity = Path(os.path.realpath(link)), _identity(link)
            # Two links of one class to one file are allowed: content-addressed stores keep equal images once.
            first, first_class = linked.setdefault(identity, (link, class_folder))
            if first_class != class_folder:
                raise _counted_twice(link, f"and {printable(first)}, of another class, are one image")
            if identity in self.foreign:
                raise _counted_twice(link, f"and {printable(self.foreign[identity])}, of another split, are one image")
            if any(other in real.parents for other in self.others.values()):
                raise _counted_twice(link, f"leads to {printable(real)}, an image of another split")
            if real.parent not in folders:
                folders[real.parent] = _identity(real.parent)
            if folders[real.parent] in self.foreign:
                raise _counted_twice(
                    link, f"leads into {printable(self.foreign[folders[real.parent]])}, of another split"
                )
            if folders[real.parent] in self.entered and is_image(real.name):
                raise _counted_twice(link, f"leads to {printable(real)}, which is already an image of this split")

    def warn_of_hard_links(self) -> None:
        """Warns of one file in two classes, or in two splits."""
        own, foreign_inodes = (np.frombuffer(found, dtype=np.uint64) for found in (self.inodes, self.foreign_inodes))
        found, counts = np.unique(own, return_counts=True)
        suspects = found[(counts > 1) | np.isin(found, foreign_inodes)]
        if not len(suspects):
            return
        # Files on different devices may share an inode number, so these few are compared by device as well.
        first: dict[tuple[int, int], Path] = {}
        for other in self.others.values():
            for file in _files_with_inodes(other, set(suspects.tolist())):
                first.setdefault(_identity(file), file)
        foreign, duplicates = set(first), []
        for file in (self.files[i] for i in np.flatnonzero(np.isin(own, suspects))):
            identity = _identity(file)
            twin = first.setdefault(identity, file)
            if identity in foreign:
                duplicates.append((file, twin, "split", "a training image is also a test image"))
            elif self._class_of(twin) != self._class_of(file):
                duplicates.append((file, twin, "class", "an image has two labels"))
        if duplicates:
            file, twin, of, why = duplicates[0]
            more = f", one of {len(duplicates):,} such pairs" if len(duplicates) > 1 else ""
            warnings.warn(
                f"{printable(file)} and {printable(twin)}, of another {of}, are hard links of one file{more}: {why}",
                RuntimeWarning,
                stacklevel=4,
            )

    def _class_of(self, file: Path) -> str:
        return file.relative_to(self.given).parts[0]


def _folders_and_links(split: Path, inodes: array) -> dict[tuple[int, int], Path]:
    """The folders and link targets of a split, by identity; the inode numbers of its images are added to ``inodes``."""
    found: dict[tuple[int, int], Path] = {}
    for entry, identity in _entries_below(split):
        if identity is not None:
            found.setdefault(identity, Path(entry.path))
        elif is_image(entry.name):
            inodes.append(entry.inode())
    return found


def _files_with_inodes(split: Path, inodes: set[int]) -> Iterator[Path]:
    """The images of a split whose files have one of these inode numbers."""
    for entry, identity in _entries_below(split):
        if identity is None and is_image(entry.name) and entry.inode() in inodes:
            yield Path(entry.path)


def _entries_below(split: Path) -> Iterator[tuple[os.DirEntry, tuple[int, int] | None]]:
    """The entries of a split, with the identity of each folder and link.

    Other files, of which there may be a million, have None. Folders without read permission are skipped.
    """
    pending, entered = [split], set()
    while pending:
        with contextlib.suppress(PermissionError):
            for entry in entries_of(pending.pop()):
                with contextlib.suppress(OSError):  # a broken link is an error only when this split itself is read
                    if not entry.is_symlink() and not entry.is_dir():
                        yield entry, None
                        continue
                    identity = _identity(entry.path)
                    if entry.is_dir() and identity not in entered:
                        entered.add(identity)
                        pending.append(Path(entry.path))
                    yield entry, identity


def _counted_twice(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{printable(path)} {what}: its images would count twice; remove the link. Links may only point to images "
        "that are not part of the data set otherwise"
    )


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _suffix(name: str) -> str:
    return printable(os.path.splitext(name)[1].lower()) or "without a suffix"


def no_images_message(folder: Path) -> str:
    """The error message for a class folder without images."""
    return f"class folder {printable(folder)} has no image ({', '.join(SUFFIXES)}). {what_is_in(folder)}"
