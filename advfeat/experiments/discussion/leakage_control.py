"""A control without any non-robust feature: fixed patterns instead of adversarial perturbations.

Each image gets the pattern of its target class, a drawing unrelated to any model, except that images whose target is
their own label get none. A model can then learn the true classes from these few images alone: without a pattern, the
image content gives the label. Test images have no pattern. Accuracies like those of Table 1 can thus arise without a
non-robust feature (public replication scripts report 79.5 and 32.3 % with a ResNet-9), and a construction has to be
checked for such a leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from advfeat.datasets.base import ArraySource, Source
from advfeat.experiments.base import DataStage, ModelStage
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.measurements import predictions
from advfeat.experiments.paper.table9 import made_by_robust_source, on_robust_source
from advfeat.experiments.presets import Preset, perturbing
from advfeat.experiments.result import Cell, Finding, Result, Table, compare, fewest_seeds
from advfeat.experiments.shared_stages import (
    TITLES,
    clean,
    constructed,
    data,
    evaluated,
    guessing,
    model,
    outcomes,
    trained,
)
from advfeat.experiments.stages import Constructed, Trained
from advfeat.random import generator

if TYPE_CHECKING:
    from advfeat.experiments.workspace import Workspace

_GRID = 4  # cells per side of a pattern


@dataclass(frozen=True)
class Patterned(DataStage):
    """Images with the fixed pattern of their target class, labelled with the target.

    Attributes:
        data: Images.
        labels: Targets: "rand" draws them at random, "det" takes the class after the true one.
        eps: L2 norm of a pattern in pixel scale [0, 1]; clipping to [0, 1] can shorten it.
        spared: Images without a pattern: "target", those whose target is their label; a model, those that it classifies
            as their target; None for none.
        seed: Seed of patterns and targets.
    """

    kind: ClassVar[str] = "patterned"
    data: DataStage
    labels: Literal["rand", "det"]
    eps: float
    spared: Literal["target"] | Trained | None
    seed: int = 0

    def open(self, workspace: Workspace) -> Source:
        """Create the set.

        Args:
            workspace: The workspace.

        Returns:
            The set.
        """
        source = workspace.open(self.data)
        images, classes, y = source.images(), len(source.classes), source.labels
        target = (y + 1) % classes
        if self.labels == "rand":
            target = torch.randint(
                classes, y.shape, device="cpu", generator=generator(self.seed, "patterns", "targets")
            )
        spared = torch.zeros(len(y), dtype=torch.bool, device="cpu")
        if self.spared == "target":
            spared = target == y
        elif isinstance(self.spared, Trained):
            spared = _said(workspace, self.spared, source) == target
        moved = (images + patterns(classes, source.image_shape, self.eps, self.seed)[target]).clamp_(0, 1)
        moved[spared] = images[spared]
        return ArraySource(moved, target, source.classes, f"{source.name} with patterns", source.split)


def patterns(classes: int, shape: tuple[int, int, int], eps: float, seed: int) -> torch.Tensor:
    """Return a random checkerboard for each class.

    Args:
        classes: Number of classes.
        shape: Shape (C, H, W) of an image.
        eps: L2 norm of each pattern.
        seed: Seed.

    Returns:
        float32 [classes, C, H, W].
    """
    channels, height, width = shape
    coarse = torch.randn(
        classes, channels, _GRID, _GRID, dtype=torch.float32, device="cpu", generator=generator(seed, "patterns")
    ).sign()
    full = F.interpolate(coarse, size=(height, width), mode="nearest")
    return eps * full / full.flatten(1).norm(dim=1)[:, None, None, None]


@dataclass(frozen=True)
class Without(DataStage):
    """A constructed set without the samples that could leak.

    Attributes:
        data: The set.
        leave_out: "true label" removes samples whose label is the true one; "already there" also removes those that the
            source model classified as the label before any step.
    """

    kind: ClassVar[str] = "part"
    data: Constructed
    leave_out: Literal["true label", "already there"]

    def open(self, workspace: Workspace) -> Source:
        """Create the subset.

        Args:
            workspace: The workspace.

        Returns:
            The subset.
        """
        made = workspace.open(self.data)
        keep = made.labels != made.original_labels
        if self.leave_out == "already there":
            said = _said(workspace, self.data.model, workspace.open(self.data.data))
            keep &= said[made.source_index] != made.labels
        return made.subset(keep)


def _said(workspace: Workspace, step: ModelStage, source: Source) -> torch.Tensor:
    """Return the classes that a model predicts for a data set, on the CPU."""
    model = workspace.open(step)
    return torch.cat([predictions(model, images.to(workspace.device)).cpu() for _, images, _ in source.batches(500)])


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    eps = perturbing(p.recipes, "rand").eps
    rows: dict[str, list[Trained]] = {name: [] for name in _ROWS}
    for seed in p.seeds:
        d = data(p)
        early = trained(p, d, p.standard.replace(epochs=2), "two epochs on D", seed)
        sets = {
            "patterns, random targets": Patterned(d, "rand", eps, "target", seed),
            "patterns on every image": Patterned(d, "rand", eps, None, seed),
            "patterns, next class": Patterned(d, "det", eps, early, seed),
            "D_rand without true labels": Without(constructed(p, "rand", seed), "true label"),
            "D_det without those already there": Without(constructed(p, "det", seed), "already there"),
            "D_rand, robust source, without true labels": Without(made_by_robust_source(p, "rand", seed), "true label"),
        }
        for name, made in sets.items():
            config = p.on["det" if name in _DET else "rand"]
            rows[name].append(trained(p, made, config, name, seed))
        for key in ("rand", "det"):
            rows[TITLES[key]].append(model(p, key, seed))
        rows["D_rand, robust source"].append(on_robust_source(p, "rand", seed))
    return {name: [evaluated(p, m, radii=()) for m in of_name] for name, of_name in rows.items()}


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    accuracy = {name: clean(outcomes(workspace, of_name)) for name, of_name in steps.items()}
    chance = guessing(workspace, p)
    table = Table(
        "Test accuracy on D",
        ("trained on", "accuracy, %"),
        tuple((name, (Cell(accuracy[name], *_ROWS[name]),)) for name in _ROWS),
        f"Patterns of L2 norm {perturbing(p.recipes, 'rand').eps:g}. Random targets: images whose target is their "
        "label are left unchanged. Next class: images that a model predicts as their target after two epochs are left "
        "unchanged. The reference numbers are the paper's for D_rand and D_det, and those of public replications "
        "(ResNet-9) for the patterns.",
    )
    rand, det, without = (accuracy[name] for name in ("D_rand", "D_det", "D_rand without true labels"))
    det_without = accuracy["D_det without those already there"]
    of_robust, of_robust_without = (accuracy[f"D_rand, robust source{part}"] for part in ("", ", without true labels"))
    leak, closed = accuracy["patterns, random targets"], accuracy["patterns on every image"]
    return Result(
        tables=[table],
        findings=[
            Finding(
                "Accuracy above twice chance on D, learned from labels that look random, needs non-robust features.",
                "The same from fixed patterns that leave a tenth of the images unchanged.",
                f"{leak} from patterns, {rand} from D_rand; {closed} if every image has its pattern.",
                compare(2 * chance, leak),
                seeds=fewest_seeds(leak, rand, closed),
            ),
            Finding(
                "The accuracy from D_rand is not due only to the tenth of its images whose target is their true label.",
                "Accuracy no more than twice chance without them.",
                f"{without} without them, {rand} with them.",
                compare(without, 2 * chance),
                seeds=fewest_seeds(without, rand),
            ),
            Finding(
                "The accuracy from D_det is not due only to images that its source classified as the target initially.",
                "Accuracy no more than twice chance without them.",
                f"{det_without} without them, {det} with them.",
                compare(det_without, 2 * chance),
                seeds=fewest_seeds(det_without, det),
            ),
            Finding(
                "The accuracy from D_rand with a robust source (Table 9), whose perturbations contain few non-robust "
                "features, is not due only to that tenth either.",
                "Accuracy no more than twice chance without it.",
                f"{of_robust_without} without it, {of_robust} with it.",
                compare(of_robust_without, 2 * chance),
                seeds=fewest_seeds(of_robust_without, of_robust),
            ),
        ],
        notes=[
            "This control is designed to refute the first claim. That is no evidence against D_rand itself, only "
            "against taking accuracy on D as proof of non-robust features. The other claims test whether the paper's "
            "sets have the same leak.",
        ],
    )


# The number beside ours, whether it is approximate, and its origin.
_ROWS: dict[str, tuple] = {
    "patterns, random targets": (79.5, True, "replication"),
    "patterns on every image": (None,),
    "patterns, next class": (32.3, True, "replication"),
    "D_rand": (63.3,),
    "D_rand without true labels": (None,),
    "D_det": (43.7,),
    "D_det without those already there": (None,),
    "D_rand, robust source": (25.2,),
    "D_rand, robust source, without true labels": (None,),
}
_DET = ("patterns, next class", "D_det without those already there")

EXPERIMENT = Experiment(
    name="leakage-control",
    title="A control without any non-robust feature",
    source="Public replications of Table 1",
    paper="79.5 (random) / 32.3 (next class) from fixed patterns alone",
    plan=plan,
    report=report,
)
