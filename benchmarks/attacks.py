"""PGD as each library runs it: overhead of a step, and robust evaluation; python -m benchmarks.attacks

Same model, same images, same steps; success and objective stand beside every time, so that no one is fast by attacking
less. ``overhead``: what a step costs beyond the model's own forward and backward pass, on a network small enough for it
to show. ``evaluation``: robust accuracy of a standard model by PGD-100, where most samples fall in the first steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import L2, PGD
from advfeat.models import attack_copy
from advfeat.objectives import Margin
from advfeat.threat import NORMS
from benchmarks import subjects
from benchmarks.measure import RESULTS, Kept, machine, say, spread, take_turns, write_results
from benchmarks.peers import Attack, Job, available, say_missing
from benchmarks.plots import Bar, about, bars

SHAPES = [(256, 3, 32, 32), (16, 3, 224, 224)]
STOP = "advfeat, stop at success"
FULL = "advfeat, stop at success, continuous batching"
COPY = "advfeat evaluate: that, with its copy of the model"


class Linear(nn.Module):
    """The least that a model can be: one layer."""

    def __init__(self, values: int, classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(values, classes)
        with torch.no_grad():
            self.head.weight.mul_(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def bare_model_steps(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    """What every attack has to pay: forward, cross-entropy, gradient by the input, ``steps`` times."""
    for _ in range(steps):
        z = x.detach().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)


def quality(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, job: Job) -> dict:
    """Success, mean objective, and the largest distance of what an attack returned."""
    x_adv = x_adv.detach().to(x)
    with torch.no_grad():
        logits = model(x_adv)
        margin = Margin(1.0).value(lambda _: logits, x_adv, y)
    hit = logits.argmax(1) == y if job.targeted else logits.argmax(1) != y
    distance = NORMS[job.norm].length((x_adv - x).flatten(1))
    return {"success": float(hit.float().mean()), "margin": float(margin.mean()), "distance": float(distance.max())}


def overhead(
    rounds: int, steps: int, device: torch.device, names: list[str] | None = None, shapes: list | None = None
) -> list[dict]:
    rows = []
    for shape in shapes or SHAPES:
        for norm in ("linf", "l2"):
            torch.manual_seed(0)
            model = Linear(shape[1] * shape[2] * shape[3]).to(device).eval()
            x, y = torch.rand(shape, device=device), torch.randint(10, shape[:1], device=device)
            eps, size = (8 / 255, 2 / 255) if norm == "linf" else (0.5, 0.1)
            job = Job(model, norm, eps, size, steps, shape=tuple(shape[1:]))
            attacks, missing = available(job, names)
            calls: dict[str, Callable[[], object]] = {name: partial(a, x, y) for name, a in attacks.items()}
            calls["model"] = partial(bare_model_steps, model, x, y, steps)
            timed = take_turns(calls, rounds=rounds, seconds=0.05, device=device)
            for name, attack in attacks.items():
                pairs = zip(timed[name].rounds, timed["model"].rounds, strict=True)
                beyond, low, high = spread([1e6 * (t - m) / steps for t, m in pairs])
                row = {
                    "library": name,
                    "norm": norm,
                    "shape": "x".join(map(str, shape)),
                    "us_per_step": beyond,
                    "low": low,
                    "high": high,
                    "model_us_per_step": 1e6 * timed["model"].median / steps,
                    **quality(model, x, attack(x, y), y, job),
                }
                rows.append(row)
                say(row)
            say_missing(missing)
    return rows


def evaluation(
    rounds: int,
    device: torch.device,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 100,
    eps: float = 0.5,
    classes: int = 10,
    names: list[str] | None = None,
) -> list[dict]:
    """Robust accuracy at an L2 radius by ``steps`` of 2.5 eps / steps, the usual protocol, of a standard model.

    Also libraries that leave early between restarts, with as many gradient steps in five restarts: their random starts
    and the lengths of their steps are their own.
    """
    job = Job(model, "l2", eps, 2.5 * eps / steps, steps, classes=classes, shape=tuple(x.shape[1:]))
    attacks, missing = available(job, names)
    runs = {name: (attack, str(steps)) for name, attack in attacks.items()}
    early = PGD(L2(eps), steps=steps, step_size=job.step_size, stop="success", objective=Margin(1.0))
    runs[STOP] = (lambda x, y: early(model, x, y), f"up to {steps}")
    runs[FULL] = (lambda x, y: kept_full(early, model, x, y), f"up to {steps}")
    runs[COPY] = (lambda x, y: kept_full(early, attack_copy(model), x, y), f"up to {steps}")
    if names is None:
        for name, attack in restarting(job, 5, missing).items():
            runs[name] = (attack, f"up to 5 x {steps // 5}")
    calls = {name: Kept(partial(attack, x, y)) for name, (attack, _) in runs.items()}
    timed = take_turns(calls, rounds=rounds, seconds=0.0, device=device, warm_up=1)
    rows = []
    for name, (_, said) in runs.items():
        ratio, low, high = timed[name].over(timed[STOP])
        row = {
            "library": name,
            "samples": len(x),
            "eps": eps,
            "steps": said,
            "seconds": timed[name].median,
            "to_advfeat_stop": ratio,
            "low": low,
            "high": high,
            **quality(model, x, calls[name].result, y, job),
        }
        rows.append(row)
        say(row)
    say_missing(missing)
    return rows


def kept_full(attack: PGD, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """As an evaluation of a whole data set runs: four batches, the next one's samples in the places of those done."""
    size = max(1, -(-len(x) // 4))
    return torch.cat([found.x_adv for _, found in attack.over(model, zip(x.split(size), y.split(size), strict=True))])


def restarting(job: Job, restarts: int, missing: dict[str, str]) -> dict[str, Attack]:
    """APGD of the libraries that drop solved samples between restarts, with the job's steps shared out."""
    from benchmarks.apgd import APGDS, ApgdJob

    found = {}
    for name in ("auto-attack", "adv-lib"):
        steps = max(1, job.steps // restarts)
        wanted = ApgdJob(job.model, job.norm, job.eps, steps, restarts=restarts, classes=job.classes, shape=job.shape)
        try:
            found[f"{name} APGD, {restarts} restarts"] = APGDS[name](wanted)
        except ImportError as error:
            missing[f"{name} APGD"] = f"not installed: {error}"
    return found


def figures(result: dict) -> dict:
    """Overhead by norm and shape, and the evaluation."""
    panels: dict[str, list[Bar]] = {}
    for row in result["overhead"]:
        own = next(r for r in result["overhead"] if (r["norm"], r["shape"]) == (row["norm"], row["shape"]))
        # A replayed step can take less than the model's own passes one by one; then there is nothing to divide by.
        ratio = f" = {row['us_per_step'] / own['us_per_step']:.1f} x" if own["us_per_step"] > 0 else ""
        note = f"{row['us_per_step']:,.0f} us{ratio}, success {row['success']:.2f}"
        name = f"{row['norm']}, {row['shape']}; the model itself: {row['model_us_per_step']:,.0f} us"
        bar = Bar(row["library"], row["us_per_step"], row["low"], row["high"], note, row["library"] == "advfeat")
        panels.setdefault(name, []).append(bar)
    title = about(result["machine"])
    made = {
        "overhead": bars(
            panels,
            f"A PGD step beyond the model's own forward and backward pass, whiskers: quartiles\n{title}",
            "microseconds a step",
            columns=2,
        )
    }
    if result.get("evaluation"):
        group = [
            Bar(
                f"{r['library']} ({r['steps']} steps)",
                r["to_advfeat_stop"],
                r["low"],
                r["high"],
                f"{r['to_advfeat_stop']:.1f} x, {r['seconds']:.2f} s, success {r['success']:.3f}",
                r["library"].startswith("advfeat"),
            )
            for r in result["evaluation"]
        ]
        about_it = result["subject"]
        samples, eps = (result["evaluation"][0][key] for key in ("samples", "eps"))
        panel = f"{samples} images of {about_it['images']}, {about_it['arch']}, L2 {eps:g}"
        made["evaluation"] = bars(
            {panel: group},
            f"Robust evaluation, whiskers: quartiles\n{title}",
            "time over that of advfeat with stop at success",
        )
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=9, help="of the overhead")
    parser.add_argument("--steps", type=int, default=10, help="of the overhead")
    parser.add_argument("--shapes", nargs="*", help="of the overhead, such as 256x3x32x32")
    parser.add_argument("--libraries", nargs="*", help="only these")
    parser.add_argument("--samples", type=int, default=128, help="of the evaluation; 0 leaves it out")
    parser.add_argument("--evaluation-rounds", type=int, default=3)
    parser.add_argument("--evaluation-steps", type=int, default=100)
    parser.add_argument("--eps", type=float, help="L2 radius of the evaluation; default: 0.5, of digits 1.5")
    parser.add_argument("--out", type=Path, default=RESULTS)
    subjects.add_arguments(parser)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes or ()]
    result: dict = {"machine": machine(device), "rounds": options.rounds, "steps": options.steps}
    result["overhead"] = overhead(options.rounds, options.steps, device, options.libraries, shapes)
    result["evaluation"] = []
    if options.samples:
        source = subjects.images(options, options.samples, otherwise="digits")
        model = subjects.standard(options, source, device)
        x, y = source.images().contiguous().to(device), source.labels.to(device)
        result["subject"] = subjects.described(options, source, model)
        result["evaluation_rounds"] = options.evaluation_rounds
        result["evaluation"] = evaluation(
            options.evaluation_rounds,
            device,
            model,
            x,
            y,
            steps=options.evaluation_steps,
            eps=subjects.radius(options, source),
            classes=len(source.classes),
            names=options.libraries,
        )
    drawn = figures(result)
    tables = {kind: result.pop(kind) for kind in ("overhead", "evaluation")}
    write_results(options.out, f"attacks_{options.device}", result, tables, drawn)


if __name__ == "__main__":
    main()
