"""The folders of an image data set: which is the training split and which the test, the classes, and their files."""

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

# In lower case, the first one first; "val" is what ImageNet calls the images that everybody tests on.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev"),
}
_SPLIT_NAMES = {name for names in SPLITS.values() for name in names}
# Also "test1", "val2017", "Training set", "seg_train".
_LIKE_A_SPLIT = {
    split: re.compile(rf"(^|[\W_\d])({'|'.join(names)})(set|data|images?)?($|[\W_\d])", re.IGNORECASE)
    for split, names in SPLITS.items()
}
# Nobody calls classes so that all hold the same folders; "tr", "te", "fold_3", "split2".
_SURELY_A_SPLIT = re.compile(r"(tr|trn|te|ts|tst|fold|split|cv)[\W_]*\d*", re.IGNORECASE)
# What systems and programs leave beside people's files, beside names that begin with a dot.
_LITTER = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"}

CLASSES_FILE = "advfeat-classes.json"


@dataclass
class ClassFolder:
    """A class's folder and name.

    Attributes:
        path: The folder.
        name: The class's.
        listed: How many images it was exported with; None where that is not known.
        files: The images that were found in it.
    """

    path: Path
    name: str
    listed: int | None = None
    files: list[Path] = field(default_factory=list)


def class_name(folder: Path) -> str:
    """A folder's name as that of a class: text that can be written down, the same from a Mac as from Linux.

    Args:
        folder: Of a class.
    """
    return unicodedata.normalize("NFC", printable(folder.name))


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of the splits.

    Args:
        root: The folder that holds them, or the class folders.

    Returns:
        "train" and "test" -> folder, as far as they are there; none where the root holds classes.

    Raises:
        FileNotFoundError: For a root that is no folder.
        ValueError: Where two folders have one name but for its case, or both splits are one folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root={printable(root)} is {'not a folder' if root.exists() else 'not there'}")
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
    found: dict[str, Path] = {}  # stays empty for classes, of which one may be called "train", too
    if any(_holds_classes(folder) for folder in named.values()) or not _are_classes(folders):
        for split, names in SPLITS.items():
            folder = next((named[name] for name in names if name in named), None)
            if folder is not None:
                found[split] = folder
    if found:
        if named.keys() >= set(SPLITS["train"]):
            raise ValueError(f"{printable(root)} should have one folder of training images, got train and training")
        _tell_of_images_beside(root, [f for f in folders if f not in named.values()])
    else:
        _check_no_split(root, folders)
        _tell_of_same_folders(root, folders)
    if len(found) == 2:
        train, test = (Path(os.path.realpath(folder)) for folder in found.values())
        if train == test or train in test.parents or test in train.parents:
            raise ValueError(
                f"{printable(found['train'])} and {printable(found['test'])} should be two folders, got {train} and "
                f"{test}: training images would be test images"
            )
    return found


def _are_classes(folders: list[Path]) -> bool:
    """Whether one of the folders has images and a name that is not like "train", "test1" or "val2017"."""
    return any(not _like_a_split(f) and _holds_images(f) for f in folders)


def _like_a_split(folder: Path) -> bool:
    return any(pattern.search(folder.name) for pattern in _LIKE_A_SPLIT.values())


def _check_no_split(root: Path, folders: list[Path]) -> None:
    """Raises ValueError where classes would be what are splits by names that are not known."""
    like = {split: [f for f in folders if pattern.search(f.name)] for split, pattern in _LIKE_A_SPLIT.items()}
    if not all(like.values()):
        return
    either = [folder for found in like.values() for folder in found]
    if len(set(either)) == len(folders) or all(any(map(_holds_classes, found)) for found in like.values()):
        names = ", ".join(sorted({printable(folder.name) for folder in either}))
        raise ValueError(
            f"{printable(root)} should have its splits in the folders train and test (or val), got {names}, which "
            "would be read as classes: rename them, or give links of these names"
        )


def _tell_of_same_folders(root: Path, folders: list[Path]) -> None:
    """Warns of classes that may be splits, by what is in them; ValueError where their names say so, too."""
    same = _folders_of_all(folders)
    # What holds "train" and "test" itself is refused as it is read, and an export says what its classes are.
    if same and not _SPLIT_NAMES.intersection(map(str.lower, same)) and not (root / CLASSES_FILE).is_file():
        names, inside = (_first(printable(name) for name in of) for of in (sorted(f.name for f in folders), same))
        said = f"each of {names} in {printable(root)} holds the same folders with images, {inside}"
        if all(_SURELY_A_SPLIT.fullmatch(folder.name) for folder in folders):
            raise ValueError(
                f"{said}, and would be read as a class: call the splits train and test, give links of these names, or "
                "give one of them as root"
            )
        warnings.warn(
            f"{said}, and is read as a class: if it is a split, and they are the classes, call the splits train and "
            "test, or give one of them as root",
            RuntimeWarning,
            stacklevel=4,
        )


