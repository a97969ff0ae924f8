"""Models and images that the benchmarks attack: trained and real where given, small stand-ins otherwise."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from advfeat.datasets import sources
from advfeat.datasets.base import ArraySource, Source
from advfeat.models import create, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="the folder that the data set lies in")
    parser.add_argument("--dataset", default="cifar10", help="its name, as advfeat.datasets.load has it")
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--model", type=Path, help="a run folder with a trained model")


def images(options: argparse.Namespace, limit: int, otherwise: str) -> Source:
    """Images of the data set in ``--data``; without it scikit-learn's "digits", or "random" ones of CIFAR-10's size."""
    if options.data is not None:
        return sources.load(options.dataset, options.split, options.data, limit=limit)
    if otherwise == "digits":
        return sources.load("digits", options.split, limit=limit)
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (limit, 3, 32, 32), dtype=torch.uint8, generator=g)
    labels = torch.randint(10, (limit,), generator=g)
    return ArraySource(pixels, labels, [str(i) for i in range(10)], "random images", options.split)


def fresh_or_saved(options: argparse.Namespace, source: Source, arch: str, device: torch.device) -> nn.Module:
    """The model in ``--model``, or an untrained one, whose cost is the same.

    Contiguous: some libraries fail on the gradient that other layouts give.
    """
    model = load(options.model) if options.model else create(arch, len(source.classes), source.image_shape)
    return model.to(device, memory_format=torch.contiguous_format).eval()


def standard(options: argparse.Namespace, source: Source, device: torch.device, epochs: int = 8) -> nn.Module:
    """The model in ``--model``, or a small network trained on some of the training images, in seconds."""
    if options.model:
        return fresh_or_saved(options, source, "", device)
    known = sources.load(source.name, "train", options.data, limit=5000)
    x, y = known.images().contiguous().to(device), known.labels.to(device)
    model = create("small-convnet", len(source.classes), source.image_shape, width=16).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * -(-len(x) // 64))
    g = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=g).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def radius(options: argparse.Namespace, source: Source) -> float:
    """``--eps``, or an L2 radius at which a standard model of these images falls: 1.5 for digits, else 0.5."""
    return options.eps if options.eps is not None else 1.5 if source.name == "digits" else 0.5


def described(options: argparse.Namespace, source: Source, model: nn.Module) -> dict:
    """What every result says about its subject."""
    return {
        "images": f"{source.name} {source.split}",
        "arch": getattr(model, "arch", None) or type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": "saved" if options.model else "made for this run",
    }
