"""D_det or D_R with each library: images a second, python -m benchmarks.build

The same model, images, targets and steps for all; success and objective stand beside every rate, over the images that
all were given. advfeat also runs as ``advfeat build`` does, which writes the set, with each of OPTIONS. The other
libraries' rates come from the first ``--peer-images``; each row says from how many its rate is.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat.attacks import Converged
from advfeat.datasets.base import Source
from advfeat.datasets.building import build
from advfeat.datasets.recipes import PRESETS, MatchRepresentation, PerturbTowardsTarget, Recipe, start_indices
from benchmarks import peers, representation, subjects
from benchmarks.attacks import quality
from benchmarks.measure import RESULTS, machine, say, spread, write_results
from benchmarks.plots import Bar, about, bars

# What advfeat builds with: a name for the row, options of advfeat.datasets.build, and in "recipe" fields of the
# recipe, or another preset's name. One line, one more row; a line that build() or the recipe does not know is left out
# and named. Every build compiles anew where it is told to, so those rates rise with the number of images.
OPTIONS: dict[str, dict] = {
    "advfeat build": {},
    "advfeat build, bfloat16": {"autocast": torch.bfloat16},
    "advfeat build, compiled": {"compile": True},
    "advfeat build, bfloat16, compiled": {"autocast": torch.bfloat16, "compile": True},
    "advfeat build, until converged": {"recipe": {"stop": Converged()}},
    "advfeat build, until converged, bfloat16": {"recipe": {"stop": Converged()}, "autocast": torch.bfloat16},
    "advfeat build, fast preset, bfloat16": {"recipe": "cifar10-fast", "autocast": torch.bfloat16},
}
FIRST = "advfeat build"


class Case:
    """One recipe on one model: what each library is to do with a batch of images, and how good it was."""

    def __init__(self, recipe: Recipe, model: nn.Module, source: Source, device: torch.device) -> None:
        self.recipe, self.model, self.source, self.device = recipe, model, source, device
        self.matching = isinstance(recipe, MatchRepresentation)

    def libraries(self, names: list[str] | None) -> tuple[dict[str, peers.Attack], dict[str, str]]:
        if self.matching:
            job = representation.MatchJob(self.model, self.recipe.step_size, self.recipe.steps)
            return peers.available(job, names, representation.MATCHERS)  # type: ignore[arg-type]
        return peers.available(self.job(), names)

    def job(self) -> peers.Job:
        r, classes = self.recipe, len(self.source.classes)
        shape = tuple(self.source.image_shape)
        return peers.Job(self.model, r.norm, r.eps, r.step_size, r.steps, targeted=True, classes=classes, shape=shape)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """What an attack starts from, and what it is to reach, as build() has them."""
        images = self.source.images(index).contiguous().to(self.device)
        if not self.matching:
            return images, self.recipe.targets(self.source.labels[index], len(self.source.classes), 0, index).to(
                self.device
            )
        with torch.no_grad():
            features = self.model.representation(images)
        start = self.source.images(start_indices(len(self.source), 0, index)).contiguous()
        return start.to(self.device), features

    def quality(self, index: Tensor, images: Tensor) -> dict:
        x, target = self.batch(index)
        images = images[: len(index)].to(self.device)
        if self.matching:
            return representation.match_quality(self.model, images, target)
        return quality(self.model, x, images, target, self.job())


def runs(
    case: Case, attacks: dict[str, peers.Attack], peer_images: int, batch_size: int, options: list[str] | None = None
) -> dict:
    """Name -> (a call that makes the images, how many): every library's attack, and build() with its options."""
    few = torch.arange(min(peer_images, len(case.source)))

    def attacked(attack: peers.Attack, index: Tensor) -> Tensor:
        return torch.cat([attack(*case.batch(rows)).detach() for rows in index.split(batch_size)])

    def built(recipe: Recipe, settings: dict) -> Tensor:
        folder = Path(tempfile.mkdtemp())
        try:
            common = {"batch_size": batch_size, "device": case.device}
            return build(recipe, case.model, case.source, folder / "set", **common, **settings).images()
        finally:
            shutil.rmtree(folder)

    found: dict[str, tuple[Callable[[], Tensor], int]] = {}
    for name in dict.fromkeys([FIRST, *(options or OPTIONS)]):
        settings = {k: v for k, v in OPTIONS[name].items() if k != "recipe"}
        fields = OPTIONS[name].get("recipe", {})
        if isinstance(fields, str):
            found[name] = (partial(built, PRESETS[fields][case.recipe.name], settings), len(case.source))
            continue
        unknown = set(settings) - set(inspect.signature(build).parameters)
        unknown |= set(fields) - {field.name for field in dataclasses.fields(case.recipe)}
        if unknown:
            print(f"{name}: left out ({case.recipe.name} is not built with {', '.join(sorted(unknown))})", flush=True)
        else:
            recipe = dataclasses.replace(case.recipe, **fields)
            found[name] = (partial(built, recipe, settings), len(case.source))
    for name, attack in attacks.items():
        label = "advfeat, the attack alone" if name == "advfeat" else name
        found[label] = (partial(attacked, attack, few), len(few))
    return found


