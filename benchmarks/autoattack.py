"""AutoAttack beside the authors' code, attack by attack: python -m benchmarks.autoattack

Both run the standard version through the same interface, each attack on the samples that survive those before it:
``advfeat.compat.autoattack`` and ``pyautoattack`` (or ``autoattack`` where the authors' repository is installed). For
each model and norm a row per library, seed and attack: seconds, passes through the model (samples forward and backward)
and the share of samples left. A summary compares the times, seed by seed, and the samples left: ``differ`` counts
samples that one library leaves and the other does not, ``reference_differs`` those on which two seeds of the reference
disagree.

The models: ``--model RUN`` one or more times; without it scikit-learn's digits and three models trained on the spot, a
small network, the same trained adversarially and a linear model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from advfeat.compat.autoattack import AutoAttack
from advfeat.datasets import sources
from advfeat.datasets.base import Source
from advfeat.models import adapt
from advfeat.models import load as load_model
from advfeat.training import TrainConfig, fast_attack, train
from benchmarks.measure import RESULTS, machine, say, spread, write_results
from benchmarks.plots import Bar, about, bars
from benchmarks.stand_ins import load

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# Radii at which a tenth to nine tenths of the samples fall, by data set.
RADII = {
    "digits": {"linf": 0.1, "l2": 0.75, "l1": 2.0},
    "cifar10": {"linf": 2 / 255, "l2": 0.25, "l1": 4.0},
}


PASSES = {"forward": 0, "backward": 0}


def _counted(logits: Tensor, x: Tensor) -> Tensor:
    PASSES["forward"] += len(x)
    if logits.requires_grad and x.requires_grad:
        logits.register_hook(_count_backward)
    return logits


def _count_backward(gradient: Tensor) -> None:
    PASSES["backward"] += len(gradient)


torch.fx.wrap("_counted")  # so that a traced copy of the model counts as well


class Counted(nn.Module):
    """A model that counts the samples that pass through it and through its copies, in ``PASSES``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return _counted(self.model(x), x)


def reference(model: nn.Module, norm: str, eps: float, seed: int) -> Any:
    """The authors' AutoAttack, from their repository or from the package index."""
    try:
        library = load("autoattack")
        return library.AutoAttack(model, norm=norm, eps=eps, seed=seed, version="standard", verbose=False, device="cpu")
    except ImportError:
        library = load("pyautoattack")
        return library.AutoAttack(model, norm=norm, eps=eps, seed=seed, version="standard")


def ours(model: nn.Module, norm: str, eps: float, seed: int) -> Any:
    """The same interface on advfeat's attacks."""
    return AutoAttack(model, norm=norm, eps=eps, seed=seed, version="standard", verbose=False, device="cpu")


LIBRARIES: dict[str, Callable[[nn.Module, str, float, int], Any]] = {"advfeat": ours, "auto-attack": reference}


def in_turn(library: str, model: nn.Module, norm: str, eps: float, seed: int, x: Tensor, y: Tensor) -> list[dict]:
    """A row for each attack: what it took, and which samples it left."""
    counted = Counted(model).eval()
    evaluation = LIBRARIES[library](counted, NORMS[norm], eps, seed)
    with torch.no_grad():
        left = (model(x).argmax(1) == y).nonzero()[:, 0]
    rows = []
    for name in ATTACKS:
        PASSES.update(forward=0, backward=0)
        began = time.perf_counter()
        if len(left):
            evaluation.attacks_to_run = [name]
            with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
                found = evaluation.run_standard_evaluation(x[left], y[left])
            found = found[0] if isinstance(found, tuple) else found  # pyautoattack: with the predictions
            with torch.no_grad():
                left = left[model(found).argmax(1) == y[left]]
        row = {
            "library": library,
            "norm": norm,
            "eps": eps,
            "seed": seed,
            "attack": name,
            "seconds": time.perf_counter() - began,
            **PASSES,
            "robust": len(left) / len(x),
            "left": left.tolist(),
        }
        rows.append(row)
        say(row, ("left",))
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """For each model, norm and attack, and for all attacks: the reference's time over advfeat's, and what is left."""
    found = []
    cases = dict.fromkeys((row["model"], row["norm"], row["eps"]) for row in rows)
    for model, norm, eps in cases:
        of_case = [row for row in rows if (row["model"], row["norm"]) == (model, norm)]
        seeds = sorted({row["seed"] for row in of_case})
        for attack in (*ATTACKS, "all"):
            last = ATTACKS[-1] if attack == "all" else attack

            def total(library: str, seed: int, key: str, attack: str = attack, of_case: list[dict] = of_case) -> float:
                return sum(
                    row[key]
                    for row in of_case
                    if row["library"] == library and row["seed"] == seed and attack in ("all", row["attack"])
                )

            def left(library: str, seed: int, last: str = last, of_case: list[dict] = of_case) -> set[int]:
                return next(
                    set(row["left"])
                    for row in of_case
                    if (row["library"], row["seed"], row["attack"]) == (library, seed, last)
                )

            ratios = [total("auto-attack", s, "seconds") / max(total("advfeat", s, "seconds"), 1e-9) for s in seeds]
            ratio, low, high = spread(ratios)
            mean = {lib: statistics.mean(len(left(lib, s)) for s in seeds) for lib in LIBRARIES}
            pairs = list(itertools.combinations(seeds, 2))
            found.append(
                {
                    "model": model,
                    "norm": norm,
                    "eps": eps,
                    "attack": attack,
                    "to_advfeat": ratio,
                    "low": low,
                    "high": high,
                    "passes_to_advfeat": sum(total("auto-attack", s, k) for s in seeds for k in ("forward", "backward"))
                    / max(sum(total("advfeat", s, k) for s in seeds for k in ("forward", "backward")), 1),
                    "left": mean["advfeat"],
                    "reference_left": mean["auto-attack"],
                    "differ": statistics.mean(len(left("advfeat", s) ^ left("auto-attack", s)) for s in seeds),
                    "reference_differs": statistics.mean(
                        len(left("auto-attack", a) ^ left("auto-attack", b)) for a, b in pairs
                    )
                    if pairs
                    else float("nan"),
                }
            )
            say(found[-1])
    return found


