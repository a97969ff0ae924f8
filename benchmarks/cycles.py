"""Passes saved by cycle detection, by steps, step size and radius: python -m benchmarks.cycles

L-inf attacks on a standard and an adversarially trained network (run folders, or trained on digits on the spot), with
and without ``skip_cycles``, in continuous batching. ``share`` is the passes through the model of a run that skips
cycles relative to all of them, ``time`` that of the seconds; ``same`` the share of samples whose example has the same
bits. It can be below 1 where the rounding of a model's outputs depends on the batch.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import PGD, Linf
from advfeat.attacks.result import AttackResult
from advfeat.datasets import sources
from advfeat.datasets.base import Source
from advfeat.models import load
from advfeat.training import TrainConfig, train
from benchmarks import subjects
from benchmarks.measure import RESULTS, machine, say, write_results
from benchmarks.plots import about, curves

STEPS = [100, 1000, 10_000]
RADII = [8 / 255, 0.1]
STEP_SIZES = {"2.5 eps / steps": lambda eps, steps: 2.5 * eps / steps, "eps / 4": lambda eps, steps: eps / 4}
# As the preset "digits" trains.
TRAINING = TrainConfig(epochs=20, lr=0.1, batch_size=32, weight_decay=5e-3, width=16, eval_every=0)
ROBUST = TRAINING.replace(attack=PGD(Linf(0.1), steps=7, step_size=0.02))


def networks(options: argparse.Namespace, source: Source, device: torch.device) -> dict[str, nn.Module]:
    """The two models, as given or trained on the training images."""
    found = {}
    for name, folder, config in (("standard", options.standard, TRAINING), ("robust", options.robust, ROBUST)):
        if folder is None:
            known = sources.load(source.name, "train", options.data, limit=5000)
            model = train(config, known, device=device).model
        else:
            model = load(folder)
        found[name] = model.to(device).eval()
    return found


def attacked(attack: PGD, model: nn.Module, x: Tensor, y: Tensor, batch: int) -> tuple[AttackResult, int, float]:
    """The examples in one result, the passes, and the seconds."""
    began = time.perf_counter()
    results = [result for _, result in attack.over(model, zip(x.split(batch), y.split(batch), strict=True))]
    seconds = time.perf_counter() - began
    result = results[0]
    result.x_adv = torch.cat([r.x_adv for r in results])
    result.success = torch.cat([r.success for r in results if r.success is not None])
    return result, sum(r.samples_forwarded for r in results), seconds


def measure(name: str, model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> list[dict]:
    """A row for each radius, step size and number of steps."""
    rows = []
    for eps in RADII:
        for rule, size in STEP_SIZES.items():
            for steps in options.steps:
                attack = PGD(Linf(eps), steps, size(eps, steps), keep=options.keep)
                skipping = attack.replace(skip_cycles=True)
                result, passes, seconds = attacked(skipping, model, x, y, options.batch_size)
                row = {
                    "model": name,
                    "eps": eps,
                    "step size": rule,
                    "steps": steps,
                    "passes": passes,
                    "share": passes / (len(x) * (steps + 1)),
                    "seconds": seconds,
                    "success": result.success.double().mean().item(),
                }
                row |= dict.fromkeys(("all_seconds", "time", "all_success", "same"), math.nan)
                if steps <= options.compare_up_to:
                    full, _, all_seconds = attacked(attack, model, x, y, options.batch_size)
                    same = (full.x_adv == result.x_adv).flatten(1).all(1)
                    row |= {"all_seconds": all_seconds, "time": seconds / all_seconds}
                    row |= {"all_success": full.success.double().mean().item(), "same": same.double().mean().item()}
                rows.append(row)
                say(row)
    return rows


def figure(rows: list[dict], result: dict):
    """The share of the passes over the number of steps, a panel for each model."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in rows:
        lines = panels.setdefault(row["model"], {})
        at, share = lines.setdefault(f"eps {row['eps']:.3g}, steps of {row['step size']}", ([], []))
        at.append(row["steps"])
        share.append(row["share"])
    title = f"Passes with skip_cycles, relative to all; {result['subject']['images']}\n{about(result['machine'])}"
    return curves(panels, title, dict.fromkeys(panels, ("steps", "share of the passes")), columns=2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects.add_arguments(parser)
    parser.add_argument("--standard", type=Path, help="a run folder, instead of --model")
    parser.add_argument("--robust", type=Path, help="a run folder of an adversarially trained model")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--compare-up-to", type=int, default=1000, help="steps of the runs that are made in full, too")
    parser.add_argument("--keep", default="last", choices=("last", "best"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.standard = options.standard or options.model
    device = torch.device(options.device)
    source = subjects.images(options, options.samples, "digits")
    x, y = source.images().contiguous().to(device), source.labels.to(device)
    rows = []
    models = networks(options, source, device)
    for name, model in models.items():
        rows += measure(name, model, x, y, options)
    subject = {
        "images": f"{source.name} {source.split}",
        "samples": len(x),
        "batch_size": options.batch_size,
        "keep": options.keep,
        "models": {name: getattr(model, "arch", type(model).__name__) for name, model in models.items()},
        "made for this run": [name for name in models if getattr(options, name) is None],
    }
    result = {"machine": machine(device), "subject": subject}
    write_results(options.out, f"cycles_{options.device}", result, {"": rows}, {"": figure(rows, result)})


if __name__ == "__main__":
    main()
