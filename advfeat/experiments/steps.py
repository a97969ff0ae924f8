"""The work of an experiment as values: data, trained models, constructed sets, measurements, each made from others.

A step is known by the hash of its description, which holds the descriptions of all it is made from. Two experiments
that need the same model therefore name the same step, and :class:`advfeat.experiments.lab.Lab` does it once.
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
from advfeat.datasets import build, sources
from advfeat.datasets.base import ArraySource, Source, balanced_subset
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

    from advfeat.experiments.lab import Lab


# Batches of a shard; a set that is stopped goes on after its last whole one. Under a stop rule each ends with passes
# that are not full, so few batches would cost time.
_SHARD = 8


class MissingData(FileNotFoundError):
    """Data of the user's that is not where it was looked for."""


def _label() -> str:
    return field(default="", compare=False, kw_only=True)


@dataclass(frozen=True)
class Step:
    """Base of all steps: frozen, described by their fields.

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
        """Everything the outcome depends on, as JSON values; of other steps, their descriptions."""
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

    def needs(self) -> Iterator[Step]:
        """The steps that it is made from."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            yield from (v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Step))


def _described(value: object) -> object:
    if isinstance(value, Step):
        return value.describe()
    if isinstance(value, tuple):
        return [_described(item) for item in value]
    return as_json(value)


@dataclass(frozen=True)
class DataStep(Step):
    """A step whose outcome is a data set: made when it is asked for, or kept."""


@dataclass(frozen=True)
class Data(DataStep):
    """A data set by name, see :func:`advfeat.datasets.sources.load`.

    limit: so many samples, evenly over the classes. classes: only these, renumbered in this order.
    """

    kind: ClassVar[str] = "data"
    name: str
    split: Literal["train", "test"] = "train"
    limit: int | None = None
    classes: tuple[str, ...] | None = None
    size: int | None = None

    def open(self, lab: Lab) -> Source:
        limit = self.limit if self.classes is None else None
        root = lab.root
        if root is None and self.name != "digits":
            raise MissingData(f"{self.name} is the user's own: say with --root (or ADVFEAT_DATA) where it lies")
        if self.name == "restricted-imagenet":
            root = next((r for r in (root / "imagenet", root) if (r / "train").is_dir()), None)
            if root is None:
                raise MissingData(
                    f"an ImageNet folder (train/<class>/, val/<class>/) should be {lab.root} or lie in it"
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
class Trained(Step):
    """A model trained on a data set and tested on another after each epoch. Its outcome is the model, in eval mode."""

    kind: ClassVar[str] = "model"
    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "training"
    unit: ClassVar[str] = "steps"
    files: ClassVar[tuple[str, ...]] = ("model.json", "checkpoint.json")
    data: DataStep
    test: DataStep
    config: TrainConfig

    def make(self, lab: Lab, folder: Path, report: Progress) -> None:
        train(self.config, lab.open(self.data), lab.open(self.test), folder, device=lab.device, progress=report)

    def load(self, lab: Lab, folder: Path) -> Model:
        return load(folder).to(lab.device)

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
        return done > piece and done % piece == 1 % piece  # one step on, when the checkpoint has been written


@dataclass(frozen=True)
class Constructed(DataStep):
    """A set made by a recipe with a model from data."""

    kind: ClassVar[str] = "set"
    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "building"
    unit: ClassVar[str] = "images"
    files: ClassVar[tuple[str, ...]] = ("manifest.json",)
    recipe: Recipe
    model: Trained
    data: DataStep
    seed: int = 0
    batch_size: int = 250
    amp: str = "none"
    dtype: str = "float32"

    @property
    def shard_size(self) -> int:
        """Images of a shard."""
        return _SHARD * self.batch_size

    def make(self, lab: Lab, folder: Path, report: Progress) -> None:
        build.build(
            self.recipe,
            lab.open(self.model),
            lab.open(self.data),
            folder,
            seed=self.seed,
            batch_size=self.batch_size,
            shard_size=self.shard_size,
            dtype=self.dtype,
            device=lab.device,
            autocast=torch.bfloat16 if self.amp == "bf16" else None,
            any_source=True,  # which model makes a set is what an experiment says
            progress=report,
        )

    def load(self, lab: Lab, folder: Path) -> ConstructedSet:
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
class Measurement(Step):
    """A step whose outcome is a dict of JSON values, kept in a file."""

    kept: ClassVar[bool] = True
    doing: ClassVar[str] = "evaluating"
    unit: ClassVar[str] = "samples"
    files: ClassVar[tuple[str, ...]] = ("outcome.json",)

    def measure(self, lab: Lab, report: Progress) -> dict:
        raise NotImplementedError

    def make(self, lab: Lab, folder: Path, report: Progress) -> None:
        write_json(folder / "outcome.json", self.measure(lab, report))

    def load(self, lab: Lab, folder: Path) -> dict:
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
    data: DataStep
    attacks: tuple[Attack, ...] = ()
    limit: int | None = None
    batch_size: int = 500

    def measure(self, lab: Lab, report: Progress) -> dict:
        source = lab.open(self.data)
        found = evaluate(
            lab.open(self.model),
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


def all_steps(steps: Iterable[Step]) -> dict[str, Step]:
    """The steps and all that they are made from, by key, each after what it needs."""
    found: dict[str, Step] = {}
    for step in steps:
        if step.key not in found:
            found |= {k: s for k, s in all_steps(step.needs()).items() if k not in found}
            found[step.key] = step
    return found
