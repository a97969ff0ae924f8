"""The work of an experiment as values: data, trained models, constructed sets and measurements, each built from others.

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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from advfeat.attacks import Attack
from advfeat.datasets import sources
from advfeat.datasets.base import ArraySource, Source, balanced_subset
from advfeat.datasets.building import build
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.recipes import Recipe
from advfeat.evaluation import evaluate
from advfeat.json_files import read_json, write_json
from advfeat.models import Model, fingerprint, load
from advfeat.progress import Progress
from advfeat.settings import as_json
from advfeat.training import TrainConfig, train
from advfeat.training.checkpoint import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from advfeat.experiments.workspace import Workspace


# Batches per shard; an interrupted build resumes after the last complete shard. With a stop rule, each shard ends with
# partly filled passes, so small shards would cost time.
_SHARD = 8


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
class Data(DataStage):
    """A data set by name, see :func:`advfeat.datasets.load`.

    Attributes:
        name: Name of the data set.
        split: "train" or "test".
        limit: Number of samples, evenly over the classes; None takes all.
        classes: Classes to keep, renumbered in this order; None keeps all.
        size: Side of the images in pixels.
    """

    kind: ClassVar[str] = "data"
    name: str
    split: Literal["train", "test"] = "train"
    limit: int | None = None
    classes: tuple[str, ...] | None = None
    size: int | None = None

    def open(self, workspace: Workspace) -> Source:
        """Load the data set.

        Args:
            workspace: The workspace.

        Returns:
            The data set.

        Raises:
            MissingData: If it is not below the workspace's root.
            ValueError: If a class does not exist.
        """
        limit = self.limit if self.classes is None else None
        root = workspace.root
        if root is None and self.name != "digits":
            raise MissingData(f"{self.name} is not part of advfeat: give its folder with --root (or ADVFEAT_DATA)")
        if self.name == "restricted-imagenet" and root is not None:
            root = next((r for r in (root / "imagenet", root) if (r / "train").is_dir()), None)
            if root is None:
                raise MissingData(
                    f"{workspace.root} should be or contain an ImageNet folder (train/<class>/, val/<class>/)"
                )
        try:
            source = sources.load(self.name, split=self.split, root=root, limit=limit, size=self.size)
        except FileNotFoundError as error:
            raise MissingData(str(error)) from error
        return source if self.classes is None else _only(source, self.classes, self.limit)


def _only(source: Source, classes: tuple[str, ...], limit: int | None) -> Source:
    """Return the samples of some classes, renumbered; with ``limit``, this many of them, evenly over the classes."""
    missing = [name for name in classes if name not in source.classes]
    if missing:
        raise ValueError(f"{source.name} has no class {missing[0]!r}: it has {', '.join(source.classes)}")
    number = torch.full((len(source.classes),), -1, dtype=torch.int64, device="cpu")
    for new, name in enumerate(classes):
        number[source.classes.index(name)] = new
    labels = number[source.labels]
    index = (labels >= 0).nonzero()[:, 0]
    if limit is not None and limit < len(index):
        index = index[balanced_subset(labels[index], limit, 0)]
    name = f"{source.name} ({', '.join(classes)})"
    return ArraySource(source.images(index), labels[index], classes, name, source.split)


@dataclass(frozen=True)
class Trained(ModelStage):
    """A model trained on one data set and tested on another; the outcome is the model in eval mode.

    Attributes:
        data: Training data.
        test: Test data.
        config: Settings of the training.
    """

    kind: ClassVar[str] = "model"
    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "training"
    unit: ClassVar[str] = "steps"
    files: ClassVar[tuple[str, ...]] = ("model.json", "checkpoint.json")
    data: DataStage
    test: DataStage
    config: TrainConfig

    def trained_with(self) -> TrainConfig:
        """See :meth:`ModelStage.trained_with`."""
        return self.config

    def make(self, workspace: Workspace, folder: Path, report: Progress) -> None:
        """Train the model, resuming if the folder holds a checkpoint.

        Args:
            workspace: The workspace.
            folder: Run folder.
            report: Progress.
        """
        train(
            self.config,
            workspace.open(self.data),
            workspace.open(self.test),
            folder,
            device=workspace.device,
            progress=report,
        )

    def load(self, workspace: Workspace, folder: Path) -> Model:
        """Return the trained model.

        Args:
            workspace: The workspace.
            folder: Run folder.
        """
        return load(folder).to(workspace.device)

    def check(self, folder: Path) -> None:
        """See :meth:`Stage.check`."""
        load(folder)

    def discard(self, folder: Path) -> None:
        """See :meth:`Stage.discard`."""
        RunFolder(folder).clear()

    def identity(self, folder: Path) -> str:
        """Return the fingerprint of the model.

        Args:
            folder: Run folder.
        """
        return fingerprint(load(folder))

    def may_pause(self, done: int, total: int) -> bool:
        """Return whether a checkpoint has just been written.

        Args:
            done: Steps since the start.
            total: Steps in total.
        """
        if not self.config.checkpoint_every:
            return False
        piece = total // self.config.epochs * self.config.checkpoint_every
        return done > piece and done % piece == 1 % piece  # one step later, when the checkpoint has been written


@dataclass(frozen=True)
class Constructed(DataStage):
    """A set built from data by a recipe with a model.

    Attributes:
        recipe: The recipe.
        model: Source model.
        data: Data that it is built from.
        seed: Seed of the build.
        batch_size: Images per batch.
        amp: Precision, "none" or "bf16".
        dtype: Storage type of the images.
    """

    kind: ClassVar[str] = "set"
    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "building"
    unit: ClassVar[str] = "images"
    files: ClassVar[tuple[str, ...]] = ("manifest.json",)
    recipe: Recipe
    model: ModelStage
    data: DataStage
    seed: int = 0
    batch_size: int = 250
    amp: str = "none"
    dtype: str = "float32"

    @property
    def shard_size(self) -> int:
        """Images per shard."""
        return _SHARD * self.batch_size

    def make(self, workspace: Workspace, folder: Path, report: Progress) -> None:
        """Build the set, resuming if the folder holds shards.

        Args:
            workspace: The workspace.
            folder: Folder of the set.
            report: Progress.
        """
        build(
            self.recipe,
            workspace.open(self.model),
            workspace.open(self.data),
            folder,
            seed=self.seed,
            batch_size=self.batch_size,
            shard_size=self.shard_size,
            dtype=self.dtype,
            device=workspace.device,
            autocast=torch.bfloat16 if self.amp == "bf16" else None,
            any_source=True,  # the experiment chooses the model
            progress=report,
        )

    def load(self, workspace: Workspace, folder: Path) -> ConstructedSet:
        """Return the constructed set.

        Args:
            workspace: The workspace.
            folder: Folder of the set.
        """
        return ConstructedSet.open(folder, verify=False)

    def check(self, folder: Path) -> None:
        """See :meth:`Stage.check`."""
        ConstructedSet.open(folder, verify=True)

    def discard(self, folder: Path) -> None:
        """See :meth:`Stage.discard`."""
        (folder / "manifest.json").unlink(missing_ok=True)  # the shards remain, and intact ones are reused

    def identity(self, folder: Path) -> str:
        """Return the fingerprint of the set.

        Args:
            folder: Folder of the set.
        """
        return ConstructedSet.open(folder, verify=False).fingerprint

    def may_pause(self, done: int, total: int) -> bool:
        """Return whether a shard has just been written.

        Args:
            done: Images since the start.
            total: Images in total.
        """
        return 0 < done < total and done % self.shard_size == 0


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


@dataclass(frozen=True)
class Evaluated(Measurement):
    """Clean and robust accuracy of a model, and how often it predicts the class after the label.

    The outcome has ``clean`` and ``next`` as shares, and in ``robust`` one share per attack with the attack's
    statistics.

    Attributes:
        model: The model.
        data: Data to evaluate on.
        attacks: The attacks.
        limit: Number of samples, evenly spaced; None takes all.
        batch_size: Images per batch.
    """

    kind: ClassVar[str] = "evaluation"
    model: Trained
    data: DataStage
    attacks: tuple[Attack, ...] = ()
    limit: int | None = None
    batch_size: int = 500

    def measure(self, workspace: Workspace, report: Progress) -> dict:
        """See :meth:`Measurement.measure`."""
        source = workspace.open(self.data)
        found = evaluate(
            workspace.open(self.model),
            source,
            attacks=self.attacks,
            batch_size=self.batch_size,
            limit=self.limit,
            progress=report,
        )
        labels = source.labels[found.index]
        follows = int((found.prediction == (labels + 1) % len(source.classes)).sum())
        return {
            "clean": {"count": found.clean.count, "n": found.clean.n},
            "next": {"count": follows, "n": found.clean.n},
            "model_fingerprint": found.model_fingerprint,
            "data_fingerprint": found.data_fingerprint,
            "robust": [
                {"eps": r.eps, "count": r.accuracy.count, "n": r.accuracy.n, "details": r.to_dict()}
                for r in found.robustness
            ],
        }


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
