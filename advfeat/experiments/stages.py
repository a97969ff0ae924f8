"""The work of an experiment as values: data, trained models, constructed sets, measurements, each made from others.

A stage is known by the hash of its description, which holds the descriptions of all it is made from. Two experiments
that need the same model therefore name the same stage, and :class:`advfeat.experiments.workspace.Workspace` does it
once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

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


# Batches of a shard; a set that is stopped goes on after its last whole one. Under a stop rule each ends with passes
# that are not full, so few batches would cost time.
_SHARD = 8


class MissingData(FileNotFoundError):
    """Data of the user's that is not where it was looked for."""


def _label() -> str:
    return field(default="", compare=False, kw_only=True)


@dataclass(frozen=True)
class Stage:
    """Base of all stages: frozen, described by their fields.

    label: what a person calls it, in the name of its folder and on the progress bar; not part of what it is. kept:
    whether its outcome lies in a folder (``make``, then ``load``), or is made when it is asked for (``open``). doing,
    unit: of the progress bar. files: of its folder, those that describe the outcome; their checksums are kept.
    """

    kind: ClassVar[str]
    kept: ClassVar[bool] = False
    doing: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()
    label: str = _label()

    def describe(self) -> dict:
        """Everything the outcome depends on, as JSON values; of other stages, their descriptions."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "label"}
        return {"kind": self.kind, **{name: _described(value) for name, value in values.items()}}

    def may_pause(self, done: int, total: int) -> bool:
        """Whether so many units after it began, of so many, little would be lost by stopping."""
        return False

    def check(self, folder: Path) -> None:
        """Reads all of a finished outcome. Errors: FileNotFoundError and ValueError for what is lost or damaged."""

    def discard(self, folder: Path) -> None:
        """Removes of a damaged outcome what would keep :meth:`make` from making it anew."""

    def identity(self, folder: Path) -> str | None:
        """The hash of an outcome, for what is made from it; None where nothing is."""
        return None

    @property
    def key(self) -> str:
        """The hash of the description."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:12]

    def needs(self) -> Iterator[Stage]:
        """The stages that it is made from."""
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
    """A stage whose outcome is a data set: made when it is asked for, or kept."""


@dataclass(frozen=True)
class Data(DataStage):
    """A data set by name, see :func:`advfeat.datasets.load`.

    limit: so many samples, evenly over the classes. classes: only these, renumbered in this order.
    """

    kind: ClassVar[str] = "data"
    name: str
    split: Literal["train", "test"] = "train"
    limit: int | None = None
    classes: tuple[str, ...] | None = None
    size: int | None = None

    def open(self, workspace: Workspace) -> Source:
        limit = self.limit if self.classes is None else None
        root = workspace.root
        if root is None and self.name != "digits":
            raise MissingData(f"{self.name} is the user's own: say with --root (or ADVFEAT_DATA) where it lies")
        if self.name == "restricted-imagenet":
            root = next((r for r in (root / "imagenet", root) if (r / "train").is_dir()), None)
            if root is None:
                raise MissingData(
                    f"an ImageNet folder (train/<class>/, val/<class>/) should be {workspace.root} or lie in it"
                )
        try:
            source = sources.load(self.name, split=self.split, root=root, limit=limit, size=self.size)
        except FileNotFoundError as error:
            raise MissingData(str(error)) from error
        return source if self.classes is None else _only(source, self.classes, self.limit)


def _only(source: Source, classes: tuple[str, ...], limit: int | None) -> Source:
    """The samples of some classes, renumbered; with ``limit``, so many, evenly over them."""
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
class Trained(Stage):
    """A model trained on a data set and tested on another after each epoch. Its outcome is the model, in eval mode."""

    kind: ClassVar[str] = "model"
    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "training"
    unit: ClassVar[str] = "steps"
    files: ClassVar[tuple[str, ...]] = ("model.json", "checkpoint.json")
    data: DataStage
    test: DataStage
    config: TrainConfig

    def make(self, workspace: Workspace, folder: Path, report: Progress) -> None:
        train(
            self.config,
            workspace.open(self.data),
            workspace.open(self.test),
            folder,
            device=workspace.device,
            progress=report,
        )

    def load(self, workspace: Workspace, folder: Path) -> Model:
        return load(folder).to(workspace.device)

    def check(self, folder: Path) -> None:
        load(folder)

    def discard(self, folder: Path) -> None:
        RunFolder(folder).clear()

    def identity(self, folder: Path) -> str:
        return fingerprint(load(folder))

    def may_pause(self, done: int, total: int) -> bool:
        if not self.config.checkpoint_every:
            return False
        piece = total // self.config.epochs * self.config.checkpoint_every
        return done > piece and done % piece == 1 % piece  # one stage on, when the checkpoint has been written


@dataclass(frozen=True)
class Constructed(DataStage):
    """A set made by a recipe with a model from data."""

    kind: ClassVar[str] = "set"
    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "building"
    unit: ClassVar[str] = "images"
    files: ClassVar[tuple[str, ...]] = ("manifest.json",)
    recipe: Recipe
    model: Trained
    data: DataStage
    seed: int = 0
    batch_size: int = 250
    amp: str = "none"
    dtype: str = "float32"

    @property
    def shard_size(self) -> int:
        """Images of a shard."""
        return _SHARD * self.batch_size

    def make(self, workspace: Workspace, folder: Path, report: Progress) -> None:
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
            any_source=True,  # which model makes a set is what an experiment says
            progress=report,
        )

    def load(self, workspace: Workspace, folder: Path) -> ConstructedSet:
        return ConstructedSet.open(folder, verify=False)

    def check(self, folder: Path) -> None:
        ConstructedSet.open(folder, verify=True)

    def discard(self, folder: Path) -> None:
        (folder / "manifest.json").unlink(missing_ok=True)  # its shards stay, and those that are whole are kept

    def identity(self, folder: Path) -> str:
        return ConstructedSet.open(folder, verify=False).fingerprint

    def may_pause(self, done: int, total: int) -> bool:
        return 0 < done < total and done % self.shard_size == 0


@dataclass(frozen=True)
class Measurement(Stage):
    """A stage whose outcome is a dict of JSON values, kept in a file."""

    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "evaluating"
    unit: ClassVar[str] = "samples"
    files: ClassVar[tuple[str, ...]] = ("outcome.json",)

    def measure(self, workspace: Workspace, report: Progress) -> dict:
        raise NotImplementedError

    def make(self, workspace: Workspace, folder: Path, report: Progress) -> None:
        write_json(folder / "outcome.json", self.measure(workspace, report))

    def load(self, workspace: Workspace, folder: Path) -> dict:
        return read_json(folder / "outcome.json")

    def check(self, folder: Path) -> None:
        read_json(folder / "outcome.json")


@dataclass(frozen=True)
class Evaluated(Measurement):
    """Clean and robust accuracy of a model on data, and how often it says the class after the label.

    Outcome: ``clean`` and ``next`` as shares, ``robust`` a share for each attack with the attack's own statistics.
    limit: only so many samples, evenly spaced.
    """

    kind: ClassVar[str] = "evaluation"
    model: Trained
    data: DataStage
    attacks: tuple[Attack, ...] = ()
    limit: int | None = None
    batch_size: int = 500

    def measure(self, workspace: Workspace, report: Progress) -> dict:
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
    """The stages and all that they are made from, by key, each after what it needs."""
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.key not in found:
            found |= {k: s for k, s in all_stages(stage.needs()).items() if k not in found}
            found[stage.key] = stage
    return found
