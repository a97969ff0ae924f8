"""Adversarial training with fewer steps of its attack, constant or falling: python -m benchmarks.inner_steps

    python -m benchmarks.inner_steps --preset digits --seeds 5 --store runs/inner-steps

Trains as the preset does, with each attack of :func:`attacks` in the place of its own, and evaluates with the strong
attack. Stages are kept in ``--store``, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from advfeat import PGD, Margin
from advfeat.cli.console import bar
from advfeat.experiments import presets
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Number
from advfeat.experiments.shared_stages import data, evaluated, trained
from advfeat.experiments.workspace import Workspace
from advfeat.threat import Threat
from benchmarks import measure
from benchmarks.plots import Bar, about, bars


def attacks(threat: Threat) -> dict[str, PGD]:
    """The paper's attack first: name -> attack of a training."""
    eps = float(threat.eps)
    found = {"steps of eps / 5": (eps / 5, "constant", (7, 5, 3))}
    found |= {"steps of 2.5 eps / n": (None, "constant", (7, 5, 3, 2))}
    found |= {"cosine from eps": (eps, "cosine", (7, 5, 3, 2))}
    return {
        f"{steps} {name}": PGD(threat, steps=steps, step_size=size, schedule=schedule, objective=Margin(1.0))
        for name, (size, schedule, numbers) in found.items()
        for steps in numbers
    }


def row_of(workspace: Workspace, preset: Preset, name: str, attack: PGD, seeds: range) -> dict:
    """One attack: what the trainings cost and what they reach, over the seeds."""
    models = [trained(preset, data(preset), preset.adversarial.replace(attack=attack), name, seed) for seed in seeds]
    found = [workspace.open(evaluated(preset, model)) for model in models]
    accuracy = Number.of(outcome["clean"] for outcome in found)
    row = {
        "attack": name,
        "steps": attack.steps,
        "seconds": math.fsum(workspace.cost(models).values()) / len(models),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.interval[0],
        "accuracy_high": accuracy.interval[1],
    }
    for i, eps in enumerate(preset.radii):
        robust = Number.of(outcome["robust"][i] for outcome in found)
        row |= {f"robust at {eps:g}": robust.mean}
        row |= {f"robust at {eps:g}_{end}": value for end, value in zip(("low", "high"), robust.interval, strict=True)}
    return row


def figure(rows: list[dict], result: dict):
    """Robust accuracy at the largest radius, by attack."""
    column = [key for key in rows[0] if key.startswith("robust at") and not key.endswith(("_low", "_high"))][-1]
    group = [
        Bar(
            row["attack"],
            row[column],
            row[f"{column}_low"],
            row[f"{column}_high"],
            f"{row[column]:.1f} %, clean {row['accuracy']:.1f} %",
            "cosine" in row["attack"],
        )
        for row in rows
    ]
    title = f"Adversarial training by the attack inside, whiskers: 95 % over {result['seeds']} seeds\n"
    return bars({f"{result['preset']}, {column}": group}, title + about(result["machine"]), "per cent")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits", choices=presets.names())
    parser.add_argument("--data", type=Path, help="the folder that the data sets lie in")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path, required=True, help="folder for models and evaluations")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    preset = presets.preset(options.preset)
    if preset.threads:
        torch.set_num_threads(preset.threads)
    workspace = Workspace(options.store, bar=bar, root=options.data, device=options.device)
    threat = preset.adversarial.attack.threat  # type: ignore[union-attr]
    rows = []
    for name, attack in attacks(threat).items():
        rows.append(row_of(workspace, preset, name, attack, range(options.seeds)))
        measure.say(rows[-1])
    result = {"machine": measure.machine(options.device), "preset": preset.name, "seeds": options.seeds}
    drawn = {"": figure(rows, result)}
    measure.write_results(options.out, f"inner_steps_{preset.name}", result, {"": rows}, drawn)


if __name__ == "__main__":
    main()
