"""A control without any non-robust feature: fixed patterns in the place of adversarial perturbations.

If each image gets the pattern of its target class, a drawing that has nothing to do with any model, and the images
whose target is their own label get none, then a model can learn the true classes from these few images alone: wherever
there is no pattern, what one sees is right. A test image has no pattern. Accuracies like those of Table 1 can thus
arise without a non-robust feature (public replication scripts saw 79.5 and 32.3 % with a ResNet-9), and a construction
has to be asked whether it leaves such a hole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from advfeat.datasets.base import ArraySource, Source
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.measurements import predictions
from advfeat.experiments.paper.table9 import on_robust_source
from advfeat.experiments.presets import Preset
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
from advfeat.experiments.stages import Constructed, DataStage, Trained
from advfeat.random import generator

if TYPE_CHECKING:
    from advfeat.experiments.workspace import Workspace

_GRID = 4  # cells a side of a pattern


@dataclass(frozen=True)
class Patterned(DataStage):
    """Images with the fixed pattern of their target class, an L2 distance of at most eps, labelled with the target.

    labels: "rand", drawn at random; "det", the class after the true one. spared: images without a pattern: "target",
    those whose target is their label; or a model, those that it takes for their target; None for none.
    """

    kind: ClassVar[str] = "patterned"
    data: DataStage
    labels: Literal["rand", "det"]
    eps: float
    spared: Literal["target"] | Trained | None
    seed: int = 0

    def open(self, workspace: Workspace) -> Source:
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
    """A random checkerboard a class, [classes, C, H, W], each of L2 norm eps."""
    channels, height, width = shape
    coarse = torch.randn(
        classes, channels, _GRID, _GRID, dtype=torch.float32, device="cpu", generator=generator(seed, "patterns")
    ).sign()
    full = F.interpolate(coarse, size=(height, width), mode="nearest")
    return eps * full / full.flatten(1).norm(dim=1)[:, None, None, None]


@dataclass(frozen=True)
class Without(DataStage):
    """A constructed set without the samples that could leak: whose label is the true one ("true label"), or that the
    source model took for it before any step ("already there")."""

    kind: ClassVar[str] = "part"
    data: Constructed
    leave_out: Literal["true label", "already there"]

    def open(self, workspace: Workspace) -> Source:
        made = workspace.open(self.data)
        keep = made.labels != made.original_labels
        if self.leave_out == "already there":
            said = _said(workspace, self.data.model, workspace.open(self.data.data))
            keep &= said[made.source_index] != made.labels
        return made.subset(keep)


def _said(workspace: Workspace, step: Trained, source: Source) -> torch.Tensor:
    """What a model takes each image of a data set for, on the CPU."""
    model = workspace.open(step)
    return torch.cat([predictions(model, images.to(workspace.device)).cpu() for _, images, _ in source.batches(500)])


def plan(p: Preset) -> Plan:
    eps = p.recipes["rand"].eps
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
            "D_rand, robust source, without true labels": Without(on_robust_source(p, "rand", seed).data, "true label"),
        }
        for name, made in sets.items():
            config = p.on["det" if name in _DET else "rand"]
            rows[name].append(trained(p, made, config, name, seed))
        for key in ("rand", "det"):
            rows[TITLES[key]].append(model(p, key, seed))
        rows["D_rand, robust source"].append(on_robust_source(p, "rand", seed))
    return {name: [evaluated(p, m, radii=()) for m in of_name] for name, of_name in rows.items()}


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    accuracy = {name: clean(outcomes(workspace, of_name)) for name, of_name in steps.items()}
    chance = guessing(workspace, p)
    table = Table(
        "Test accuracy on D",
        ("trained on", "accuracy, %"),
        tuple((name, (Cell(accuracy[name], *_ROWS[name]),)) for name in _ROWS),
        f"Patterns of L2 norm {p.recipes['rand'].eps:g}. Random targets: images whose target is their label are left "
        "as they are. Next class: those that a model after two epochs takes for their target. Beside the paper's "
        "numbers for D_rand and D_det stand those of public replications for the patterns (ResNet-9).",
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
                "As much from fixed patterns, where a tenth of the images is left alone.",
                f"{leak} from patterns, {rand} from D_rand; {closed} where every image has its pattern.",
                compare(2 * chance, leak),
                seeds=fewest_seeds(leak, rand, closed),
            ),
            Finding(
                "D_rand does not teach through the tenth of its images whose target is their label alone.",
                "Without them no more than twice chance.",
                f"{without} without them, {rand} with them.",
                compare(without, 2 * chance),
                seeds=fewest_seeds(without, rand),
            ),
            Finding(
                "D_det does not teach through images alone that its source took for the target from the start.",
                "Without them no more than twice chance.",
                f"{det_without} without them, {det} with them.",
                compare(det_without, 2 * chance),
                seeds=fewest_seeds(det_without, det),
            ),
            Finding(
                "Nor does the D_rand of a robust source (Table 9), whose perturbations hold few non-robust features, "
                "teach through that tenth alone.",
                "Without it no more than twice chance.",
                f"{of_robust_without} without it, {of_robust} with it.",
                compare(of_robust_without, 2 * chance),
                seeds=fewest_seeds(of_robust_without, of_robust),
            ),
        ],
        notes=[
            "The first claim is one that this control is made to refute: it says nothing against D_rand itself, only "
            "against taking accuracy on D for proof of non-robust features. The others ask the paper's sets "
            "whether they leave the same hole.",
        ],
    )


# The number beside ours, whether it is approximate, and whose it is.
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
