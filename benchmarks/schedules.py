"""PGD's step sizes compared at equal numbers of passes.

    python -m benchmarks.schedules --standard RUN --adversarial RUN                       # digits
    python -m benchmarks.schedules --standard RUN --adversarial RUN --data DATA           # CIFAR-10

Representation matching: the mean relative distance that is left after n passes, for every schedule that was tried,
those that lost included; an image of another sample is the start. Evaluation: how many samples PGD leaves. Passes are
exact: nothing is timed.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import L2, PGD, Linf, Representation
from advfeat.models import load
from advfeat.threat import Threat
from benchmarks import measure, subjects
from benchmarks.plots import about, curves

# Name, and what it sets; the sizes are those that came closest at one of the numbers of passes.
MATCHING = {
    "steps of 0.1": {"step_size": 0.1},
    "steps of 0.05": {"step_size": 0.05},
    "cosine from 1": {"step_size": 1.0, "schedule": "cosine"},
    "cosine from 2": {"step_size": 2.0, "schedule": "cosine"},
    "cosine from 3": {"step_size": 3.0, "schedule": "cosine"},
    "cosine from 1, momentum 0.5": {"step_size": 1.0, "schedule": "cosine", "momentum": 0.5},
    "cosine from 2, momentum 0.5": {"step_size": 2.0, "schedule": "cosine", "momentum": 0.5},
    "cosine from 1, momentum 0.75": {"step_size": 1.0, "schedule": "cosine", "momentum": 0.75},
    "cosine from 0.5, momentum 0.9": {"step_size": 0.5, "schedule": "cosine", "momentum": 0.9},
    "momentum 0.9, steps of 0.1": {"step_size": 0.1, "momentum": 0.9},
    "Polyak's step": {"step_size": "polyak"},
    "Polyak's step, momentum 0.75": {"step_size": "polyak", "momentum": 0.75},
    "Polyak's step, cosine, momentum 0.5": {"step_size": "polyak", "schedule": "cosine", "momentum": 0.5},
}
EVALUATION = {
    "constant": {},
    "cosine from 1 eps": {"schedule": "cosine", "size": 1.0},
    "cosine from 2 eps": {"schedule": "cosine", "size": 2.0},
    "cosine from 1 eps, momentum 0.5": {"schedule": "cosine", "size": 1.0, "momentum": 0.5},
    "cosine from 1 eps, momentum 0.75": {"schedule": "cosine", "size": 1.0, "momentum": 0.75},
}


def distances(model: nn.Module, x: Tensor, start: Tensor, steps: int, settings: dict) -> float:
    """The mean of ||g(z) - g(x)|| / ||g(x)|| after so many passes."""
    with torch.no_grad():
        goal = model.representation(x)
    attack = PGD(L2(math.inf), steps=steps, objective=Representation(relative=True), targeted=True, **settings)
    return attack.run(model, x, goal, start=start).value.double().mean().item()


def matching(model: nn.Module, kind: str, x: Tensor, start: Tensor, passes: list[int], most: int) -> list[dict]:
    rows = []
    for name, settings in MATCHING.items():
        for steps in [n for n in passes if n <= most or name == "steps of 0.1"]:
            rows.append({"model": kind, "steps": name, "passes": steps})
            rows[-1] |= {"distance": distances(model, x, start, steps, settings), "images": len(x)}
            measure.say(rows[-1])
    return rows


def survivors(model: nn.Module, kind: str, x: Tensor, y: Tensor, threat: Threat) -> list[dict]:
    rows = []
    for name, given in EVALUATION.items():
        settings = {key: value for key, value in given.items() if key != "size"}
        if "size" in given:
            settings["step_size"] = given["size"] * threat.eps
        for steps in (20, 100) if name == "constant" else (20,):
            attack = PGD(threat, steps=steps, keep="best", stop="success", **settings)
            found = [result for _, result in attack.over(model, zip(x.split(200), y.split(200), strict=True))]
            left = sum(int((~result.success).sum()) for result in found)
            passes = sum(result.samples_forwarded for result in found) / len(x)
            rows.append({"model": kind, "norm": threat.title, "eps": threat.write_radius(threat.eps), "PGD": name})
            rows[-1] |= {"steps": steps, "samples": len(x), "left": left, "passes": passes}
            measure.say(rows[-1])
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects.add_arguments(parser)
    parser.add_argument("--standard", type=Path, required=True, help="run folder of a model trained on images")
    parser.add_argument("--adversarial", type=Path, required=True, help="run folder of one trained adversarially")
    parser.add_argument("--passes", type=int, nargs="+", default=[15, 20, 30, 50, 100, 200, 400, 1000])
    parser.add_argument("--most", type=int, default=200, help="the most passes of schedules but the paper's")
    parser.add_argument("--images", type=int, default=128, help="images to match")
    parser.add_argument("--samples", type=int, default=450, help="samples to evaluate on")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    source = subjects.images(options, 2 * options.images + options.samples, "digits")
    index = torch.arange(len(source))
    x, y = source.images(index), source.labels[index]
    to_match, start = x[: options.images], x[options.images : 2 * options.images]
    small = source.name == "digits"
    threats = [L2(0.5), L2(0.75), Linf(0.05), Linf(0.1)] if small else [L2(0.25), L2(0.5), Linf(2 / 255), Linf(4 / 255)]
    matched: list[dict] = []
    left: list[dict] = []
    for kind in ("standard", "adversarial"):
        model = load(getattr(options, kind)).eval()
        matched += matching(model, kind, to_match, start, options.passes, options.most)
        for threat in threats:
            left += survivors(model, kind, x[: options.samples], y[: options.samples], threat)
    machine = measure.machine()
    panels = {}
    for kind in ("standard", "adversarial"):
        lines = {}
        for name in MATCHING:
            rows = [row for row in matched if (row["model"], row["steps"]) == (kind, name)]
            lines[name] = ([row["passes"] for row in rows], [row["distance"] for row in rows])
        panels[f"{kind} model"] = lines
    labels = dict.fromkeys(panels, ("passes through the model", "distance left, relative"))
    title = f"Representation matching, {source.name}; {about(machine)}"
    result = {"images": f"{source.name} {source.split}", "machine": machine}
    tables = {"matching": matched, "evaluation": left}
    figures = {"matching": curves(panels, title, labels, columns=2, log_y=True)}
    measure.write_results(options.out, f"schedules_{source.name}", result, tables, figures)


if __name__ == "__main__":
    main()
