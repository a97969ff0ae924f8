"""Where experiments work: a folder in which every finished step is kept, and found again by the hash of its config."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from advfeat._json_fields import SHA256
from advfeat._locks import Lock
from advfeat.datasets.layout import file_sha256
from advfeat.experiments.steps import Data, DataStep, Step, all_steps
from advfeat.files import sweep
from advfeat.json_files import read_json, write_json
from advfeat.progress import Progress
from advfeat.provenance import provenance
from advfeat.settings import as_json

_POLL = 0.2  # seconds between two looks at what another process is at
_RECORD = {
    "label?": str,
    "done?": bool,
    "seconds?": float,
    "data?": {str: str},
    "files?": {str: SHA256},
    "outcome?": (None, str),
    "from?": {str: (None, str)},
}

Bar = Callable[[str, str], AbstractContextManager[Progress]]


class Pause(Exception):
    """The time that was given is over; what is finished stays, and the same command goes on."""


class Lab:
    """A folder of steps: ``<kind>s/<label>-<hash>/``, each with a ``step.json`` that says what it is and what it cost.

    Several processes may work in one folder: no step is done twice, and with :meth:`do` they share the work. What is
    found there is compared with its checksums when a process first opens it, and what is damaged or lost is done again,
    with a warning.

    root: where named data sets lie. device: where models run. bar: gives a progress report for a title and a unit, as
        :func:`advfeat.cli.console.bar`.
    deadline: of ``time.monotonic()``; afterwards :class:`Pause` is raised where little is lost: before a step, after an
        epoch of a training or a shard of a set. A measurement that has begun is finished.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        bar: Bar,
        root: Path | None = None,
        device: torch.device | str | None = None,
        deadline: float | None = None,
    ) -> None:
        self.out, self.bar, self.deadline = Path(out), bar, deadline
        self.root = None if root is None else Path(root).expanduser()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._opened: dict[str, Any] = {}
        self._sources: dict[str, tuple[str, str]] = {}  # by key of the data that were opened: name and fingerprint
        self._sound: set[str] = set()  # keys of the steps whose files were compared with their checksums
        self._locks: dict[str, Lock] = {}  # by key; a lock learns who lives by being looked at again
        self._failed: set[str] = set()  # keys of steps that failed while another process was waited for

    def open(self, step: Step) -> Any:
        """The outcome of a step: done now, gone on with, or found.

        Errors: ValueError for one that was made from other data than is there now; MissingData; Pause.
        """
        if isinstance(step, Data):  # held; what others make in memory is as large, and is asked for once
            if step.key not in self._opened:
                self._opened[step.key] = self._noted(step, step.open(self))
            return self._opened[step.key]
        if not step.kept:
            return self._noted(step, step.open(self))
        while not self.is_done(step) or self._is_damaged(step):
            self._prepare(step)  # first, so that the time of what it needs is not its own
            while not self._try(step):
                self._wait_for([step])
        self._check_data(step)
        return step.load(self, self.folder(step))

    def do(self, steps: Iterable[Step], meanwhile: Iterable[Step] = ()) -> None:
        """Does all of the steps, each given after what it needs. Where another process is at one, what does not need it
        is done first, then what can be of ``meanwhile``, and only then is it waited for.

        Errors: as of :meth:`open`. A step of ``meanwhile`` that fails is left; asked for on its own, it fails again.
        """
        left = self._left(steps)
        others = [step for step in self._left(meanwhile) if step.key not in self._failed]
        while left:
            if not any(self._try(step) for step in left) and not self._try_others(others):
                self._wait_for([*left, *others])
            left, others = self._left(left), self._left(others)

    def _left(self, steps: Iterable[Step]) -> list[Step]:
        return [step for step in steps if step.kept and not self.is_done(step)]

    def _try(self, step: Step) -> bool:
        """Does a step if all that it needs is done and no other process is at it; says whether it is done now."""
        if not self._ready(step):
            return False
        with self._alone_at(step) as alone:
            if alone:
                self._make(step)
        return alone

    def _is_damaged(self, step: Step) -> bool:
        """Whether something of a finished step is lost or altered; then it counts as not done, and that is said. Looked
        at once a process."""
        if step.key in self._sound or self._problem(step) is None:
            self._sound.add(step.key)
            return False
        with self._alone_at(step) as alone:
            # Another process that is at it may be mending it.
            if alone and self.is_done(step) and (problem := self._problem(step)):
                warnings.warn(f"{problem}: {_title(step)} is done again", stacklevel=3)
                step.discard(self.folder(step))
                write_json(self.folder(step) / "step.json", {**self._record(step), "done": False})
        return True

    def _problem(self, step: Step) -> str | None:
        folder = self.folder(step)
        try:
            for name, sha256 in self._record(step).get("files", {}).items():
                if file_sha256(folder / name) != sha256:
                    return f"{folder / name} was altered since it was written"
            step.check(folder)
        except FileNotFoundError as error:
            return str(error) if error.errno is None else f"{error.filename} is missing"
        except ValueError as error:
            return str(error)
        return None

    def _try_others(self, others: list[Step]) -> bool:
        for step in others:
            try:
                if self._try(step):
                    return True
            except Pause:
                raise
            except Exception as error:  # its own experiment comes to it and says what is wrong; not again until then
                self._failed.add(step.key)
                others.remove(step)
                warnings.warn(f"{_title(step)} failed and is left for later: {error}", stacklevel=2)
                return True
        return False

    def _ready(self, step: Step) -> bool:
        return all(self.is_done(needed) if needed.kept else self._ready(needed) for needed in step.needs())

    def _prepare(self, step: Step) -> None:
        for needed in step.needs():
            if not needed.kept:
                self._prepare(needed)
            elif not self.is_done(needed):
                self.open(needed)

    def _make(self, step: Step) -> None:
        if self.is_done(step):  # by another process meanwhile
            return
        self._check_time()
        folder, record = self.folder(step), self._record(step)
        record |= {"label": record.get("label", step.label), "step": step.describe(), "data": self._data_of(step)}
        began, done = time.monotonic(), False
        try:
            with self.bar(_title(step), step.unit) as report:
                sweep(folder)
                step.make(self, folder, self._watched(step, report))
            record |= {
                "files": {name: file_sha256(folder / name) for name in step.files},
                "outcome": step.identity(folder),
                "from": {needed.key: self._record(needed).get("outcome") for needed in step.needs() if needed.kept},
            }
            done = True
        finally:
            if step.key in self._locks:
                self._locks[step.key].check()
            record["seconds"] = round(record.get("seconds", 0.0) + time.monotonic() - began, 2)
            record |= {"done": done, **as_json(provenance(self.device))}
            if done or any(folder.glob("*.json")):  # else nothing was begun, and a set wants an empty folder
                write_json(folder / "step.json", record)

    def folder(self, step: Step) -> Path:
        """Where a step is kept: found by its hash, whatever the label was."""
        kinds = self.out / f"{step.kind}s"
        name = re.sub(r"[^\w.-]+", "-", step.label or step.kind)
        return next(iter(sorted(kinds.glob(f"*-{step.key}"))), kinds / f"{name}-{step.key}")

    def is_done(self, step: Step) -> bool:
        """Whether it is there, finished."""
        return bool(self._record(step).get("done"))

    def seconds(self, step: Step) -> float:
        """What a step took, all its pieces together; 0 if it has not run."""
        return float(self._record(step).get("seconds", 0.0))

    def cost(self, steps: Iterable[Step]) -> dict[str, float]:
        """Seconds of the steps by their labels."""
        costs: dict[str, float] = {}
        for step in steps:
            if step.kept:
                name = f"{step.kind} {step.label}".strip()
                costs[name] = round(costs.get(name, 0.0) + self.seconds(step), 2)
        return costs

    def history(self, step: Step) -> list[dict]:
        """The epochs of a finished training, see :class:`advfeat.training.TrainResult`."""
        return read_json(self.folder(step) / "checkpoint.json")["history"]

    def _record(self, step: Step) -> dict:
        path = self.folder(step) / "step.json"
        try:
            return read_json(path, _RECORD)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            warnings.warn(f"{error}; what lies there is looked at anew", stacklevel=3)
            return {}

    def _data_of(self, step: Step) -> dict[str, str]:
        """The hashes of the data that a step rests on in the end."""
        leaves = [s for s in all_steps([step]).values() if isinstance(s, DataStep) and not any(s.needs())]
        return {leaf.key: self.open(leaf).fingerprint for leaf in leaves}

    def _check_data(self, step: Step) -> None:
        """A step says which data it wants by name; that what lies under the name is still the same is looked at here,
        for data that were opened anyway."""
        for key, fingerprint in self._record(step).get("data", {}).items():
            name, now = self._sources.get(key, ("", fingerprint))
            if now != fingerprint:
                raise ValueError(
                    f"{self.folder(step)} was made from another {name} than is there now: remove it, or take another "
                    "--out"
                )
        for needed in step.needs():
            was = self._record(step).get("from", {}).get(needed.key)
            now = self._record(needed).get("outcome") if needed.kept else None
            if was and now and was != now:
                raise ValueError(
                    f"{self.folder(step)} was made from another {self.folder(needed)} than is there now: remove it, or "
                    "take another --out"
                )

    def _noted(self, step: Step, opened: Any) -> Any:
        if isinstance(step, DataStep) and not any(step.needs()):
            self._sources[step.key] = (opened.name, opened.fingerprint)
        return opened

    def _wait_for(self, steps: list[Step]) -> None:
        """Waits until no other process is at one of the steps. Errors: Pause."""
        lock = self._locks.get(steps[0].key)
        holder = (lock.holder() if lock else None) or "another process"
        with self.bar(f"waiting for {holder}: {_title(steps[0])}", ""):
            while not any(self._is_free(step) for step in steps):
                self._check_time()
                time.sleep(_POLL)

    def _is_free(self, step: Step) -> bool:
        if not self._ready(step):
            return False
        with self._alone_at(step) as alone:
            return alone

    @contextlib.contextmanager
    def _alone_at(self, step: Step) -> Iterator[bool]:
        """Keeps other processes from the step; yields whether it could. A process that dies lets go of it."""
        if step.key not in self._locks:
            self._locks[step.key] = Lock(self.folder(step).parent, step.key)
        lock = self._locks[step.key]
        alone = lock.acquire()
        try:
            yield alone
        finally:
            if alone:
                lock.release()

    def _watched(self, step: Step, report: Progress) -> Progress:
        first: int | None = None

        def watched(done: int, total: int) -> None:
            nonlocal first
            report(done, total)
            first = done if first is None else first
            if step.may_pause(done - first, total):
                self._check_time()

        return watched

    def _check_time(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Pause


def _title(step: Step) -> str:
    return f"{step.doing}: {step.label or step.kind}"
