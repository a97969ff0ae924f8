"""Draws every figure of docs/theory.md into this folder: python docs/figures/draw.py [--data DIR --models DIR]

The figure of features on real images is left as it is without --data, a folder with CIFAR-10 in torchvision's layout,
and --models, the models/ folder that ``advfeat demo --preset cifar10-cpu`` leaves: twelve minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

import advfeat
from advfeat.datasets import sources
from advfeat.features import KINDS, attacked_ranges, draw_scatter, usefulness
from advfeat.models import attack_copy, load
from advfeat.theory import figures
from advfeat.theory.command import TheoryConfig, make_task

HERE = Path(__file__).resolve().parent
EPS = 0.25


def theory() -> None:
    task = make_task(TheoryConfig())
    figures.figure4(HERE / "figure4.png")
    figures.figure14(HERE / "figure14.png")
    figures.robust_spectrum(HERE / "theorem2.png", task)
    figures.relaxation(HERE / "relaxation.png")
    figures.alignment(HERE / "theorem3.png", task)


def real_features(root: Path, models: Path) -> None:
    """Every feature of the representations of a standard and an adversarially trained network, on CIFAR-10."""
    test = sources.load("cifar10", "test", root, limit=500)
    attack = advfeat.PGD(advfeat.L2(EPS), steps=10)
    figure = Figure(figsize=(11, 4.4), dpi=figures.DPI, layout="constrained")
    for axis, name, title in zip(
        figure.subplots(1, 2, sharex=True, sharey=True),
        ("D", "D-adversarially"),
        ("standard training", "adversarial training at L2 0.5"),
        strict=True,
    ):
        (folder,) = models.glob(f"{name}-{'[0-9a-f]' * 12}")
        model = attack_copy(load(folder))
        found = usefulness(attacked_ranges(model.representation, test.images(), attack), test.labels)
        draw_scatter(axis, found, f"{title}, attacked at L2 {EPS}")
        counts = {kind: found.kinds.count(kind) for kind in KINDS}
        means = {"rho": float(found.rho.max(1).mean()), "gamma": float(found.gamma.max(1).mean())}
        print(json.dumps({"training": name, **counts, **means, "stuck": float(found.stuck.mean())}))
        print(json.dumps(found.rows()[:3]))
    figures.save_png(figure, HERE / "usefulness.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with cifar-10-batches-py")
    parser.add_argument("--models", type=Path, help="folder with D-*/ and D-adversarially-*/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    theory()
    if options.data and options.models:
        real_features(options.data, options.models)
