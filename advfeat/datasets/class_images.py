"""The images in class folders: which files count, which are left out, and which links are followed."""

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

    Links to files and folders are followed, but no image counts twice: a link to a
    folder above the split, to one that is part of it anyway, or into another split is refused, as is a link to an
    image of these, or to one that another class or split links to as well. Hard links of one file in two classes or
    splits, which programs make that look for equal files, are told in a RuntimeWarning. Folders and files whose names
    begin with a dot are passed over.

    Args:
        split: The folder of the split.
        classes: Its classes, whose ``files`` are filled in.
        others: The folders of the other splits, by name.

    Warns:
        RuntimeWarning: For files that are left out, and for hard links as above.

    Raises:
        ValueError: For such links, links that lead nowhere, and what has the name of an image and is no regular file.
        OSError: For a folder that cannot be read.
    """
    walk = _Walk(split, others)
    for folder in classes:
        if folder.path.is_dir():
            folder.files = sorted(walk.images(folder.path), key=lambda path: path.parts)  # not by text: "a-b" < "a/b"
            if folder.listed is not None and len(folder.files) < folder.listed:
                raise ValueError(
                    f"{printable(folder.path)} holds {len(folder.files):,} of the {folder.listed:,} images that it was "
                    f"exported with: copy it again, or correct the number in {CLASSES_FILE}"
                )
    walk.check_links()
    walk.tell_of_hard_links()
    walk.left_out.update(_suffix(e.name) for e in entries_of(split) if is_image(e.name) and not e.is_dir())
    _tell_of_hidden(split)
    if walk.left_out:
        most_first = sorted(walk.left_out.items(), key=lambda kind: (-kind[1], kind[0]))
        kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in most_first)
        warnings.warn(
            f"{printable(split)}: {_counted(walk.left_out.total())} left out ({kinds}): images are the files in "
            f"class folders whose names end in {', '.join(SUFFIXES)}",
            RuntimeWarning,
            stacklevel=3,
        )


def _counted(files: int) -> str:
    return "1 file is" if files == 1 else f"{files:,} files are"


def _tell_of_hidden(split: Path) -> None:
    """A name that begins with a dot is hidden on purpose, or is that of a class."""
    with os.scandir(split) as found:
        hidden = [e for e in found if e.name.startswith(".") and is_folder(e)]
    names = sorted(printable(e.name) for e in hidden if any(is_image(x.name) for x in entries_of(Path(e.path))))
    if names:
        warnings.warn(
            f"{printable(split)}: folders whose names begin with a dot are passed over, and hold images here: "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
            RuntimeWarning,
            stacklevel=4,
        )


class _Walk:
    """The files below class folders, every folder entered once, by whatever path it is reached."""

    def __init__(self, split: Path, others: dict[str, Path]) -> None:
        self.given, self.split = split, Path(os.path.realpath(split))
        self.others = {name: Path(os.path.realpath(folder)) for name, folder in others.items()}
        self.left_out: Counter[str] = Counter()
        self.entered: dict[tuple[int, int], Path] = {}
        # Folders and images may be links: those of the other split tell when both have one of the same images.
        self.foreign: dict[tuple[int, int], Path] = {}
        # Numbers of files, which a folder's list has without a look at each; by place for those of this split.
        self.numbers, self.foreign_numbers = array("Q"), array("Q")
        self.files: list[Path] = []
        for folder in others.values():
            self.foreign |= _folders_and_links(folder, self.foreign_numbers)
        self.links: list[tuple[Path, Path]] = []  # and the class folder of each

    def images(self, folder: Path) -> Iterator[Path]:
        waiting, of_class = [folder], folder
        while waiting:
            folder = waiting.pop()
            self._enter(folder)
            for entry in entries_of(folder):
                if is_image(entry.name) or entry.is_symlink():
                    check_link(entry)
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif not is_image(entry.name):
                    self.left_out[_suffix(entry.name)] += 1
                elif not entry.is_file():
                    kind = kind_of(entry.stat().st_mode)
                    raise ValueError(f"{printable(entry.path)} should be a regular file, got {kind}")
                else:
                    if entry.is_symlink():
                        self.links.append((Path(entry.path), of_class))
                    else:
                        self.numbers.append(entry.inode())
                        self.files.append(Path(entry.path))
                    yield Path(entry.path)

    def _enter(self, folder: Path) -> None:
        identity, real = _identity(folder), Path(os.path.realpath(folder))
        if real == self.split or real in self.split.parents:
            raise _twice(folder, f"leads to {printable(real)}, which holds it")
        if identity in self.entered:
            raise _twice(folder, f"and {printable(self.entered[identity])} are one folder")
        if identity in self.foreign:
            raise _twice(folder, f"and {printable(self.foreign[identity])}, of another split, are one folder")
        for name, other in self.others.items():
            if real == other or other in real.parents or real in other.parents:
                raise _twice(folder, f"leads to {printable(real)}, a folder of the {name} split or above it")
        self.entered[identity] = folder

    def check_links(self) -> None:
        """Refuses links to images that count already: known only when all folders were entered."""
        folders: dict[Path, tuple[int, int]] = {}
        linked: dict[tuple[int, int], tuple[Path, Path]] = {}
        for link, of_class in self.links:
            real, identity = Path(os.path.realpath(link)), _identity(link)
            # Stores that name files by their hash keep equal images once: those of one class are meant.
            first, of_first = linked.setdefault(identity, (link, of_class))
            if of_first != of_class:
                raise _twice(link, f"and {printable(first)}, of another class, are one image")
            if identity in self.foreign:
                raise _twice(link, f"and {printable(self.foreign[identity])}, of another split, are one image")
            if any(other in real.parents for other in self.others.values()):
                raise _twice(link, f"leads to {printable(real)}, an image of another split")
            if real.parent not in folders:
                folders[real.parent] = _identity(real.parent)
            if folders[real.parent] in self.foreign:
                raise _twice(link, f"leads into {printable(self.foreign[folders[real.parent]])}, of another split")
            if folders[real.parent] in self.entered and is_image(real.name):
                raise _twice(link, f"leads to {printable(real)}, an image of this split anyway")

    def tell_of_hard_links(self) -> None:
        """Warns of one file in two classes, or in two splits."""
        own, theirs = (np.frombuffer(numbers, dtype=np.uint64) for numbers in (self.numbers, self.foreign_numbers))
        found, counts = np.unique(own, return_counts=True)
        suspects = found[(counts > 1) | np.isin(found, theirs)]
        if not len(suspects):
            return
        # A number is of one disk: whether it is one file is asked of the few that share it.
        first: dict[tuple[int, int], Path] = {}
        for other in self.others.values():
            for file in _files_numbered(other, set(suspects.tolist())):
                first.setdefault(_identity(file), file)
        foreign, told = set(first), []
        for file in (self.files[i] for i in np.flatnonzero(np.isin(own, suspects))):
            identity = _identity(file)
            twin = first.setdefault(identity, file)
            if identity in foreign:
                told.append((file, twin, "split", "an image is tested on that was learned"))
            elif self._class_of(twin) != self._class_of(file):
                told.append((file, twin, "class", "an image has two labels"))
        if told:
            file, twin, of, why = told[0]
            more = f", one of {len(told):,} such pairs" if len(told) > 1 else ""
            warnings.warn(
                f"{printable(file)} and {printable(twin)}, of another {of}, are hard links of one file{more}: {why}",
                RuntimeWarning,
                stacklevel=4,
            )

    def _class_of(self, file: Path) -> str:
        return file.relative_to(self.given).parts[0]


def _folders_and_links(split: Path, numbers: array) -> dict[tuple[int, int], Path]:
    """The folders of a split, and what its links lead to. numbers: gets those of its images' files."""
    found: dict[tuple[int, int], Path] = {}
    for entry, identity in _entries_below(split):
        if identity is not None:
            found.setdefault(identity, Path(entry.path))
        elif is_image(entry.name):
            numbers.append(entry.inode())
    return found


