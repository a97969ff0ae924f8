"""The common kinds of stages: data, trained models, constructed sets and the evaluation of a model.

Measurements of single experiments are in :mod:`advfeat.experiments.measurements` and beside the experiments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from advfeat.attacks import Attack
from advfeat.datasets import sources
from advfeat.datasets.base import ArraySource, Source, balanced_subset
from advfeat.datasets.building import build
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.recipes import Recipe
from advfeat.datasets.registry import known
from advfeat.evaluation import evaluate
from advfeat.experiments.base import DataStage, Measurement, MissingData, ModelStage, Stage, all_stages
from advfeat.models import Model, fingerprint, load
from advfeat.progress import Progress
from advfeat.training import TrainConfig, train
from advfeat.training.checkpoint import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from advfeat.experiments.workspace import Workspace

__all__ = [
    "Constructed",
    "Data",
    "DataStage",
    "Evaluated",
    "Measurement",
    "MissingData",
    "ModelStage",
    "Stage",
    "Trained",
    "all_stages",
]

# Batches per shard; an interrupted build resumes after the last complete shard. With a stop rule, each shard ends with
# partly filled passes, so small shards would cost time.
_SHARD = 8


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
        if root is None and known(self.name).needs_root:
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
