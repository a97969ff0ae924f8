"""Locks on folders that hold between processes, containers and machines that share a file system.

A lock is a file that only its owner writes, ``.NAME.OWNER.lock``. A process that wants the lock creates its own file
and then looks for others: if there is one, it removes its own and tries again later. Two processes that arrive at once
may both step back, but never both proceed, and a file whose owner is gone can be removed by anyone, since no other
owner has that name. The file system only has to show a newly created file to every later reader; no flock
is needed, which NFS may lack, restrict to one machine, or share between containers that cannot see each other.

An owner is gone if no process with its number and start time exists. From another machine or process namespace that
cannot be checked: there it is gone if its file was not touched for two minutes (living owners touch it every ten
seconds), measured by the waiting process's own clock, so that clocks need not agree.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

_BEAT = 10.0  # seconds between two heartbeats
_PATIENCE = 120.0  # seconds without a heartbeat; NFS may show a change a minute late
_POLL = 0.2


def place() -> str:
    """An identifier of the scope in which process numbers are unique: one boot of one kernel and one process namespace.

    Returns:
        8 hex digits.
    """
    return _place()


@functools.cache
def _place() -> str:
    def read(path: str, look: Callable[[str], str]) -> str:
        try:
            return look(path)
        except OSError:  # not Linux
            return ""

    boot = read("/proc/sys/kernel/random/boot_id", lambda path: Path(path).read_text().strip())
    namespace = read("/proc/self/ns/pid", os.readlink)
    # Containers on one machine share the boot id; so may virtual machines resumed from one image, but not the host
    # name.
    return hashlib.sha256(f"{boot or uuid.getnode()} {namespace} {socket.gethostname()}".encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; 0 for one that has ended but was not reaped, None for unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


@dataclass(frozen=True)
class Owner:
    """The process that made a file, as encoded in the file's name.

    Attributes:
        place: see :func:`place`.
        pid: the process number.
        started: its start time, in ticks since boot.
        token: random hex digits that make the name unique.
    """

    place: str
    pid: int
    started: int
    token: str

    PATTERN = r"[0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}"

    @classmethod
    def new(cls) -> Owner:
        """This process, with a new unique token.

        Returns:
            The owner.
        """
        pid = os.getpid()
        return cls(place(), pid, _started(pid) or 0, secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> Owner:
        """The owner that a text encodes.

        Args:
            text: as from ``str(owner)``.

        Returns:
            The owner.
        """
        where, pid, started, token = text.split("-")
        return cls(where, int(pid), int(started), token)

    def __str__(self) -> str:
        return f"{self.place}-{self.pid}-{self.started}-{self.token}"

    @property
    def is_near(self) -> bool:
        """Whether its process can be seen from here."""
        return self.place == place()

    def is_gone(self) -> bool:
        """Whether it is known to have ended.

        Returns:
            False also for a process that cannot be seen from here.
        """
        if not self.is_near:
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # a process of another user
            pass
        started = _started(self.pid)
        return started is not None and self.started != 0 and started != self.started


class Busy(OSError):
    """Another process is working where this one should not wait."""


class LostLock(OSError):
    """Another process took over the lock, or the folder is gone."""


class Lock:
    """One lock of a folder. Use :func:`hold`, or call :meth:`acquire` repeatedly: each call checks for heartbeats.

    Args:
        folder: created if it is missing; in that case release() removes it if it is empty.
        name: distinguishes several locks in one folder.
    """

    def __init__(self, folder: str | Path, name: str = "work") -> None:
        self.folder, self.name = Path(folder).absolute(), name
        self._pattern = re.compile(rf"\.{re.escape(name)}\.({Owner.PATTERN})\.lock")
        self._mine: Path | None = None
        self._process = 0
        self._made: list[Path] = []
        self._stop = threading.Event()
        self._seen: dict[str, _Heartbeat] = {}

    def acquire(self) -> bool:
        """Takes the lock if it is free.

        Returns:
            Whether it was taken.

        Raises:
            OSError: the folder cannot be written.
        """
        if self._mine is not None or self._others():
            return False
        owner = Owner.new()
        mine = self.folder / f".{self.name}.{owner}.lock"
        self._mine, self._process = mine, os.getpid()  # first, so that release() works after an interrupt at any moment
        try:
            self._make_folder()
            file = open(mine, "x")
        except FileNotFoundError:  # the previous owner has just removed the folder
            self._mine = None
            return False
        except OSError:
            self._mine = None
            raise
        with suppress(OSError), file:  # the name is enough: a full disk is no reason to fail
            file.write(json.dumps({"host": socket.gethostname(), "pid": owner.pid, "since": _now()}))
        if self._others(but=mine.name):
            mine.unlink(missing_ok=True)
            self._mine = None
            return False
        self._stop = threading.Event()
        threading.Thread(target=_send_heartbeats, args=(mine, self._stop), name="advfeat-lock", daemon=True).start()
        return True

    def release(self) -> None:
        """Releases the lock; does nothing in a forked child, which does not hold it."""
        if self._mine is None or self._process != os.getpid():
            return
        self._stop.set()
        self._mine.unlink(missing_ok=True)
        self._mine = None
        for folder in reversed(self._made):
            with suppress(OSError):  # not empty: it is in use
                folder.rmdir()
        self._made = []

    def check(self) -> None:
        """Checks that this process still holds the lock.

        Raises:
            LostLock: the folder was removed, or another process took over because this one gave no heartbeat for
                minutes (it was stopped, or its machine slept).
        """
        if self._mine is not None and not self._mine.exists():
            holder = self.holder()
            why = f"is now in use by {holder}" if holder else "or its lock file was removed"
            raise LostLock(f"{self.folder} {why}: nothing more was written to it")

    def holder(self) -> str | None:
        """The holder of the lock, in words.

        Returns:
            A description; None if nobody holds it, as far as can be seen.
        """
        for name in self._others():
            owner = self._owner_in(name)
            try:
                record = json.loads((self.folder / name).read_bytes())
                return f"process {owner.pid} on {record['host']}, since {record['since']}"
            except (OSError, ValueError, KeyError, TypeError):  # gone, or written on a full disk
                return f"process {owner.pid}" + ("" if owner.is_near else " of another machine or container")
        return None

    def is_surely_held(self) -> bool:
        """Whether its owner is known to be alive: its process runs here, or it gave a heartbeat since the first call.

        Returns:
            True if so.
        """
        return any(self._owner_in(name).is_near or self._seen[name].alive for name in self._others())

    def _owner_in(self, name: str) -> Owner:
        """The owner encoded in the name of a lock file."""
        match = cast("re.Match[str]", self._pattern.fullmatch(name))  # _others gives no other names
        return Owner.parse(match.group(1))

    def _others(self, but: str = "") -> list[str]:
        """The names of the lock files of living owners; other lock files are removed."""
        found = []
        try:
            names = [name for name in os.listdir(self.folder) if name != but and self._pattern.fullmatch(name)]
        except (FileNotFoundError, NotADirectoryError):
            names = []
        for name in sorted(names):
            file, owner = self.folder / name, self._owner_in(name)
            try:
                with open(file, "rb") as opened:  # opening makes NFS revalidate its cache
                    changed = os.fstat(opened.fileno()).st_mtime_ns
            except FileNotFoundError:
                continue
            heartbeat = self._seen.setdefault(name, _Heartbeat(changed))
            heartbeat.look(changed)
            # A visible process needs no heartbeat, unless its number may have been reused.
            silent = heartbeat.silent >= _PATIENCE and (not owner.is_near or owner.started == 0)
            if owner.is_gone() or silent:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
                continue
            found.append(name)
        self._seen = {name: heartbeat for name, heartbeat in self._seen.items() if name in found}
        return found

    def _make_folder(self) -> None:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing[::-1]


class _Heartbeat:
    """How long the heartbeat of a lock file has been missing, by the local clock."""

    def __init__(self, changed: int) -> None:
        self.changed, self.silent, self.alive, self.looked = changed, 0.0, False, time.monotonic()

    def look(self, changed: int) -> None:
        now = time.monotonic()
        # Capped per call: a long gap between two calls, as when this machine slept, says little about the owner.
        self.silent += min(now - self.looked, _BEAT / 2)
        self.looked = now
        if changed != self.changed:
            self.changed, self.silent, self.alive = changed, 0.0, True


def _send_heartbeats(file: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT):
        try:
            os.utime(file)
        except FileNotFoundError:
            return
        except OSError:  # the server is temporarily unreachable
            continue


@contextmanager
def hold(folder: str | Path, name: str = "work", waiting: Callable[[str], None] | None = None) -> Iterator[Lock]:
    """Holds a lock of a folder for a block, waiting until it is free.

    Args:
        folder: as for :class:`Lock`.
        name: as for :class:`Lock`.
        waiting: called once with the holder in words, if the lock is not free; an exception that it raises ends the
            wait.

    Yields:
        The lock.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = Lock(folder, name)
    reported = False
    try:
        while not lock.acquire():
            if waiting is not None and not reported and lock.is_surely_held() and (holder := lock.holder()):
                reported = True
                waiting(holder)
            time.sleep(_POLL * (0.5 + random.random()))  # random, so that waiting processes do not stay in step
        yield lock
    finally:
        lock.release()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