def _folders_of_all(folders: list[Path]) -> list[str]:
    """The names of the folders that all of these have and that hold images, where none has anything else to offer."""
    first: set[str] | None = None
    for folder in folders if len(folders) > 1 else ():
        entries = list(entries_of(folder))
        below = {entry.name for entry in entries if is_folder(entry)}
        if len(below) < 2 or below != (first or below) or any(is_image(entry.name) for entry in entries):
            return []
        first = below
    if not all(_holds_images(folder / name) for folder in folders for name in first or ()):
        return []
    return sorted(first or ())


def _first(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _tell_of_images_beside(root: Path, folders: list[Path]) -> None:
    beside = [f.name for f in folders if not _like_a_split(f) and any(is_image(e.name) for e in entries_of(f))]
    if beside:
        warnings.warn(
            f"{printable(root)} has folders of splits, so the images beside them, in "
            f"{', '.join(map(printable, beside[:3]))}{', ...' if len(beside) > 3 else ''}, are left out",
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
        split: Its folder.

    Returns:
        The classes, sorted by name, or as the list that an export has left there says; without their files.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: For links that lead nowhere, one name twice, and a layout with the splits inside the classes, or
            with one folder too many above them.
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
    """The classes in the order and with the names that were written down with them; None if nothing was."""
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
            raise ValueError("every class should be there once")
        if len(listed) < len(entries) or any(c.path.parent != split for c in listed):
            raise ValueError("every class should have the name of its folder, its own name, and a number of images")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{printable(file)} should be the list of classes of an export: {error}") from error
    there, known = {f.path for f in folders}, {c.path for c in listed}
    for missing in (c.path for c in listed if c.path not in there and c.listed):
        raise FileNotFoundError(f"{printable(missing)} is missing, a class folder in {CLASSES_FILE}")
    for more in sorted(there - known):
        raise ValueError(f"{printable(more)} is no class folder in {printable(file)}: take the file or the folder away")
    return listed


def _check_layout(split: Path, folders: list[ClassFolder]) -> None:
    for folder in folders[:8]:  # one shows it
        below = {entry.name.lower() for entry in entries_of(folder.path) if is_folder(entry)}
        if all(below.intersection(names) for names in SPLITS.values()):
            raise ValueError(
                f"{printable(folder.path)} holds folders of both splits ({', '.join(sorted(below & _SPLIT_NAMES))}), "
                "which would be images of one class: root/<split>/<class> is the order, and root the folder of the "
                "splits"
            )
    if len(folders) == 1:
        entries = list(entries_of(folders[0].path))
        inside = sum(is_folder(entry) for entry in entries)
        if inside > 1 and not any(is_image(entry.name) for entry in entries):
            raise ValueError(
                f"{printable(split)} holds one folder, {folders[0].name}, which holds {inside} folders and no image: "
                f"give that as root if they are the classes. {what_is_in(folders[0].path)}"
            )


def _check_names(folders: list[ClassFolder]) -> None:
    seen: dict[str, str] = {}
    for folder in folders:
        if folder.name in seen.values():
            raise ValueError(f"{printable(folder.path.parent)} has two class folders that both read {folder.name!r}")
        other = seen.setdefault(folder.name.casefold(), folder.name)
        if other != folder.name and len(other) > 1:  # "a" and "A" are classes of letters
            warnings.warn(
                f"{printable(folder.path.parent)}: class folders {other!r} and {folder.name!r} differ only in case; "
                "they are two classes here and one folder on macOS and Windows",
                RuntimeWarning,
                stacklevel=4,
            )


def entries_of(folder: Path) -> Iterator[os.DirEntry]:
    """What a folder holds, but for hidden names and what systems leave there, sorted by name."""
    with os.scandir(folder) as found:
        names = [e for e in found if not e.name.startswith(".") and e.name not in _LITTER]
    yield from sorted(names, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or leads to one. The disk is asked about links alone: there may be a million files."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def check_link(entry: os.DirEntry) -> None:
    """Raises ValueError for a link that leads nowhere, or to itself."""
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
    """Looks whether two splits have the same class folders: else numbers would mean other classes.

    Args:
        split: The folder of one.
        classes: Its classes.
        other: The folder of the other.

    Raises:
        ValueError: Naming those that are in one alone.
    """
    names, others = {c.path.name for c in classes}, {e.name for e in entries_of(other) if is_folder(e)}
    if names != others:
        difference = sorted(printable(name) for name in names ^ others)
        raise ValueError(
            f"{printable(split)} and {printable(other)} should have the same class folders where class_ranges counts "
            f"them, but {', '.join(difference[:3])}{', ...' if len(difference) > 3 else ''} "
            f"{'is' if len(difference) == 1 else 'are'} in one alone"
        )
