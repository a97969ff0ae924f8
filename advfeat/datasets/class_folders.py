"""The folder layout of an image data set: finds the folders of the training and test split and of the classes."""

from __future__ import annotations

import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from advfeat._names import printable
from advfeat.datasets.image_file import SUFFIXES
from advfeat.datasets.reading import open_regular, what_is_in

# In lower case, in order of preference. "val" is included because ImageNet is usually tested on its validation images.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev"),
}
_SPLIT_NAMES = {name for names in SPLITS.values() for name in names}
# Names such as "test1", "val2017", "Training set", "seg_train".
_SPLIT_LIKE = {
    split: re.compile(rf"(^|[\W_\d])({'|'.join(names)})(set|data|images?)?($|[\W_\d])", re.IGNORECASE)
    for split, names in SPLITS.items()
}
# Names such as "tr", "te", "fold_3", "split2": not those of classes if all these folders hold the same subfolders.
_SPLIT_NOT_CLASS = re.compile(r"(tr|trn|te|ts|tst|fold|split|cv)[\W_]*\d*", re.IGNORECASE)
# Created by operating systems and other programs, like names that begin with a dot.
_IGNORED = {
    "__MACOSX",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
}

CLASSES_FILE = "advfeat-classes.json"


@dataclass
class ClassFolder:
    """A class's folder and name.

    Attributes:
        path: The folder.
        name: The name of the class.
        listed: The number of images with which it was exported; None if unknown.
        files: The images found in it.
    """

    path: Path
    name: str
    listed: int | None = None
    files: list[Path] = field(default_factory=list)


def class_name(folder: Path) -> str:
    """The name of the class in a folder: printable, and in the same Unicode form on macOS and Linux.

    Args:
        folder: The class folder.
    """
    return unicodedata.normalize("NFC", printable(folder.name))


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of the splits.

    Args:
        root: The folder that holds the splits, or the class folders.

    Returns:
        A dict from "train" and "test" to the folders that exist; empty if the root holds class folders.

    Raises:
        FileNotFoundError: If the root is not a folder.
        ValueError: If the names of two split folders differ only in case, the splits are one folder or one contains the
            other, or folders that would be read as classes seem to be splits.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root={printable(root)} {'is not a folder' if root.exists() else 'does not exist'}")
    folders: list[Path] = []
    named: dict[str, Path] = {}
    for entry in entries_of(root):
        split_name = entry.name.lower() in _SPLIT_NAMES
        if split_name:
            check_link(entry)
        if is_folder(entry):
            folders.append(Path(entry.path))
            if split_name:
                if entry.name.lower() in named:
                    raise ValueError(
                        f"{printable(root)} should have one folder {entry.name.lower()}, got "
                        f"{named[entry.name.lower()].name} and {entry.name}"
                    )
                named[entry.name.lower()] = Path(entry.path)
    found: dict[str, Path] = {}  # stays empty if the folders are classes; one of those may be called "train"
    if any(_holds_classes(folder) for folder in named.values()) or not _include_a_class(folders):
        for split, names in SPLITS.items():
            folder = next((named[name] for name in names if name in named), None)
            if folder is not None:
                found[split] = folder
    if found:
        if named.keys() >= set(SPLITS["train"]):
            raise ValueError(f"{printable(root)} should have one folder of training images, got train and training")
        _warn_of_ignored_images(root, [f for f in folders if f not in named.values()])
    else:
        _check_no_split_among(root, folders)
        _warn_of_unrecognised_splits(root, folders)
    if len(found) == 2:
        train, test = (Path(os.path.realpath(folder)) for folder in found.values())
        if train == test or train in test.parents or test in train.parents:
            raise ValueError(
                f"{printable(found['train'])} and {printable(found['test'])} should be two folders, got {train} and "
                f"{test}: training images would be test images"
            )
    return found


def _include_a_class(folders: list[Path]) -> bool:
    """Whether a folder whose name does not look like a split's holds images."""
    return any(not _looks_like_split(f) and _holds_images(f) for f in folders)


def _looks_like_split(folder: Path) -> bool:
    return any(pattern.search(folder.name) for pattern in _SPLIT_LIKE.values())


