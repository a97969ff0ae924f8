"""Where experiments work: a folder in which every finished step is kept, and found again by the hash of its config."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from advfeat.experiments.steps import Data, Step
from advfeat.progress import Progress
from advfeat.runs import plain, provenance, read_json, write_json

Bar = Callable[[str, str], AbstractContextManager[Progress]]


class Pause(Exception):
    """The time that was given is over; what is finished stays, and the same command goes on."""


class Lab:
    """A folder of steps: ``<kind>s/<label>-<hash>/``, each with a ``step.json`` that says what it is and what it cost.

    root: where named data sets lie. device: where models run. bar: gives a progress report for a title and a unit, as
        :func:`advfeat.console.bar`.
    deadline: of ``time.monotonic()``; afterwards :class:`Pause` is raised from within the step. A training goes on from
        its last epoch, a set from its last shard.
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
        self.out, self.bar, self.root, self.deadline = Path(out), bar, root, deadline
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._opened: dict[str, Any] = {}

    def open(self, step: Step) -> Any:
        """The outcome of a step: done now, gone on with, or found."""
        if isinstance(step, Data):  # held; what others make in memory is as large, and is asked for once
            if step.key not in self._opened:
                self._opened[step.key] = step.open(self)
            return self._opened[step.key]
        if not step.kept:
            return step.open(self)
        folder = self.folder(step)
        if self.is_done(step):
            return step.make(self, folder, _silent)
        for needed in step.needs():  # first, so that their time is theirs
            if not self.is_done(needed):
                self.open(needed)
        return self._make(step, folder)

    def _make(self, step: Step, folder: Path) -> Any:
        self._check_time()
        record = self._record(step)
        record.setdefault("label", step.label)
        record.setdefault("step", step.describe())
        began, done = time.monotonic(), False
        try:
            with self.bar(f"{step.doing} {step.label or step.kind}", step.unit) as report:
                outcome = step.make(self, folder, self._watched(report))
            done = True
        finally:
            record["seconds"] = round(record.get("seconds", 0.0) + time.monotonic() - began, 2)
            record |= {"done": done, **plain(provenance(self.device))}
            if done or folder.is_dir():
                write_json(folder / "step.json", record)
        return outcome

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
                costs[name] = round(costs.get(name, 0.0) + self.seconds(step), 1)
        return costs

    def history(self, step: Step) -> list[dict]:
        """The epochs of a finished training, see :class:`advfeat.training.TrainResult`."""
        return read_json(self.folder(step) / "checkpoint.json")["history"]

    def _record(self, step: Step) -> dict:
        path = self.folder(step) / "step.json"
        return read_json(path) if path.is_file() else {}

    def _watched(self, report: Progress) -> Progress:
        def watched(done: int, total: int) -> None:
            report(done, total)
            if done < total:  # the last report comes before the outcome is written
                self._check_time()

        return watched

    def _check_time(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise Pause


def _silent(done: int, total: int) -> None:
    pass