def _files_numbered(split: Path, numbers: set[int]) -> Iterator[Path]:
    """The images of a split whose files have one of these numbers."""
    for entry, identity in _entries_below(split):
        if identity is None and is_image(entry.name) and entry.inode() in numbers:
            yield Path(entry.path)


def _entries_below(split: Path) -> Iterator[tuple[os.DirEntry, tuple[int, int] | None]]:
    """The entries of a split, with the identity of each folder and link.

    Only these two are looked up on the disk. Folders without read permission are skipped.
    """
    waiting, entered = [split], set()
    while waiting:
        with contextlib.suppress(PermissionError):
            for entry in entries_of(waiting.pop()):
                with contextlib.suppress(OSError):  # a link that leads nowhere is told when the split is read
                    if not entry.is_symlink() and not entry.is_dir():
                        yield entry, None
                        continue
                    identity = _identity(entry.path)
                    if entry.is_dir() and identity not in entered:
                        entered.add(identity)
                        waiting.append(Path(entry.path))
                    yield entry, identity


def _twice(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{printable(path)} {what}: its images would count twice. Links are followed once, to images from elsewhere; "
        "remove the link"
    )


def _identity(path: str | Path) -> tuple[int, int]:
    of = os.stat(path)
    return of.st_dev, of.st_ino


def _suffix(name: str) -> str:
    return printable(os.path.splitext(name)[1].lower()) or "without a suffix"


def images_wanted(folder: Path) -> str:
    """What a class folder without images is told."""
    return f"class folder {printable(folder)} has no image ({', '.join(SUFFIXES)}). {what_is_in(folder)}"