def _check_no_split_among(root: Path, folders: list[Path]) -> None:
    """Raises ValueError if splits with unsupported names, such as "train1" and "test1", would be read as classes."""
    candidates = {split: [f for f in folders if pattern.search(f.name)] for split, pattern in _SPLIT_LIKE.items()}
    if not all(candidates.values()):
        return
    split_like = {folder for found in candidates.values() for folder in found}
    if len(split_like) == len(folders) or all(any(map(_holds_classes, found)) for found in candidates.values()):
        names = ", ".join(sorted(printable(folder.name) for folder in split_like))
        raise ValueError(
            f"{printable(root)} should have its splits in the folders train and test (or val), got {names}, which "
            "would be read as classes: rename them, or add links with these names"
        )


def _warn_of_unrecognised_splits(root: Path, folders: list[Path]) -> None:
    """Warns if all class folders hold the same subfolders, like splits; raises ValueError if their names fit, too."""
    same = _common_subfolders(folders)
    # Classes that hold "train" and "test" are refused by _check_layout; an export lists its classes.
    if same and not _SPLIT_NAMES.intersection(map(str.lower, same)) and not (root / CLASSES_FILE).is_file():
        names = _shortened(printable(name) for name in sorted(f.name for f in folders))
        inside = _shortened(printable(name) for name in same)
        finding = f"{names} in {printable(root)} all hold the same folders of images, {inside}"
        if all(_SPLIT_NOT_CLASS.fullmatch(folder.name) for folder in folders):
            raise ValueError(
                f"{finding}, and would be read as classes: if they are splits, name them train and test, add links "
                "with these names, or give one of them as root"
            )
        warnings.warn(
            f"{finding}, and are read as classes: if they are splits, name them train and test, or give one of them as "
            "root",
            RuntimeWarning,
            stacklevel=4,
        )


def _common_subfolders(folders: list[Path]) -> list[str]:
    """The names of the subfolders with images, if they are the same in all folders and no images lie beside them."""
    common: set[str] | None = None
    for folder in folders if len(folders) > 1 else ():
        entries = list(entries_of(folder))
        below = {entry.name for entry in entries if is_folder(entry)}
        if len(below) < 2 or below != (common or below) or any(is_image(entry.name) for entry in entries):
            return []
        common = below
    if not all(_holds_images(folder / name) for folder in folders for name in common or ()):
        return []
    return sorted(common or ())


