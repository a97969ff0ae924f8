"""Draws every figure of docs/theory.md into this folder: python docs/figures/draw.py [--data DIR]

Without --data (a folder with CIFAR-10 in torchvision's layout) the figure of features on real images is left as it is.
It trains two small networks: about half an hour on one core.
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
from advfeat.theory import figures
from advfeat.theory.command import TheoryConfig, make_task
from advfeat.training import TrainConfig, paper_attack, train

HERE = Path(__file__).resolve().parent
EPS = 0.25


def theory() -> None:
    task = make_task(TheoryConfig())
    figures.figure4(HERE / "figure4.png")
    figures.figure14(HERE / "figure14.png")
    figures.robust_spectrum(HERE / "theorem2.png", task)
    figures.relaxation(HERE / "relaxation.png")
    figures.alignment(HERE / "theorem3.png", task)


def real_features(root: Path) -> None:
    """The 64 features of a small network's representation on CIFAR-10, standard and adversarially trained."""
    data = sources.load("cifar10", "train", root, limit=20_000)
    test = sources.load("cifar10", "test", root, limit=1000)
    figure = Figure(figsize=(11, 4.4), dpi=figures.DPI, layout="constrained")
    for axis, (name, attack) in zip(
        figure.subplots(1, 2, sharex=True, sharey=True),
        (("standard training", None), ("adversarial training, $\\ell_2$ 0.5", paper_attack(0.5))),
        strict=True,
    ):
        config = TrainConfig(width=16, epochs=10, augment="crop-flip", attack=attack, eval_every=0)
        result = train(config, data, test)
        model = result.model
        ranges = attacked_ranges(model.representation, test.images(), advfeat.PGD(advfeat.L2(EPS), steps=10))
        found = usefulness(ranges, test.labels)
        draw_scatter(axis, found, f"{name}: CIFAR-10, attack $\\ell_2$ {EPS}")
        counts = {kind: found.kinds.count(kind) for kind in KINDS}
        accuracy = result.history[-1]["test_accuracy"]
        means = {"rho": float(found.rho.max(1).mean()), "gamma": float(found.gamma.max(1).mean())}
        print(
            json.dumps({"training": name, "accuracy": accuracy, **counts, **means, "stuck": float(found.stuck.mean())})
        )
        print(json.dumps(found.rows()[:5]))
    figures.save_png(figure, HERE / "usefulness.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with cifar-10-batches-py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    theory()
    if options.data:
        real_features(options.data)
