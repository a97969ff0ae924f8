"""D_det with each library: images a second, python -m benchmarks.build

The same model, images, targets and steps for all; success and objective stand beside every rate. advfeat runs as
``advfeat build`` does, with and without writing the set.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from advfeat.datasets import sources
from advfeat.datasets.build import build
from advfeat.datasets.recipes import PerturbTowardsTarget
from advfeat.models import create, load
from benchmarks.attacks import quality
from benchmarks.measure import RESULTS, machine, write_csv
from benchmarks.peers import Job, available


def rates(model: nn.Module, source, steps: int, batch_size: int, rounds: int, device: torch.device) -> list[dict]:
    """Every library builds the whole set once a round; they take turns."""
    job = Job(model, "l2", 0.5, 0.1, steps, targeted=True)
    attacks, missing = available(job)
    # model and images contiguous: some libraries fail on the gradient that other layouts give
    x, y = source.images().contiguous().to(device), source.labels.to(device)
    target = (y + 1) % 10
    recipe = PerturbTowardsTarget("det", 0.5, steps, 0.1)

    def whole(attack):
        return torch.cat([attack(x[i], target[i]).detach() for i in torch.arange(len(x)).split(batch_size)])

    def command():
        folder = Path(tempfile.mkdtemp())
        try:
            return (
                build(recipe, model, source, folder / "det", batch_size=batch_size, device=device).images().to(device)
            )
        finally:
            shutil.rmtree(folder)

    runs = {name: partial(whole, a) for name, a in attacks.items()} | {"advfeat build (writes the set)": command}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            results[name] = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    rows = []
    for name in runs:
        own = sorted(seconds[name])
        row = {
            "library": name,
            "images": len(x),
            "steps": steps,
            "images_per_s": len(x) / own[len(own) // 2],
            "slowest": len(x) / own[-1],
            "fastest": len(x) / own[0],
            **quality(model, x, results[name], target, job),
        }
        rows.append(row)
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    for name, why in missing.items():
        print(f"{name}: left out ({why})")
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--data", type=Path, required=True, help="the folder of CIFAR-10")
    parser.add_argument("--model", type=Path, help="a run folder; default: a fresh network, whose cost is the same")
    parser.add_argument("--arch", default="small-convnet")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    source = sources.load("cifar10", "train", options.data, limit=options.images)
    model = load(options.model) if options.model else create(options.arch, 10, (3, 32, 32))
    model = model.to(device, memory_format=torch.contiguous_format).eval()
    rows = rates(model, source, options.steps, options.batch_size, options.rounds, device)
    name = f"build_{options.device}_{getattr(model, 'arch', options.arch)}"
    write_csv(options.out / f"{name}.csv", rows)
    (options.out / f"{name}.json").write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