def rates(
    case: Case,
    *,
    rounds: int,
    batch_size: int,
    peer_images: int,
    names: list[str] | None = None,
    options: list[str] | None = None,
    seconds: float = math.inf,
) -> list[dict]:
    """Every candidate once a round, in an order that rotates; ``advfeat_over``: the first one's rate over this one's,
    round by round. seconds: no further round begins after so many."""
    attacks, missing = case.libraries(names)
    candidates = runs(case, attacks, peer_images, batch_size, options)
    _warm_up(case, names, batch_size, options)
    rate: dict[str, list[float]] = {name: [] for name in candidates}
    results = {}
    order, started = list(candidates), time.perf_counter()
    for i in range(rounds):
        if i and time.perf_counter() - started > seconds:
            print(f"{i} of {rounds} rounds: the time is up", flush=True)
            break
        for name in order[i % len(order) :] + order[: i % len(order)]:
            call, images = candidates[name]
            began = time.perf_counter()
            results[name] = call()
            if case.device.type == "cuda":
                torch.cuda.synchronize()
            rate[name].append(images / (time.perf_counter() - began))
    common = torch.arange(min(peer_images, len(case.source)))
    rows = []
    for name, (_, images) in candidates.items():
        middle, low, high = spread(rate[name])
        ratio, ratio_low, ratio_high = spread([a / b for a, b in zip(rate[FIRST], rate[name], strict=True)])
        row = {
            "library": name,
            "images": images,
            "steps": steps_of(name, case.recipe),
            "batch_size": batch_size,
            "rounds": len(rate[name]),
            "images_per_s": middle,
            "low": low,
            "high": high,
            "advfeat_over": ratio,
            "advfeat_over_low": ratio_low,
            "advfeat_over_high": ratio_high,
            "quality_over": len(common),
            **case.quality(common, results[name]),
        }
        rows.append(row)
        say(row)
    peers.say_missing(missing)
    return rows


def _warm_up(case: Case, names: list[str] | None, batch_size: int, options: list[str] | None) -> None:
    """Two steps of everything on one batch: what is allocated or chosen once is not in a rate."""
    few = case.source.subset(range(max(2, min(batch_size, len(case.source)))))
    recipe = dataclasses.replace(case.recipe, steps=min(2, case.recipe.steps))
    short = Case(recipe, case.model, few, case.device)
    for call, _ in runs(short, short.libraries(names)[0], batch_size, batch_size, options).values():
        call()


def steps_of(name: str, recipe: Recipe) -> int:
    """How many steps the row of this name takes at most."""
    fields = OPTIONS.get(name, {}).get("recipe")
    return PRESETS[fields][recipe.name].steps if isinstance(fields, str) else recipe.steps


def recipe_of(name: str, steps: int | None, step_size: float, eps: float) -> Recipe:
    """The paper's D_det for CIFAR-10, 100 steps in a ball of 0.5, or its D_R, 1,000 steps without one."""
    if name == "det":
        return PerturbTowardsTarget("det", eps, 100 if steps is None else steps, step_size)
    return MatchRepresentation("robust", 1000 if steps is None else steps, step_size)


def figure(rows: list[dict], result: dict):
    group = []
    for row in rows:
        good = f"success {row['success']:.3f}" if "success" in row else f"|g-g'| {row['representation_distance']:.2f}"
        note = f"{row['images_per_s']:.3g}/s; advfeat build: {row['advfeat_over']:.2f} x that; {good}"
        ours = row["library"].startswith("advfeat")
        name = f"{row['library']} ({row['images']} images)"
        group.append(Bar(name, row["images_per_s"], row["low"], row["high"], note, ours))
    subject = result["subject"]
    panel = f"{result['recipe']['name']} of {subject['images']}, {subject['arch']}, {rows[0]['steps']} steps"
    title = f"Building a set, whiskers: quartiles\n{about(result['machine'])}"
    return bars({panel: group}, title, "images a second")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--recipe", default="det", choices=("det", "robust"))
    parser.add_argument("--arch", default="small-convnet", help="without --model: of a fresh network")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--peer-images", type=int, help="for the other libraries; default: as many")
    parser.add_argument("--steps", type=int, help="default: the paper's")
    parser.add_argument("--step-size", type=float, default=0.1)
    parser.add_argument("--eps", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further round after so many")
    parser.add_argument("--libraries", nargs="*", help="only these beside advfeat build")
    parser.add_argument("--options", nargs="*", choices=list(OPTIONS), help="only these ways of advfeat build")
    parser.add_argument("--name", help="of the files; default: from recipe, device and network")
    parser.add_argument("--out", type=Path, default=RESULTS)
    subjects.add_arguments(parser)
    parser.set_defaults(split="train")
    options = parser.parse_args(arguments)
    peer_images = options.images if options.peer_images is None else options.peer_images
    if options.images < 2 or peer_images < 1:
        parser.error("--images should be at least 2 and --peer-images at least 1")
    device = torch.device(options.device)
    source = subjects.images(options, options.images, otherwise="random")
    model = subjects.fresh_or_saved(options, source, options.arch, device)
    recipe = recipe_of(options.recipe, options.steps, options.step_size, options.eps)
    case = Case(recipe, model, source, device)
    rows = rates(
        case,
        rounds=options.rounds,
        batch_size=options.batch_size,
        peer_images=min(peer_images, len(source)),
        names=options.libraries,
        options=options.options,
        seconds=options.seconds,
    )
    subject = subjects.described(options, source, model)
    result = {"machine": machine(device), "rounds": options.rounds, "subject": subject, "recipe": recipe.to_dict()}
    name = options.name or f"build_{options.device}_{options.recipe}_{subject['arch']}"
    write_results(options.out, name, result, {"": rows}, {"": figure(rows, result)})


if __name__ == "__main__":
    main()
