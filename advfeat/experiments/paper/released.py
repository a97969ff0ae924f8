"""The sets released by the paper's authors: models trained on them, and a round trip of their format."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from advfeat.datasets.base import Source
from advfeat.datasets.exchange import export_lists, import_lists
from advfeat.experiments.base import DataStage, Measurement, MissingData
from advfeat.experiments.claims import Measured, more_robust
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.presets import SETS, Preset
from advfeat.experiments.result import Cell, Finding, Result, Table, compare, fewest_seeds, worst
from advfeat.experiments.shared_stages import (
    TITLES,
    clean,
    constructed,
    evaluated,
    evaluated_as_paper,
    follows,
    outcomes,
    robust,
    trained,
)
from advfeat.experiments.stages import Constructed
from advfeat.progress import Progress

if TYPE_CHECKING:
    from advfeat.experiments.workspace import Workspace

# Accuracy and robust accuracy at 0.25, as stated by the release.
PAPER = {"robust": (84.0, 48.0), "nonrobust": (88.0, 0.0), "rand": (63.0, 0.0), "det": (44.0, 0.0)}
# Folder names in the archive, and in its description.
_FOLDERS = {
    "robust": ("d_robust_CIFAR", "robust_CIFAR"),
    "nonrobust": ("d_non_robust_CIFAR", "non_robust_CIFAR"),
    "rand": ("drand_CIFAR", "d_rand_CIFAR"),
    "det": ("ddet_CIFAR", "d_det_CIFAR"),
}
_BELOW = ("", "released", "datasets", "constructed_datasets", "release_datasets")


@dataclass(frozen=True)
class Released(DataStage):
    """One of the authors' sets, from the user's copy below the workspace's root.

    Attributes:
        name: One of ``SETS``.
    """

    kind: ClassVar[str] = "released"
    name: str

    def open(self, workspace: Workspace) -> Source:
        """Import the set.

        Args:
            workspace: The workspace.

        Returns:
            The set.

        Raises:
            MissingData: If it is not below the workspace's root.
        """
        folder = find(workspace.root, self.name)
        if folder is None:
            raise MissingData(f"no folder {' or '.join(_FOLDERS[self.name])} in {workspace.root}")
        return import_lists(folder, name=f"released {TITLES[self.name]}")


def find(root: Path | None, key: str) -> Path | None:
    """Return the folder of one of the released sets.

    Args:
        root: Folder to search.
        key: One of ``SETS``.

    Returns:
        The folder, None if it does not exist.
    """
    if root is None:
        return None
    for below in _BELOW:
        for name in _FOLDERS[key]:
            if (Path(root) / below / name / "CIFAR_ims").is_file():
                return Path(root) / below / name
    return None


@dataclass(frozen=True)
class RoundTrip(Measurement):
    """Whether a set written in the authors' format and read back has the same images and labels.

    Attributes:
        data: The set.
    """

    kind: ClassVar[str] = "round-trip"
    doing: ClassVar[str] = "exporting and importing"
    data: Constructed

    def measure(self, workspace: Workspace, report: Progress) -> dict:
        """See :meth:`Measurement.measure`."""
        made = workspace.open(self.data)
        with tempfile.TemporaryDirectory(dir=workspace.out) as folder:
            export_lists(made, folder)
            back = import_lists(folder, made.classes)
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            equal = torch.equal(back.labels, made.labels)
            for rows in torch.arange(len(made), device="cpu").split(1000):
                equal &= torch.equal(back.images(rows), made.images(rows))
                report(int(rows[-1]) + 1, len(made))
        return {"samples": len(made), "bytes": size, "equal": bool(equal)}


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    # Only the workspace knows whether the authors' sets are available; one of our own sets suffices for the format.
    return {"format": [RoundTrip(constructed(p, "det", p.seeds[0]), label=TITLES["det"])]}


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements, and train on the released sets that are available.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    (trip,) = (workspace.open(step) for step in steps["format"])
    accuracy, robustness, chance = {}, {}, 10.0
    findings = [
        Finding(
            "A set built here, written in the authors' format and read back, is unchanged.",
            "An image or a label that differs.",
            f"{TITLES['det']}, {trip['samples']:,} images: {'identical to the bit' if trip['equal'] else 'different'}.",
            "supported" if trip["equal"] else "contradicted",
            seeds=None,
        )
    ]
    here = [key for key in SETS if p.dataset == "cifar10" and find(workspace.root, key) is not None]
    rows, also = [], []
    for key in SETS:
        if key not in here:
            paper_clean, paper_robust = PAPER[key]
            rows.append((TITLES[key], (Cell(None, paper_clean, True), Cell(), Cell(None, paper_robust, True))))
            continue
        workspace.open(Released(key))  # so that models trained on another copy are detected
        models = [trained(p, Released(key), p.on[key], f"released {TITLES[key]}", seed) for seed in p.seeds]
        evaluations = [evaluated(p, m, radii=(0.25,)) for m in models]
        as_paper = [evaluated_as_paper(p.replace(radii=(0.25,)), m) for m in models]
        also += [*models, *evaluations, *as_paper]
        found, papers = outcomes(workspace, evaluations), outcomes(workspace, as_paper)
        accuracy[key], robustness[key] = clean(papers), robust(found, 0)
        paper_clean, paper_robust = PAPER[key]
        cells = (
            Cell(accuracy[key], paper_clean, True),
            Cell(robustness[key]),
            Cell(robust(papers, 0), paper_robust, True),
        )
        rows.append((TITLES[key], cells))
        if key in ("rand", "det"):
            parts = [compare(accuracy[key], 2 * chance)] + (
                [compare(accuracy[key], follows(papers))] if key == "det" else []
            )
            findings.append(
                Finding(
                    f"A network trained on the released {TITLES[key]} learns the true classes.",
                    "Accuracy no more than twice chance"
                    + (", or below the share predicted as the class after the label." if key == "det" else "."),
                    f"{accuracy[key]} on the true test set.",
                    worst(parts),
                    seeds=fewest_seeds(accuracy[key]),
                )
            )
    if {"robust", "nonrobust"} <= robustness.keys():
        findings.append(
            more_robust(
                "Training on the released D_R makes a network robust, training on the released D_NR does not.",
                "No higher robust accuracy from D_R than from D_NR.",
                Measured(TITLES["robust"], accuracy["robust"], [robustness["robust"]]),
                Measured(TITLES["nonrobust"], accuracy["nonrobust"], [robustness["nonrobust"]]),
                radii=(0.25,),
                chance=chance,
            )
        )
    absent = [name for key in SETS if key not in here for name in _FOLDERS[key][:1]]
    notes = []
    if absent:
        notes.append(
            f"Not available: {', '.join(absent)}. Unpack the authors' archive (linked from github.com/MadryLab/"
            "constructed-datasets) below --root, or in a folder released there, to train on these sets."
        )
    return Result(
        tables=[
            Table(
                "Models trained on the released sets",
                ("trained on", "accuracy, %", "robust at 0.25, %", "paper's attack at 0.25, %"),
                tuple(rows),
                "The release's own numbers are rounded. A ResNet-50 that others trained on D was reported to classify "
                "38 % of D_det's and 42 % of D_rand's images as their new labels.",
            )
        ],
        findings=findings,
        notes=notes,
        also=also,
    )


EXPERIMENT = Experiment(
    name="released",
    title="The authors' own sets",
    source="The release of the sets",
    paper="accuracy / robust at 0.25: D_R 84 / 48, D_NR 88 / 0, D_rand 63 / 0, D_det 44 / 0",
    plan=plan,
    report=report,
    needs="the authors' archive, unpacked below --root; without it only the format is checked, on a set built here",
)