def figure(found: list[dict], about_it: dict):
    panels: dict[str, list[Bar]] = {}
    for row in found:
        note = f"{row['to_advfeat']:.1f} x, {row['left']:.1f} and {row['reference_left']:.1f} left"
        bar = Bar(row["attack"], row["to_advfeat"], row["low"], row["high"], note, row["attack"] == "all")
        panels.setdefault(f"{row['model']}, {row['norm']} {row['eps']:.3g}", []).append(bar)
    title = f"AutoAttack: the reference's time over advfeat's\n{about(about_it)}"
    return bars(panels, title, "time over that of advfeat", columns=2)


def models_of(options: argparse.Namespace, train_set: Callable[[], Source]) -> dict[str, nn.Module]:
    if options.model:
        return {path.name: load_model(path).to(memory_format=torch.contiguous_format).eval() for path in options.model}
    made = {}
    for name, attack in (("standard", None), ("adversarial", fast_attack(0.5))):
        config = TrainConfig(epochs=options.epochs, lr=0.1, batch_size=32, width=8, attack=attack)
        made[name] = train(config, train_set(), device="cpu").model.eval()
    source = train_set()
    shape, classes = tuple(source.images()[0].shape), len(source.classes)
    linear = adapt(
        nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)), num_classes=classes, input_shape=shape
    )
    config = TrainConfig(epochs=options.epochs, lr=0.1, batch_size=32)
    made["linear"] = train(config, source, device="cpu", model=linear).model.eval()
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that the data set lies in; without it digits")
    parser.add_argument("--dataset", default="cifar10", choices=[name for name in RADII if name != "digits"])
    parser.add_argument("--model", type=Path, action="append", help="a run folder; several times for several models")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--norms", nargs="+", default=list(NORMS), choices=list(NORMS))
    parser.add_argument("--radii", nargs="+", type=float, help="one for each norm")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8, help="of the networks trained on digits")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    name = options.dataset if options.data else "digits"
    if bool(options.data) != bool(options.model):
        parser.error("--data and --model belong together: the models are those of its images")
    radii = dict(zip(options.norms, options.radii, strict=True)) if options.radii else RADII[name]
    source = sources.load(name, "test", options.data, limit=options.samples)
    x, y = source.images().contiguous(), source.labels
    rows = []
    models = models_of(options, lambda: sources.load("digits", "train"))
    for model_name, model in models.items():
        for parameter in model.parameters():
            parameter.requires_grad_(True)  # as after loading: what a user of either library has
        for norm in options.norms:
            for seed in range(options.seeds):
                libraries = list(LIBRARIES) if seed % 2 == 0 else list(reversed(LIBRARIES))
                for library in libraries:
                    new = in_turn(library, model, norm, radii[norm], seed, x, y)
                    rows += [{"model": model_name, **row} for row in new]
    found = summary(rows)
    about_it = machine("cpu")
    subject = {"images": f"{name} test", "samples": len(x), "models": list(models)}
    plain = [{k: v for k, v in row.items() if k != "left"} for row in rows]
    tables = {"": found, "attacks": plain}
    write_results(
        options.out,
        f"autoattack_{name}",
        {"machine": about_it, "subject": subject},
        tables,
        {"": figure(found, about_it)},
    )


if __name__ == "__main__":
    main()
