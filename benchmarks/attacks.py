"""PGD as each library runs it: overhead of a step, and robust evaluation; python -m benchmarks.attacks

Same model, same images, same steps; success and objective stand beside every time, so that no one is fast by attacking
less. ``overhead``: what a step costs beyond the model's own forward and backward pass, on a network small enough for it
to show. ``evaluation``: robust accuracy of a standard model by PGD-100, where most samples fall in the first steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import L2, PGD
from advfeat.objectives import Margin
from benchmarks.measure import RESULTS, machine, take_turns, write_csv
from benchmarks.peers import Job, available

SHAPES = [(256, 3, 32, 32), (16, 3, 224, 224)]


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
    with torch.no_grad():
        logits = model(x_adv.to(x))
        margin = Margin().value(lambda _: logits, x_adv, y)
    hit = logits.argmax(1) == y if job.targeted else logits.argmax(1) != y
    d = (x_adv - x).flatten(1)
    distance = d.norm(dim=1) if job.norm == "l2" else d.abs().amax(1)
    return {"success": float(hit.float().mean()), "margin": float(margin.mean()), "distance": float(distance.max())}


def overhead(rounds: int, steps: int, device: torch.device, names: list[str] | None) -> list[dict]:
    rows = []
    for shape in SHAPES:
        for norm in ("linf", "l2"):
            torch.manual_seed(0)
            model = Linear(shape[1] * shape[2] * shape[3]).to(device).eval()
            x, y = torch.rand(shape, device=device), torch.randint(10, shape[:1], device=device)
            eps, size = (8 / 255, 2 / 255) if norm == "linf" else (0.5, 0.1)
            job = Job(model, norm, eps, size, steps)
            attacks, missing = available(job, names)
            calls: dict[str, Callable[[], object]] = {name: partial(a, x, y) for name, a in attacks.items()}
            calls["model"] = partial(bare_model_steps, model, x, y, steps)
            timed = take_turns(calls, rounds=rounds, seconds=0.05, device=device)
            for name, attack in attacks.items():
                pairs = zip(timed[name].rounds, timed["model"].rounds, strict=True)
                beyond = sorted((t - m) / steps for t, m in pairs)
                row = {
                    "library": name,
                    "norm": norm,
                    "shape": "x".join(map(str, shape)),
                    "us_per_step": 1e6 * beyond[len(beyond) // 2],
                    "low": 1e6 * beyond[len(beyond) // 4],
                    "high": 1e6 * beyond[-1 - len(beyond) // 4],
                    "model_us_per_step": 1e6 * timed["model"].median / steps,
                    **quality(model, x, attack(x, y), y, job),
                }
                rows.append(row)
                _say(row)
            for name, why in missing.items():
                print(f"{name}: left out ({why})")
    return rows


def evaluation(rounds: int, device: torch.device, model: nn.Module, x: Tensor, y: Tensor, steps: int = 100) -> list:
    """Robust accuracy at L2 0.5 by ``steps`` of 2.5 eps / steps, the usual protocol, of a standard model."""
    job = Job(model, "l2", 0.5, 2.5 * 0.5 / steps, steps)
    attacks, missing = available(job)
    early = PGD(L2(0.5), steps=steps, stop="success")
    attacks["advfeat, stop at success"] = lambda x, y: early(model, x, y)
    timed = take_turns(
        {name: partial(a, x, y) for name, a in attacks.items()}, rounds=rounds, seconds=0.01, device=device
    )
    rows = []
    for name, attack in attacks.items():
        ratio, low, high = timed[name].over(timed["advfeat, stop at success"])
        row = {
            "library": name,
            "samples": len(x),
            "seconds": timed[name].median,
            "to_advfeat_stop": ratio,
            "low": low,
            "high": high,
            **quality(model, x, attack(x, y), y, job),
        }
        rows.append(row)
        _say(row)
    for name, why in missing.items():
        print(f"{name}: left out ({why})")
    return rows


def _say(row: dict) -> None:
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--libraries", nargs="*", help="only these")
    parser.add_argument("--model", type=Path, help="a run folder of a standard CIFAR-10 model, for the evaluation")
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10, for the evaluation")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    result: dict = {"machine": machine(device), "rounds": options.rounds, "steps": options.steps}
    result["overhead"] = overhead(options.rounds, options.steps, device, options.libraries)
    write_csv(options.out / f"attacks_{options.device}_overhead.csv", result["overhead"])
    if options.model and options.data:
        from advfeat.datasets import sources
        from advfeat.models import load

        source = sources.load("cifar10", "test", options.data, limit=options.samples)
        model = load(options.model).to(device, memory_format=torch.contiguous_format).eval()
        # model and images contiguous: some libraries fail on the gradient that other layouts give
        x, y = source.images().contiguous().to(device), source.labels.to(device)
        result["evaluation"] = evaluation(3, device, model, x, y)
        write_csv(options.out / f"attacks_{options.device}_evaluation.csv", result["evaluation"])
    (options.out / f"attacks_{options.device}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
