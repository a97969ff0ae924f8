"""Runs an experiment in a workspace and stores its results as JSON and its pictures."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from advfeat.datasets.registry import known
from advfeat.experiments.base import Stage
from advfeat.experiments.experiment import Experiment
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Picture, Result, Verdict
from advfeat.experiments.stages import Data, Trained
from advfeat.experiments.workspace import Workspace
from advfeat.files import write_together
from advfeat.json_files import read_json, to_json
from advfeat.provenance import provenance

_FORMAT = "advfeat-experiment-1"
_PAGE = {
    "format": str,
    "name": str,
    "title": str,
    "source": str,
    "paper": str,
    "preset": {"name": str, "differs": str},
    "tables": [{"title": str, "columns": list, "rows": [{"name": str, "cells": list}], "caption": str}],
    "findings": [{"claim": str, "verdict": re.compile("|".join(get_args(Verdict))), "observed": str, "against": str}],
    "differences": [str],
    "why_different": [str],
    "notes": [str],
    "seeds": [range(2**63)],
    "curves": list,
    "cost": dict,
    "seconds": float,
    "date": str,
    "versions": dict,
    "platform": str,
    "device": str,
    "threads": range(2**31),
    "pictures": [{"name": re.compile(r"[\w.-]+"), "title": str, "caption": str}],
}


@dataclass(frozen=True)
class Page:
    """A completed experiment.

    Attributes:
        results: Results as JSON values, with settings and provenance.
        pictures: Its figures.
    """

    results: dict
    pictures: list[Picture]


def run_experiment(
    experiment: Experiment, workspace: Workspace, preset: Preset, meanwhile: Iterable[Stage] = ()
) -> Page:
    """Run an experiment and write ``results/<name>.json`` and ``results/<name>-<picture>.png`` in the workspace.

    Args:
        experiment: The experiment.
        workspace: The workspace.
        preset: The preset.
        meanwhile: Stages to work on while other processes run everything that is left, see :meth:`Workspace.do`.

    Returns:
        The completed experiment.

    Raises:
        MissingData: If data that the user has to provide is missing.
        Pause: If the time limit of the workspace is reached.
    """
    experiment.check(preset)
    stages, preset = experiment.stages(preset), experiment.setting(preset)
    threads = torch.get_num_threads()
    torch.set_num_threads(preset.threads or threads)
    try:
        for stage in stages.values():
            if isinstance(stage, Data):
                workspace.open(stage)  # fails before hours of work if it is missing
        workspace.do(stages.values(), meanwhile)
        result = experiment.report(workspace, preset, experiment.plan(preset))
        made_with = provenance(workspace.device)
    finally:
        torch.set_num_threads(threads)
    stages |= {stage.key: stage for stage in result.also}
    cost = workspace.cost(stages.values())
    results = {
        "format": _FORMAT,
        "name": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "paper": experiment.paper,
        "preset": preset.to_dict(),
        "data": [_describe(workspace, stage) for stage in stages.values() if isinstance(stage, Data)],
        **result.to_dict(),
        "seeds": list(preset.seeds[: _seeds(result)]),
        "curves": [_curve(workspace, stage) for stage in stages.values() if isinstance(stage, Trained)],
        "cost": cost,
        "seconds": round(math.fsum(cost.values()), 2),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        **made_with,
    }
    if not known(preset.dataset).of_the_paper:
        results["differences"] = []  # only the pattern is comparable with the paper, not the size of the numbers
    results["pictures"] = [{"name": x.name, "title": x.title, "caption": x.caption} for x in result.pictures]
    pictures = [(picture_path(workspace.out, experiment.name, x.name), x.png) for x in result.pictures]
    write_together([*pictures, (workspace.out / "results" / f"{experiment.name}.json", to_json(results))])
    return Page(results, result.pictures)


def _seeds(result: Result) -> int:
    """Return the number of seeds behind the numbers: some experiments use only the first."""
    numbers = [cell.ours for table in result.tables for _, cells in table.rows for cell in cells if cell.ours]
    return max((len(number.values) for number in numbers), default=1)


def picture_path(out: Path, experiment: str, picture: str) -> Path:
    """Return the path of a picture of an experiment.

    Args:
        out: Folder of the workspace.
        experiment: Name of the experiment.
        picture: Name of the picture.
    """
    return Path(out) / "results" / f"{experiment}-{picture}.png"


def read_page(out: Path, experiment: str) -> Page | None:
    """Read an experiment that was completed earlier.

    Args:
        out: Folder of the workspace.
        experiment: Name of the experiment.

    Returns:
        The experiment; None if it was not completed, or its files are damaged or have another format.
    """
    path = Path(out) / "results" / f"{experiment}.json"
    try:
        results = read_json(path, _PAGE)
        if results["format"] != _FORMAT:
            return None
        pictures = [
            Picture(x["name"], x["title"], picture_path(out, experiment, x["name"]).read_bytes(), x["caption"])
            for x in results["pictures"]
        ]
    except (OSError, ValueError):
        return None
    return Page(results, pictures)


def _curve(workspace: Workspace, stage: Trained) -> dict:
    """Return the accuracy after each epoch in per cent, on the training set while training and on the test set.

    Trainings with the same name are in the order of the seeds.
    """
    history = workspace.history(stage)
    found: dict = {"trained on": stage.label}
    for key in ("train_accuracy", "test_accuracy"):
        found[key] = [None if epoch[key] is None else round(100 * epoch[key], 2) for epoch in history]
    return found


def _describe(workspace: Workspace, stage: Data) -> dict:
    source = workspace.open(stage)
    return {
        "name": source.name,
        "split": source.split,
        "samples": len(source),
        "image_shape": list(source.image_shape),
        "classes": list(source.classes),
        "fingerprint": source.fingerprint,
    }
