"""Workspace of experiments: a folder in which every finished stage is cached by a hash of its config."""

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
from advfeat.experiments.base import DataStage, Stage, all_stages
from advfeat.experiments.stages import Data
from advfeat.files import sweep
from advfeat.json_files import read_json, write_json
from advfeat.progress import Progress
from advfeat.provenance import provenance

_POLL = 0.2  # seconds between checks of another process
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
    """The time limit is reached; finished work is kept, and the same command resumes."""


class Workspace:
    """A folder of stages: ``<kind>s/<label>-<hash>/``, each with a ``step.json`` that holds its description and cost.

    Several processes may work in one folder: no stage is run twice, and with :meth:`do` they share the work. A cached
    stage is compared with its checksums when a process first opens it; damaged or lost ones are repeated, with a
    warning.

    Args:
        out: The folder.
        bar: Function that gives a progress report for a title and a unit, such as :func:`advfeat.cli.console.bar`.
        root: Folder of named data sets.
        device: Device of the models; None takes CUDA if it is available.
        deadline: Time limit on the clock ``time.monotonic()``. After it, :class:`Pause` is raised where little work is
            lost: before a stage, after an epoch of a training or a shard of a set. A measurement is always completed.
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
        self._sources: dict[str, tuple[str, str]] = {}  # by key of the opened data: name and fingerprint
        self._sound: set[str] = set()  # keys of stages whose files match their checksums
        self._locks: dict[str, Lock] = {}  # by key; kept, because a lock detects a dead owner by repeated checks
        self._failed: set[str] = set()  # keys of stages that failed while waiting for another process

    def open(self, stage: Stage) -> Any:
        """Return the outcome of a stage: run, resumed or cached.

        Args:
            stage: The stage.

        Returns:
            The outcome.

        Raises:
            ValueError: If the cached stage was built from other data than the present.
            MissingData: If data that the user has to provide is missing.
            Pause: If the time limit is reached.
        """
        if isinstance(stage, Data):  # kept in memory; other data sets made on demand are as large but used once
            if stage.key not in self._opened:
                self._opened[stage.key] = self._noted(stage, stage.open(self))
            return self._opened[stage.key]
        if not stage.kept:
            return self._noted(stage, stage.open(self))
        while not self.is_done(stage) or self._is_damaged(stage):
            self._prepare(stage)  # first, so that its needs do not count towards its time
            while not self._try(stage):
                self._wait_for([stage])
        self._check_data(stage)
        return stage.load(self, self.folder(stage))

    def do(self, stages: Iterable[Stage], meanwhile: Iterable[Stage] = ()) -> None:
        """Run stages, each given after those it needs.

        While another process runs a stage, those that do not need it are run first, then those of ``meanwhile`` that
        can be; only then does this process wait.

        Args:
            stages: The stages.
            meanwhile: Stages to run rather than wait. One that fails is skipped; it fails again when it is asked for
                itself.

        Raises:
            ValueError: As :meth:`open`.
            MissingData: As :meth:`open`.
            Pause: As :meth:`open`.
        """
        left = self._left(stages)
        others = [stage for stage in self._left(meanwhile) if stage.key not in self._failed]
        while left:
            if not any(self._try(stage) for stage in left) and not self._try_others(others):
                self._wait_for([*left, *others])
            left, others = self._left(left), self._left(others)

    def _left(self, stages: Iterable[Stage]) -> list[Stage]:
        return [stage for stage in stages if stage.kept and not self.is_done(stage)]

    def _try(self, stage: Stage) -> bool:
        """Run a stage if its needs are met and no other process runs it; return whether it is done now."""
        if not self._ready(stage):
            return False
        with self._alone_at(stage) as alone:
            if alone:
                self._make(stage)
        return alone

    def _is_damaged(self, stage: Stage) -> bool:
        """Return whether a finished stage is damaged; it then counts as unfinished, with a warning.

        Each stage is checked once per process.
        """
        if stage.key in self._sound or self._problem(stage) is None:
            self._sound.add(stage.key)
            return False
        with self._alone_at(stage) as alone:
            # Another process that holds the stage may be repairing it.
            if alone and self.is_done(stage) and (problem := self._problem(stage)):
                warnings.warn(f"{problem}: {_title(stage)} is repeated", stacklevel=3)
                stage.discard(self.folder(stage))
                write_json(self.folder(stage) / "step.json", {**self._record(stage), "done": False})
        return True

    def _problem(self, stage: Stage) -> str | None:
        folder = self.folder(stage)
        try:
            for name, sha256 in self._record(stage).get("files", {}).items():
                if file_sha256(folder / name) != sha256:
                    return f"{folder / name} was altered since it was written"
            stage.check(folder)
        except FileNotFoundError as error:
            return str(error) if error.errno is None else f"{error.filename} is missing"
        except ValueError as error:
            return str(error)
        return None

    def _try_others(self, others: list[Stage]) -> bool:
        for stage in others:
            try:
                if self._try(stage):
                    return True
            except Pause:
                raise
            except Exception as error:  # its own experiment will report the error; do not retry before that
                self._failed.add(stage.key)
                others.remove(stage)
                warnings.warn(f"{_title(stage)} failed and is left for later: {error}", stacklevel=2)
                return True
        return False

    def _ready(self, stage: Stage) -> bool:
        return all(self.is_done(needed) if needed.kept else self._ready(needed) for needed in stage.needs())

    def _prepare(self, stage: Stage) -> None:
        for needed in stage.needs():
            if not needed.kept:
                self._prepare(needed)
            elif not self.is_done(needed):
                self.open(needed)

    def _make(self, stage: Stage) -> None:
        if self.is_done(stage):  # by another process meanwhile
            return
        self._check_time()
        folder, record = self.folder(stage), self._record(stage)
        record |= {"label": record.get("label", stage.label), "step": stage.describe(), "data": self._data_of(stage)}
        began, done = time.monotonic(), False
        try:
            with self.bar(_title(stage), stage.unit) as report:
                sweep(folder)
                stage.make(self, folder, self._watched(stage, report))
            record |= {
                "files": {name: file_sha256(folder / name) for name in stage.files},
                "outcome": stage.identity(folder),
                "from": {needed.key: self._record(needed).get("outcome") for needed in stage.needs() if needed.kept},
            }
            done = True
        finally:
            if stage.key in self._locks:
                self._locks[stage.key].check()
            record["seconds"] = round(record.get("seconds", 0.0) + time.monotonic() - began, 2)
            record |= {"done": done, **provenance(self.device)}
            if done or any(folder.glob("*.json")):  # otherwise nothing was started, and a set needs an empty folder
                write_json(folder / "step.json", record)

    def folder(self, stage: Stage) -> Path:
        """Return the folder of a stage, found by its hash whatever its label was.

        Args:
            stage: The stage.
        """
        kinds = self.out / f"{stage.kind}s"
        name = re.sub(r"[^\w.-]+", "-", stage.label or stage.kind)
        return next(iter(sorted(kinds.glob(f"*-{stage.key}"))), kinds / f"{name}-{stage.key}")

    def is_done(self, stage: Stage) -> bool:
        """Return whether a stage is finished.

        Args:
            stage: The stage.
        """
        return bool(self._record(stage).get("done"))

    def seconds(self, stage: Stage) -> float:
        """Return the time of a stage over all its runs, 0 if it has not run.

        Args:
            stage: The stage.
        """
        return float(self._record(stage).get("seconds", 0.0))

    def cost(self, stages: Iterable[Stage]) -> dict[str, float]:
        """Return the time of stages by label.

        Args:
            stages: The stages.

        Returns:
            Seconds by kind and label, summed over seeds.
        """
        costs: dict[str, float] = {}
        for stage in stages:
            if stage.kept:
                name = f"{stage.kind} {stage.label}".strip()
                costs[name] = round(costs.get(name, 0.0) + self.seconds(stage), 2)
        return costs

    def history(self, stage: Stage) -> list[dict]:
        """Return the epochs of a finished training, see :class:`advfeat.training.TrainResult`.

        Args:
            stage: The training.
        """
        return read_json(self.folder(stage) / "checkpoint.json")["history"]

    def _record(self, stage: Stage) -> dict:
        path = self.folder(stage) / "step.json"
        try:
            return read_json(path, _RECORD)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            warnings.warn(f"{error}; the stage is treated as unfinished", stacklevel=3)
            return {}

    def _data_of(self, stage: Stage) -> dict[str, str]:
        """Return the hashes of the data that a stage ultimately rests on."""
        leaves = [s for s in all_stages([stage]).values() if isinstance(s, DataStage) and not any(s.needs())]
        return {leaf.key: self.open(leaf).fingerprint for leaf in leaves}

    def _check_data(self, stage: Stage) -> None:
        """Check that the data and outcomes behind a stage are still those it was built from.

        A stage refers to data by name; only data that is open already is compared.
        """
        for key, fingerprint in self._record(stage).get("data", {}).items():
            name, now = self._sources.get(key, ("", fingerprint))
            if now != fingerprint:
                raise ValueError(
                    f"{self.folder(stage)} was made from another {name} than is there now: remove it, or take another "
                    "--out"
                )
        for needed in stage.needs():
            was = self._record(stage).get("from", {}).get(needed.key)
            now = self._record(needed).get("outcome") if needed.kept else None
            if was and now and was != now:
                raise ValueError(
                    f"{self.folder(stage)} was made from another {self.folder(needed)} than is there now: remove it, "
                    "or take another --out"
                )

    def _noted(self, stage: Stage, opened: Any) -> Any:
        if isinstance(stage, DataStage) and not any(stage.needs()):
            self._sources[stage.key] = (opened.name, opened.fingerprint)
        return opened

    def _wait_for(self, stages: list[Stage]) -> None:
        """Wait until no other process runs one of the stages, or raise Pause."""
        lock = self._locks.get(stages[0].key)
        holder = (lock.holder() if lock else None) or "another process"
        with self.bar(f"waiting for {holder}: {_title(stages[0])}", ""):
            while not any(self._is_free(stage) for stage in stages):
                self._check_time()
                time.sleep(_POLL)

    def _is_free(self, stage: Stage) -> bool:
        if not self._ready(stage):
            return False
        with self._alone_at(stage) as alone:
            return alone

    @contextlib.contextmanager
    def _alone_at(self, stage: Stage) -> Iterator[bool]:
        """Lock a stage against other processes and yield whether that succeeded; the lock of a dead process is void."""
        if stage.key not in self._locks:
            self._locks[stage.key] = Lock(self.folder(stage).parent, stage.key)
        lock = self._locks[stage.key]
        alone = lock.acquire()
        try:
            yield alone
        finally:
            if alone:
                lock.release()

    def _watched(self, stage: Stage, report: Progress) -> Progress:
        first: int | None = None

        def watched(done: int, total: int) -> None:
            nonlocal first
            report(done, total)
            first = done if first is None else first
            if stage.may_pause(done - first, total):
                self._check_time()

        return watched

    def _check_time(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Pause


def _title(stage: Stage) -> str:
    return f"{stage.doing}: {stage.label or stage.kind}"
