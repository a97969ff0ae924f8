"""Atomic file writes, and checks that a path is writable, to be made before hours of work."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from advfeat._locks import Owner, hold

_TEMPORARY = re.compile(rf"\.(?P<name>.+)\.(?P<owner>{Owner.PATTERN})\.(tmp|lock)", re.DOTALL)
# Temporary files of earlier versions, whose names hold only a process number. Limited to the files of runs, data sets
# and steps, since other programs may use such names.
_OWN = r"(model|config|manifest|checkpoint|step|outcome)\.json|metrics\.jsonl|(model|checkpoint-\d+|shard-\d+)\.\w+"
_FORMERLY = re.compile(rf"\.(?P<name>{_OWN})\.\d+\.tmp")
_PROBE = "advfeat-probe"
_DAY = 24 * 3600.0
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def write_bytes(path: str | Path, data: bytes, *, follow: bool = True) -> None:
    """Writes a file atomically: next to its place, synced to the disk, then renamed over it.

    The permissions of an existing file are kept. After an error the old file is unchanged, and no part of the new one
    is left.

    Args:
        path: the file.
        data: its contents.
        follow: whether to write to the target of a link, as for a path that the user chose. Otherwise a link is
            replaced, as for the files of a run or a data set, so that no file elsewhere is overwritten.

    Raises:
        OSError: the file cannot be written (a full disk, say); the message names it.
        ValueError: the path is a folder, a device or a pipe.
    """
    write_together([(Path(path), data)], follow=follow)


def write_together(files: list[tuple[Path, bytes]], *, follow: bool = True) -> None:
    """Writes several files of one folder, so that a full disk changes none of them.

    All are first written next to their places, then renamed. The last file describes the others. It is removed before
    the first rename and renamed last, so that it never stands beside files that do not belong to it.

    Args:
        files: paths and contents.
        follow: as for :func:`write_bytes`.

    Raises:
        OSError: as for :func:`write_bytes`.
        ValueError: as for :func:`write_bytes`.
    """
    current = files[0][0]
    beside: list[Path] = []
    try:
        targets = []
        for path, _ in files:
            current = path
            targets.append(path if not follow and path.is_symlink() else _resolved_file(path))
            make_folder(targets[-1].parent)
            beside.append(temporary_name(targets[-1]))
        sweep(targets[0].parent, {target.name for target in targets})
        for (path, data), target, temporary in zip(files, targets, beside, strict=True):
            current = path
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _keep_mode(target, temporary)
        # Two processes that write the same files take turns, so that their files never mix.
        with hold(targets[-1].parent, "write") if len(files) > 1 else nullcontext():
            if len(files) > 1:
                targets[-1].unlink(missing_ok=True)
            for (path, _), target, temporary in zip(files, targets, beside, strict=True):
                current = path
                os.replace(temporary, target)
    except OSError as error:
        raise _named(error, f"could not write {current}") from error
    finally:
        for temporary in beside:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    for folder in {target.parent for target in targets}:
        sync_folder(folder)


def append_line(path: Path, line: str) -> None:
    """Appends a line of text; on a full disk no part of it stays.

    Args:
        path: the file.
        line: the text, without the newline.

    Raises:
        OSError: the file cannot be written, or is a link, since it belongs to a run; the message names it.
    """
    data = (line + "\n").encode()
    try:
        with open(path, "ab", buffering=0, opener=_open_without_following) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise _named(error, f"could not write {path}") from error


def read_checked(path: Path, size: int, sha256: str) -> bytes:
    """The bytes of a file whose length and SHA-256 are known.

    Args:
        path: the file.
        size: its length in bytes.
        sha256: its SHA-256 in hex.

    Returns:
        The bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was truncated, extended or altered; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    found = path.stat().st_size  # before reading: a wrong file may have any size
    data = path.read_bytes() if found == size else b""
    if len(data) != size:
        what = "truncated" if found <= size else "longer than when it was written"
        raise ValueError(f"{path} is {what}: {found} bytes, expected {size}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise ValueError(f"{path} was altered: its sha256 is {digest[:16]}..., expected {sha256[:16]}...")
    return data


def check_writable_file(path: str | Path) -> Path:
    """Checks whether a file could be written, before the work whose result it will hold; leaves nothing behind.

    Its folder may be missing if it can be created; a link is followed.

    Args:
        path: the file.

    Returns:
        The path.

    Raises:
        ValueError: the path is a folder, a device or a pipe.
        OSError: the place cannot be written (PermissionError, ...); the message names it.
    """
    path = Path(path)
    try:
        target = _resolved_file(path)
        _probe(target.parent)
    except OSError as error:
        raise _named(error, f"{path} cannot be written") from error
    return path


def check_writable_folder(path: str | Path) -> Path:
    """Checks whether files could be written into a folder, which may be missing if it can be created; changes nothing.

    Args:
        path: the folder.

    Returns:
        The path.

    Raises:
        ValueError: the path is a file, a device, or a dangling link.
        OSError: the place cannot be written (PermissionError, ...); the message names it.
    """
    path = Path(path)
    try:
        found = _status(path)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            raise ValueError(f"{path} should be a folder, got {kind_of(found.st_mode)}")
        if found is None and path.is_symlink():
            raise ValueError(f"{path} should be a folder, got a link to {os.readlink(path)}, which does not exist")
        _probe(path)
    except OSError as error:
        raise _named(error, f"{path} cannot be written") from error
    return path


def make_folder(path: Path) -> None:
    """Creates a folder and its parents, each synced so that it survives a power failure.

    Args:
        path: the folder.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears completely or not at all.

    Args:
        path: the folder.

    Yields:
        A temporary folder beside it to be filled, which is then renamed to ``path``.

    Raises:
        FileExistsError: ``path`` is not empty.
        OSError: it cannot be written; the message names it.
    """
    make_folder(path.parent)
    sweep(path.parent, {path.name})
    beside = temporary_name(path)
    try:
        beside.mkdir()
        yield beside
        sync_folder(beside)
        try:
            os.rename(beside, path)  # replaces an empty folder, but no other
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(f"{path} holds files already: take another folder") from error
            raise _named(error, f"could not write {path}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """A name beside a file that no other process or write uses, and that identifies its owner.

    Args:
        path: the file.

    Returns:
        The path of the temporary file.
    """
    return path.with_name(f".{_short(path.name)}.{Owner.new()}.tmp")


def sweep(folder: Path, names: set[str] | None = None) -> None:
    """Removes temporary files and locks that killed processes left behind.

    Files of processes known to be gone are removed at once; those of processes that cannot be checked from here after a
    day.

    Args:
        folder: the folder.
        names: the files whose leftovers to remove; None for all.
    """
    names = names if names is None else {_short(name) for name in names}
    try:
        entries = [entry for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return
    for entry in entries:
        match = _TEMPORARY.fullmatch(entry.name) or _FORMERLY.fullmatch(entry.name)
        if match is None or (names is not None and match["name"] not in names):
            continue
        with suppress(OSError):  # another process may be sweeping too
            owner = Owner.parse(match["owner"]) if match.re is _TEMPORARY else None
            if owner is None and not entry.is_file(follow_symlinks=False):
                continue
            if owner and owner.is_near:
                stale = owner.is_gone()
            else:
                stale = entry.stat(follow_symlinks=False).st_mtime < time.time() - _DAY
            if stale and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif stale:
                os.unlink(entry.path)


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that a rename survives a power failure; a refusal by the file system is ignored.

    Args:
        folder: the folder.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def kind_of(mode: int) -> str:
    """The kind of a file in words.

    Args:
        mode: its ``st_mode``.

    Returns:
        Such as "a folder" or "a regular file".
    """
    return next((kind for test, kind in _KINDS if test(mode)), "a regular file")


def _resolved_file(path: Path) -> Path:
    """The path with links resolved; raises ValueError if it exists and is not a file."""
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} should be the name of a file, got one with a zero byte")
    found = _status(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} should be a file, got {kind_of(found.st_mode)}")
    if found is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is write-protected")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _open_without_following(path: str, flags: int) -> int:
    """An opener for ``open`` that does not follow links."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, f"it is a link to {os.readlink(path)}")
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _status(path: Path) -> os.stat_result | None:
    """The status, following links; None if nothing exists. Raises OSError for an invalid path (too long, a loop)."""
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} should be a path, got one with a zero byte")
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _probe(folder: Path) -> None:
    """Writes a file into the folder or its nearest existing parent, and removes it; raises OSError."""
    folder = Path(os.path.abspath(folder))
    missing: list[str] = []
    while not os.path.lexists(folder):
        missing.append(folder.name)
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder")
    if missing and max(len(os.fsencode(name)) for name in missing) > os.pathconf(folder, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    sweep(folder, {_PROBE})
    file = temporary_name(folder / _PROBE)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, bytes(4096))  # an empty file would fit on a full disk
    finally:
        os.close(handle)
        file.unlink(missing_ok=True)


def _keep_mode(target: Path, temporary: Path) -> None:
    found = None if target.is_symlink() else _status(target)
    if found is not None:
        with suppress(OSError):  # the file system has no permissions
            os.chmod(temporary, stat.S_IMODE(found.st_mode))


def _short(name: str) -> str:
    """The beginning of a name, short enough that the name of its temporary file stays within 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:160])


def _named(error: OSError, what: str) -> OSError:
    """The same error with a message that says what failed."""
    return OSError(error.errno, f"{what}: {error.strerror or error}")
