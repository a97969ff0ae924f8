"""Whether the sets of the fast presets are as good as those of the presets that they speed up.

    python -m benchmarks.fast_sets --preset digits --seeds 5 --store runs/fast-sets
    python -m benchmarks.fast_sets --preset cifar10-cpu --data DATA --seeds 3 --store runs/fast-sets

Builds D_R, D_NR, D_rand and D_det by both, with the same source models, trains on each and evaluates. Stages are kept
in ``--store`` and shared with ``advfeat reproduce``, so that an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from advfeat.cli.console import bar
from advfeat.datasets.recipes import MatchRepresentation, describe_steps, fast_version
from advfeat.experiments import presets
from advfeat.experiments.presets import SETS, Preset
from advfeat.experiments.result import Number
from advfeat.experiments.shared_stages import TITLES, constructed, evaluated, model
from advfeat.experiments.workspace import Workspace
from benchmarks import measure


def row_of(workspace: Workspace, preset: Preset, name: str, seeds: range) -> dict:
    """One set by one preset: what it costs and what it teaches."""
    sets = [constructed(preset, name, seed) for seed in seeds]
    made = [workspace.open(stage) for stage in sets]
    recipe = preset.recipes[name]
    found = [workspace.open(evaluated(preset, model(preset, name, seed))) for seed in seeds]
    accuracy = Number.of(outcome["clean"] for outcome in found)
    row = {
        "set": TITLES[name],
        "preset": preset.name,
        "recipe": describe_steps(recipe),
        "passes": recipe.steps,
        "seconds": sum(workspace.cost(sets).values()) / len(sets),
        "objective": "distance left" if isinstance(recipe, MatchRepresentation) else "margin",
        "value": _mean([m.objective.double().mean().item() for m in made]),
        "predicted as label": _mean([m.target_success.double().mean().item() for m in made]),
        "moved": _mean([m.distance.double().mean().item() for m in made]),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.interval[0],
        "accuracy_high": accuracy.interval[1],
    }
    for i, eps in enumerate(preset.radii):
        robust = Number.of(outcome["robust"][i] for outcome in found)
        row |= {f"robust at {eps:g}": robust.mean}
        row |= {f"robust at {eps:g}_{end}": value for end, value in zip(("low", "high"), robust.interval, strict=True)}
    return row


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=[n for n in presets.names() if n != fast_version(n)], default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--data", type=Path, help="the folder that the data set lies in")
    parser.add_argument("--store", type=Path, default=Path("runs/fast-sets"), help="the folder of the stages")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    plain = presets.preset(options.preset)
    if plain.threads:
        torch.set_num_threads(plain.threads)
    workspace = Workspace(options.store, bar=bar, root=options.data)
    rows = []
    for name in options.sets:
        for preset in (plain, plain.fast()):
            rows.append(row_of(workspace, preset, name, range(options.seeds)))
            measure.say(rows[-1], leave_out=("recipe",))
    result = {"preset": options.preset, "seeds": options.seeds, "machine": measure.machine()}
    measure.write_results(options.out, f"fast_sets_{options.preset}", result, {"": rows})


if __name__ == "__main__":
    main()
