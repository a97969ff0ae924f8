"""Files that are written whole or not at all, and places that are looked at before hours of work go into them."""

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
# Of earlier versions, which had the number of the process alone: of the files of runs, sets and steps, for others' may
# be called so as well.
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
    """Writes a file atomically: beside it, synced to the disk, then renamed over it.

    follow: a link stays, and what it points to is written; for a name that a person chose. Without, a link is replaced:
    for the names of a run's or a set's own files, behind which somebody else's file may lie. The permissions of a file
    that is there stay. Errors: OSError
    naming the file (a full disk, say); ValueError for a folder, a device or a pipe; the old file stays and no half of
    the new one is left.
    """
    write_together([(Path(path), data)], follow=follow)


def write_together(files: list[tuple[Path, bytes]], *, follow: bool = True) -> None:
    """Writes files of one folder: all beside their places first, so that a full disk changes none, then renamed.

    The last one describes the others: it is removed before the first rename and comes last, so that it never stands
    beside files that are not its own. Errors as :func:`write_bytes` has them.
    """
    current = files[0][0]
    beside: list[Path] = []
    try:
        targets = []
        for path, _ in files:
            current = path
            targets.append(path if not follow and path.is_symlink() else _file_behind(path))
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
        # Two processes that write the same files take turns, so that none of one stands beside those of the other.
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
    """Appends a line of text; on a full disk no half of it stays. Errors: OSError naming the file; a link is one, for
    the file is a run's own."""
    data = (line + "\n").encode()
    try:
        with open(path, "ab", buffering=0, opener=_open_itself) as file:
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
    """The bytes of a file whose length and SHA-256 (hex) are known. Errors name the file and what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    found = path.stat().st_size  # before it is read: another file may be of any size
    data = path.read_bytes() if found == size else b""
    if len(data) != size:
        what = "truncated" if found <= size else "longer than it was written"
        raise ValueError(f"{path} is {what}: {found} bytes, expected {size}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise ValueError(f"{path} was altered: its sha256 is {digest[:16]}..., expected {sha256[:16]}...")
    return data


def check_writable_file(path: str | Path) -> Path:
    """Looks whether a file could be written here, before the work that goes into it; changes nothing.

    Its folder may be missing, if it could be made; a link is followed. Returns the path. Errors: ValueError for a
    folder, a device or a pipe; OSError (PermissionError, ...) for a place that cannot be written; each says where.
    """
    path = Path(path)
    try:
        target = _file_behind(path)
        _probe(target.parent)
    except OSError as error:
        raise _named(error, f"{path} cannot be written") from error
    return path


def check_writable_folder(path: str | Path) -> Path:
    """Looks whether files could be written into this folder, which may be missing if it could be made; changes nothing.

    Returns the path. Errors: ValueError for a file, a device, or a link that leads nowhere; OSError (PermissionError,
    ...) for a place that cannot be written; each says where.
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
    """Makes a folder and those above it, each synced so that it survives a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: yields one beside it to be filled, which then takes its name.

    Errors: FileExistsError for a path with something in it; OSError naming it.
    """
    make_folder(path.parent)
    sweep(path.parent, {path.name})
    beside = temporary_name(path)
    try:
        beside.mkdir()
        yield beside
        sync_folder(beside)
        try:
            os.rename(beside, path)  # over an empty folder, but no other
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(f"{path} holds files already: take another folder") from error
            raise _named(error, f"could not write {path}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """A name beside a file that no other process and no other write uses, and that says whose it is."""
    return path.with_name(f".{_short(path.name)}.{Owner.new()}.tmp")


def sweep(folder: Path, names: set[str] | None = None) -> None:
    """Removes what killed processes left, temporary files and locks: those of these names, or all.

    Only of processes that are known to be gone; of those that cannot be seen from here, after a day.
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
        with suppress(OSError):  # another process may be at it as well
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
    """So that a rename itself survives a power cut; some file systems refuse, and then there is nothing to do."""
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
    """What a file of this ``st_mode`` is, in words."""
    return next((kind for test, kind in _KINDS if test(mode)), "a regular file")


def _file_behind(path: Path) -> Path:
    """Where the bytes of a path go: itself, or what a link points to. Errors: ValueError for what is no file."""
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} should be the name of a file, got one with a zero byte")
    found = _status(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} should be a file, got {kind_of(found.st_mode)}")
    if found is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is write-protected")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _open_itself(path: str, flags: int) -> int:
    """For ``open``: what a link points to is not opened."""
    if os.path.islink(path):
        raise OSError(errno.ELOOP, f"it is a link to {os.readlink(path)}")
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _status(path: Path) -> os.stat_result | None:
    """What is there, behind links; None if nothing is. Errors: OSError for a name that cannot be (too long, a loop)."""
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} should be a path, got one with a zero byte")
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _probe(folder: Path) -> None:
    """Writes a file into the folder, or into the one above that is there, and removes it. Errors: OSError."""
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
        os.write(handle, bytes(4096))  # an empty file fits on a full disk
    finally:
        os.close(handle)
        file.unlink(missing_ok=True)


def _keep_mode(target: Path, temporary: Path) -> None:
    found = None if target.is_symlink() else _status(target)
    if found is not None:
        with suppress(OSError):  # a file system without permissions
            os.chmod(temporary, stat.S_IMODE(found.st_mode))


def _short(name: str) -> str:
    """What of a name stands in that of its temporary, which may be 255 bytes long."""
    return os.fsdecode(os.fsencode(name)[:160])


def _named(error: OSError, what: str) -> OSError:
    """The same error with a message that says what could not be done."""
    return OSError(error.errno, f"{what}: {error.strerror or error}")