def _shortened(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _warn_of_ignored_images(root: Path, folders: list[Path]) -> None:
    ignored = [f.name for f in folders if not _looks_like_split(f) and any(is_image(e.name) for e in entries_of(f))]
    if ignored:
        warnings.warn(
            f"{printable(root)} has split folders, so the images in the folders beside them are left out: "
            f"{_shortened(map(printable, ignored))}",
            RuntimeWarning,
            stacklevel=4,
        )


def _holds_classes(split: Path) -> bool:
    return any(is_folder(entry) and _holds_images(Path(entry.path)) for entry in entries_of(split))


def _holds_images(folder: Path) -> bool:
    return any(is_image(name) for _, _, names in os.walk(folder) for name in names)


def class_folders(split: Path) -> list[ClassFolder]:
    """The classes of a split.

    Args:
        split: The folder of the split.

    Returns:
        The classes, sorted by name, or in the order of the list that an export wrote; ``files`` is empty.

    Raises:
        FileNotFoundError: If there are no classes.
        ValueError: If a link is broken, two classes have one name, the splits lie inside the classes, or the only
            folder seems to hold the class folders.
    """
    folders = []
    for entry in entries_of(split):
        check_link(entry)
        if entry.is_dir():
            folders.append(ClassFolder(Path(entry.path), class_name(Path(entry.path))))
    folders.sort(key=lambda folder: folder.name)
    listed = _listed(split, folders)
    if not folders and not listed:
        raise FileNotFoundError(f"{printable(split)} should hold a folder for each class. {what_is_in(split)}")
    _check_layout(split, folders)
    _check_names(folders)
    return folders if listed is None else listed


def _listed(split: Path, folders: list[ClassFolder]) -> list[ClassFolder] | None:
    """The classes in the order and with the names that an export listed; None without such a list."""
    file = split / CLASSES_FILE
    try:
        with open_regular(file) as stream:
            entries = json.loads(stream.read(1 << 26))
        listed = [
            ClassFolder(split / entry["folder"], entry["name"], entry["images"])
            for entry in entries
            if {type(entry[key]) for key in ("folder", "name")} == {str} and type(entry["images"]) is int
        ]
        if len({c.name for c in listed}) < len(listed) or len({c.path for c in listed}) < len(listed):
            raise ValueError("every class should be listed once")
        if len(listed) < len(entries) or any(c.path.parent != split for c in listed):
            raise ValueError("every class should have a folder, a name and a number of images")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{printable(file)} should be the list of classes of an export: {error}") from error
    existing, known = {f.path for f in folders}, {c.path for c in listed}
    for missing in (c.path for c in listed if c.path not in existing and c.listed):
        raise FileNotFoundError(f"{printable(missing)}, a class folder in {CLASSES_FILE}, is missing")
    for extra in sorted(existing - known):
        raise ValueError(
            f"{printable(extra)} is not a class folder in {printable(file)}: remove the file or the folder"
        )
    return listed


def _check_layout(split: Path, folders: list[ClassFolder]) -> None:
    for folder in folders[:8]:  # the layout shows in any of them
        below = {entry.name.lower() for entry in entries_of(folder.path) if is_folder(entry)}
        if all(below.intersection(names) for names in SPLITS.values()):
            raise ValueError(
                f"{printable(folder.path)} holds folders of both splits ({', '.join(sorted(below & _SPLIT_NAMES))}), "
                "whose images would be read as one class: the layout should be root/<split>/<class>, with root the "
                "folder of the splits"
            )
    if len(folders) == 1:
        entries = list(entries_of(folders[0].path))
        inside = sum(is_folder(entry) for entry in entries)
        if inside > 1 and not any(is_image(entry.name) for entry in entries):
            raise ValueError(
                f"{printable(split)} holds one folder, {folders[0].name}, which holds {inside} folders and no image: "
                f"if these are the classes, give that folder as root. {what_is_in(folders[0].path)}"
            )


def _check_names(folders: list[ClassFolder]) -> None:
    seen: dict[str, str] = {}
    for folder in folders:
        if folder.name in seen.values():
            raise ValueError(
                f"{printable(folder.path.parent)} has two class folders named {folder.name!r} after normalisation"
            )
        other = seen.setdefault(folder.name.casefold(), folder.name)
        if other != folder.name and len(other) > 1:  # "a" and "A" may be classes of letters
            warnings.warn(
                f"{printable(folder.path.parent)}: class folders {other!r} and {folder.name!r} differ only in case; "
                "they are two classes here, but would be one folder on macOS and Windows",
                RuntimeWarning,
                stacklevel=4,
            )


def entries_of(folder: Path) -> Iterator[os.DirEntry]:
    """The entries of a folder, sorted by name, without hidden ones and those of the operating system."""
    with os.scandir(folder) as found:
        names = [e for e in found if not e.name.startswith(".") and e.name not in _IGNORED]
    yield from sorted(names, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one. Only links need a system call: there may be a million files."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def check_link(entry: os.DirEntry) -> None:
    """Raises ValueError for a broken link, or a link to itself."""
    if not entry.is_symlink():
        return
    try:
        os.stat(entry.path)
    except PermissionError:
        raise
    except OSError as error:
        raise ValueError(
            f"{printable(entry.path)} is a link to {printable(os.readlink(entry.path))}, which cannot be followed: "
            f"{error.strerror}"
        ) from None


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def check_same_folders(split: Path, classes: list[ClassFolder], other: Path) -> None:
    """Checks that two splits have the same class folders; otherwise class numbers would mean different classes.

    Args:
        split: The folder of one split.
        classes: Its classes.
        other: The folder of the other split.

    Raises:
        ValueError: If a class folder is only in one of them; the message names it.
    """
    names, others = {c.path.name for c in classes}, {e.name for e in entries_of(other) if is_folder(e)}
    if names != others:
        difference = sorted(printable(name) for name in names ^ others)
        raise ValueError(
            f"{printable(split)} and {printable(other)} should have the same class folders, since class_ranges refers "
            f"to them by position, but only one of them has {_shortened(difference)}"
        )
