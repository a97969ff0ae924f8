"""The base classes of stages: the work of an experiment as values, each built from others.

A stage is identified by a hash of its description, which includes the descriptions of all stages it is built from. Two
experiments that need the same model therefore name the same stage, and :class:`advfeat.experiments.workspace.Workspace`
runs it once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from advfeat.json_files import read_json, write_json
from advfeat.progress import Progress
from advfeat.settings import as_json
from advfeat.training import TrainConfig

if TYPE_CHECKING:
    from pathlib import Path

    from advfeat.experiments.workspace import Workspace


class MissingData(FileNotFoundError):
    """Data that the user has to provide is not in the expected place."""


@dataclass(frozen=True)
class Stage:
    """Base class of all stages: frozen, and described by their fields.

    Attributes:
        kind: Kind of stage, which names its folder.
        kept: Whether the outcome is stored in a folder (``make``, then ``load``) or created on demand (``open``).
        doing: Verb for the progress bar.
        unit: Unit of the progress bar.
        files: Files of the folder that describe the outcome, and whose checksums are kept.
        label: Human-readable name, in the folder name and on the progress bar; not part of the identity.
    """

    kind: ClassVar[str]
    kept: ClassVar[bool] = False
    doing: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    label: str = field(default="", compare=False, kw_only=True)

    def describe(self) -> dict:
        """Return everything that the outcome depends on as JSON values, including the descriptions of other stages."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "label"}
        return {"kind": self.kind, **{name: _described(value) for name, value in values.items()}}

    def may_pause(self, done: int, total: int) -> bool:
        """Return whether stopping now would lose little work.

        Args:
            done: Units done since the start.
            total: Units in total.
        """
        return False

    def open(self, workspace: Workspace) -> Any:
        """Create the outcome, for stages that are not kept.

        Args:
            workspace: The workspace.

        Returns:
            The outcome.
        """
        raise NotImplementedError

    def make(self, workspace: Workspace, folder: Path, report: Progress) -> None:
        """Run the stage and store its outcome, for stages that are kept.

        Args:
            workspace: The workspace.
            folder: Folder of the stage.
            report: Progress.
        """
        raise NotImplementedError

    def load(self, workspace: Workspace, folder: Path) -> Any:
        """Read the outcome that :meth:`make` stored.

        Args:
            workspace: The workspace.
            folder: Folder of the stage.

        Returns:
            The outcome.
        """
        raise NotImplementedError

    def check(self, folder: Path) -> None:
        """Read a finished outcome completely.

        Args:
            folder: Folder of the stage.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged.
        """

    def discard(self, folder: Path) -> None:
        """Remove those parts of a damaged outcome that would keep :meth:`make` from rebuilding it.

        Args:
            folder: Folder of the stage.
        """

    def identity(self, folder: Path) -> str | None:
        """Return the hash of an outcome, for the stages built from it; None if nothing is built from it.

        Args:
            folder: Folder of the stage.
        """
        return None

    @property
    def key(self) -> str:
        """Hash of the description."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:12]

    def needs(self) -> Iterator[Stage]:
        """Iterate over the stages that this one is built from.

        Yields:
            The stages.
        """
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            yield from (v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Stage))


def _described(value: object) -> object:
    if isinstance(value, Stage):
        return value.describe()
    if isinstance(value, tuple):
        return [_described(item) for item in value]
    return as_json(value)


@dataclass(frozen=True)
class DataStage(Stage):
    """A stage whose outcome is a data set, created on demand or stored."""


@dataclass(frozen=True)
class ModelStage(Stage):
    """A stage whose outcome is a model."""

    def trained_with(self) -> TrainConfig:
        """Return the settings of the model's training."""
        raise NotImplementedError


@dataclass(frozen=True)
class Measurement(Stage):
    """A stage whose outcome is a dict of JSON values, stored in a file."""

    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "evaluating"
    unit: ClassVar[str] = "samples"
    files: ClassVar[tuple[str, ...]] = ("outcome.json",)

    def measure(self, workspace: Workspace, report: Progress) -> dict:
        """Take the measurement.

        Args:
            workspace: The workspace.
            report: Progress.

        Returns:
            The outcome as JSON values.

        Raises:
            NotImplementedError: In this base class.
        """
        raise NotImplementedError

    def make(self, workspace: Workspace, folder: Path, report: Progress) -> None:
        """Take the measurement and write it to a file.

        Args:
            workspace: The workspace.
            folder: Folder of the stage.
            report: Progress.
        """
        write_json(folder / "outcome.json", self.measure(workspace, report))

    def load(self, workspace: Workspace, folder: Path) -> dict:
        """Return the stored outcome.

        Args:
            workspace: The workspace.
            folder: Folder of the stage.
        """
        return read_json(folder / "outcome.json")

    def check(self, folder: Path) -> None:
        """See :meth:`Stage.check`."""
        read_json(folder / "outcome.json")


def all_stages(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Return stages and everything that they are built from.

    Args:
        stages: The stages.

    Returns:
        The stages by key, each after those it needs.
    """
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.key not in found:
            found |= {k: s for k, s in all_stages(stage.needs()).items() if k not in found}
            found[stage.key] = stage
    return found
