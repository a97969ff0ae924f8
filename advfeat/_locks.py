"""Locks on folders that hold between processes, containers and machines that share a file system.

A lock is a file that its owner alone writes, ``.NAME.OWNER.lock``. Who wants the lock puts its own file there and then
looks for the others': if there is one, it takes its own away and tries again later. Two processes that come at once may
both step back, but never both go on, and a file whose owner is gone can be removed by anyone, as no other owner has
that name. This needs of the file system only that a file, once made, is seen by everybody who looks afterwards; no
flock, which NFS may not have, may keep to one machine, or may share between containers that cannot see each other.

An owner is gone if the process with its number and its time of start is no more. From another machine, or another
process namespace, that cannot be seen: there it is gone if its file was not touched for two minutes (living owners
touch it every ten seconds), by the watch of who waits, so that no clocks have to agree.
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

_BEAT = 10.0  # seconds between two signs of life
_PATIENCE = 120.0  # seconds without one; NFS may show a change a minute late
_POLL = 0.2


def place() -> str:
    """Where a process number means something: one boot of one kernel and one process namespace; 8 hex digits."""
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
    # Containers of one machine share the boot; virtual machines resumed from one image may, too, but not the name.
    return hashlib.sha256(f"{boot or uuid.getnode()} {namespace} {socket.gethostname()}".encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the boot; 0 for one that has ended but was not waited for; None: unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


@dataclass(frozen=True)
class Owner:
    """A process that made a file, as it stands in the file's name."""

    place: str
    pid: int
    started: int
    token: str

    PATTERN = r"[0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}"

    @classmethod
    def new(cls) -> Owner:
        """This process, with a name that no other file has."""
        pid = os.getpid()
        return cls(place(), pid, _started(pid) or 0, secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> Owner:
        where, pid, started, token = text.split("-")
        return cls(where, int(pid), int(started), token)

    def __str__(self) -> str:
        return f"{self.place}-{self.pid}-{self.started}-{self.token}"

    @property
    def is_near(self) -> bool:
        """Whether its process can be seen from here."""
        return self.place == place()

    def is_gone(self) -> bool:
        """Whether it is known to have ended; False for one that cannot be seen from here."""
        if not self.is_near:
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # another user's
            pass
        started = _started(self.pid)
        return started is not None and self.started != 0 and started != self.started


class Busy(OSError):
    """Another process is at work where this one should not wait."""


class LostLock(OSError):
    """Another process took over, or the folder is gone."""


class Lock:
    """One lock of a folder. Use :func:`hold`, or :meth:`acquire` again and again: a lock learns by looking who lives.

    folder: made if it is missing, and removed again with the lock if it is empty then. name: of several locks in it.
    """

    def __init__(self, folder: str | Path, name: str = "work") -> None:
        self.folder, self.name = Path(folder).absolute(), name
        self._pattern = re.compile(rf"\.{re.escape(name)}\.({Owner.PATTERN})\.lock")
        self._mine: Path | None = None
        self._process = 0
        self._made: list[Path] = []
        self._stop = threading.Event()
        self._seen: dict[str, _Sign] = {}

    def acquire(self) -> bool:
        """Takes the lock if nobody has it. Errors: OSError for a folder that cannot be written."""
        if self._mine is not None or self._others():
            return False
        owner = Owner.new()
        mine = self.folder / f".{self.name}.{owner}.lock"
        self._mine, self._process = mine, os.getpid()  # first, so that an interrupt at any moment leaves it to release
        try:
            self._make_folder()
            file = open(mine, "x")
        except FileNotFoundError:  # who had it removed the folder just now
            self._mine = None
            return False
        except OSError:
            self._mine = None
            raise
        with suppress(OSError), file:  # the name says it all: a full disk is no reason to fail
            file.write(json.dumps({"host": socket.gethostname(), "pid": owner.pid, "since": _now()}))
        if self._others(but=mine.name):
            mine.unlink(missing_ok=True)
            self._mine = None
            return False
        self._stop = threading.Event()
        threading.Thread(target=_beat, args=(mine, self._stop), name="advfeat-lock", daemon=True).start()
        return True

    def release(self) -> None:
        """Gives it back; of a forked child, which does not have it, nothing."""
        if self._mine is None or self._process != os.getpid():
            return
        self._stop.set()
        self._mine.unlink(missing_ok=True)
        self._mine = None
        for folder in reversed(self._made):
            with suppress(OSError):  # not empty: it was wanted
                folder.rmdir()
        self._made = []

    def check(self) -> None:
        """Errors: LostLock if it is no longer this process's: the folder was removed, or another took over because
        this one showed no sign of life for minutes (it was stopped, or its machine slept)."""
        if self._mine is not None and not self._mine.exists():
            said = self.holder()
            why = f"is now worked in by {said}" if said else "was removed, or its lock was"
            raise LostLock(f"{self.folder} {why}: nothing more was written to it")

    def holder(self) -> str | None:
        """Who has it, in words; None if nobody, as far as can be seen."""
        for name in self._others():
            owner = Owner.parse(self._pattern.fullmatch(name).group(1))
            try:
                record = json.loads((self.folder / name).read_bytes())
                return f"process {owner.pid} on {record['host']}, since {record['since']}"
            except (OSError, ValueError, KeyError, TypeError):  # gone, or its disk was full
                return f"process {owner.pid}" + ("" if owner.is_near else " of another machine or container")
        return None

    def is_surely_held(self) -> bool:
        """Whether its owner was seen alive: by its process here, or by a sign of life since the first look."""
        return any(
            Owner.parse(self._pattern.fullmatch(name).group(1)).is_near or self._seen[name].alive
            for name in self._others()
        )

    def _others(self, but: str = "") -> list[str]:
        """The files of living owners; those of others are removed."""
        found = []
        try:
            names = [name for name in os.listdir(self.folder) if name != but and self._pattern.fullmatch(name)]
        except (FileNotFoundError, NotADirectoryError):
            names = []
        for name in sorted(names):
            file, owner = self.folder / name, Owner.parse(self._pattern.fullmatch(name).group(1))
            try:
                with open(file, "rb") as opened:  # opened, as NFS then asks its server
                    changed = os.fstat(opened.fileno()).st_mtime_ns
            except FileNotFoundError:
                continue
            sign = self._seen.setdefault(name, _Sign(changed))
            sign.look(changed)
            # A process that is seen needs no sign, unless its number may have been given to another one.
            silent = sign.silent >= _PATIENCE and (not owner.is_near or owner.started == 0)
            if owner.is_gone() or silent:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
                continue
            found.append(name)
        self._seen = {name: sign for name, sign in self._seen.items() if name in found}
        return found

    def _make_folder(self) -> None:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing[::-1]


class _Sign:
    """How long a file was seen not to change, by one's own clock."""

    def __init__(self, changed: int) -> None:
        self.changed, self.silent, self.alive, self.looked = changed, 0.0, False, time.monotonic()

    def look(self, changed: int) -> None:
        now = time.monotonic()
        # In steps: two looks far apart, before and after a sleep of this machine, say little of the time between.
        self.silent += min(now - self.looked, _BEAT / 2)
        self.looked = now
        if changed != self.changed:
            self.changed, self.silent, self.alive = changed, 0.0, True


def _beat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT):
        try:
            os.utime(file)
        except FileNotFoundError:
            return
        except OSError:  # a server that is away for a while
            continue


@contextmanager
def hold(folder: str | Path, name: str = "work", waiting: Callable[[str], None] | None = None) -> Iterator[Lock]:
    """Holds a lock of a folder for a block, waiting until it is free.

    waiting: called once, with who has it in words, if it has to be waited for; what it raises ends the waiting.
    Errors: OSError for a folder that cannot be written.
    """
    lock = Lock(folder, name)
    said = waiting is None
    try:
        while not lock.acquire():
            if not said and lock.is_surely_held() and (holder := lock.holder()):
                said = True
                waiting(holder)
            time.sleep(_POLL * (0.5 + random.random()))  # of those who step back at once, one comes back first
        yield lock
    finally:
        lock.release()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
