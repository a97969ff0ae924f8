"""The report of the main experiment: its results in words, and pictures of its sets."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path

import torch

from advfeat.datasets import sources
from advfeat.datasets.recipes import MatchRepresentation
from advfeat.datasets.store import ConstructedSet
from advfeat.experiments.main_experiment import LABELS, TITLES, MainExperiment, Outcome, describe_set
from advfeat.report.page import write_report
from advfeat.report.plots import sample_grid, training_curves

_SUBSCRIPT = {
    "robust": "D<sub>R</sub>",
    "nonrobust": "D<sub>NR</sub>",
    "rand": "D<sub>rand</sub>",
    "det": "D<sub>det</sub>",
}
_LABELLED = {"robust": "true", "nonrobust": "true", "rand": "random target", "det": "next class"}
_EXPLAINED = {
    "robust": "images that hold only what the adversarially trained model uses; all else in them is unrelated to the "
    "label. Standard training on them should give a robust model.",
    "nonrobust": "the same with the standard model: accuracy, but no robustness.",
    "rand": "images with a small perturbation towards a random class, labelled with it. To a person almost all "
    "labels are wrong; the only thing that goes with the label is the perturbation.",
    "det": "the same towards the next class: here what a person sees points to a wrong label.",
}


def write_main_report(config: MainExperiment, outcome: Outcome, out: Path, *, command: str, root: Path | None) -> Path:
    """Writes ``out/index.html`` for a finished experiment; returns its path."""
    results = outcome.results
    true_train = sources.load(config.dataset, split="train", root=root, limit=config.limit)
    pictures = {"curves": training_curves(results["curves"], LABELS)}
    for key, path in outcome.sets.items():
        pictures[key] = _samples(ConstructedSet.open(path, verify=False), true_train, config, key)
    shape = " x ".join(map(str, results["dataset"]["image_shape"][1:]))
    seen = sum(f["holds"] for f in results["findings"])
    page = {
        "title": f"Robust and non-robust features in {_title(config.dataset)}",
        "summary": (
            f"The main experiment of “Adversarial Examples Are Not Bugs, They Are Features” (Ilyas et al., 2019), done "
            f"anew on {_title(config.dataset)}. Of the {len(results['findings'])} claims checked below, {seen} were "
            "seen."
        ),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "seconds": results["seconds"],
        "machine": (
            f"{results['device']}, {_count(results['threads'], 'thread')}, "
            f"torch {results['versions']['torch']}, {platform.system()}"
        ),
        "dataset": {
            **results["dataset"],
            "title": _title(config.dataset),
            "describe": f"{results['dataset']['train_samples']:,} training and "
            f"{results['dataset']['test_samples']:,} test images of {shape} pixels",
        },
        "radii": [f"{eps:g}" for eps in config.radii],
        "norm_name": {"l2": "L2", "linf": "L∞"}[config.norm],
        "rows": [{**row, "label": LABELS[row["key"]]} for row in results["rows"]],
        "attack": {"describe": _attack_in_words(results["attack"])},
        "set_explanations": [{"name": _SUBSCRIPT[k], "text": _EXPLAINED[k]} for k in TITLES],
        "findings": results["findings"],
        "sets": [
            {
                **s,
                "label": _SUBSCRIPT[s["key"]],
                "labelled": _LABELLED[s["key"]],
                "describe": describe_set(config.recipes[s["key"]]),
            }
            for s in results["sets"]
        ],
        "command": command,
        "settings": json.dumps({k: v for k, v in results.items() if k not in ("curves", "findings")}, indent=2),
    }
    return write_report(page, pictures, out)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _title(dataset: str) -> str:
    names = {
        "digits": "scikit-learn's digits",
        "cifar10": "CIFAR-10",
        "mnist": "MNIST",
        "fashion-mnist": "Fashion-MNIST",
    }
    return names.get(dataset, dataset)


def _attack_in_words(attack: dict) -> str:
    starts = f"{attack['restarts']} random starts" if attack["restarts"] > 1 else "from the image itself"
    return (
        f"projected gradient descent on the logit margin, {attack['steps']} steps of 2.5 × radius / {attack['steps']}, "
        f"{starts}, every iterate counted"
    )


def _samples(made: ConstructedSet, true_train, config: MainExperiment, key: str) -> bytes:
    """Ten images of a set beside what they were made from, spread over the stored labels."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(made), generator=generator)
    classes = len(made.classes)
    picked: list[int] = []
    for want in range(min(classes, 10)):
        picked += [int(i) for i in order if int(made.labels[i]) == want][:1]
    index = torch.tensor(picked)
    images, sources_of = made.images(index), true_train.images(made.source_index[index])
    names = made.classes
    if isinstance(config.recipes[key], MatchRepresentation):
        rows = [("labelled image", sources_of)]
        starts = made.start_index[index]
        if bool((starts >= 0).all()):
            start_images = true_train.images(starts)
            rows.append(("start", start_images))
            difference = ("constructed\nminus start", images - start_images)
        else:
            difference = ("constructed\nminus labelled", images - sources_of)
        rows.append(("constructed", images))
        captions = [f"label {names[int(made.labels[i])]}" for i in index]
    else:
        rows = [("original", sources_of), ("constructed", images)]
        difference = ("difference", images - sources_of)
        captions = [f"{names[int(made.original_labels[i])]}\n→ {names[int(made.labels[i])]}" for i in index]
    return sample_grid(rows, captions, difference)
