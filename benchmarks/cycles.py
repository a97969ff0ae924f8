"""What skipping cycles saves of L-inf PGD with constant steps.

    python -m benchmarks.cycles --standard RUN --adversarial RUN

Passes through the model for all steps and until an iterate returns, by number of steps and step size, on samples that
the attack does not break (``stop="success"`` ends the others). Passes are exact: nothing is timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from advfeat import PGD, Linf
from advfeat.models import load
from benchmarks import measure, subjects


def rows_of(model, x: torch.Tensor, y: torch.Tensor, eps: float, steps: int, size: str) -> dict:
    length = {"2.5 eps / steps": 2.5 * eps / steps, "eps / 4": eps / 4}[size]
    attack = PGD(Linf(eps), steps=steps, step_size=length, keep="best", stop="success", skip_cycles=True)
    batches = [(a, b) for a, b in zip(x.split(100), y.split(100), strict=True)]
    found = [result for _, result in attack.over(model, batches)]
    broken = torch.cat([result.success for result in found])
    whole = torch.cat([result.first_success for result in found])
    all_steps = int(torch.where(broken, whole + 1, steps + 1).sum())
    passes = sum(result.samples_forwarded for result in found)
    return {
        "eps": eps,
        "step size": size,
        "steps": steps,
        "samples": len(x),
        "left": int((~broken).sum()),
        "passes of all steps": all_steps,
        "passes": passes,
        "saved": 1 - passes / all_steps,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects.add_arguments(parser)
    parser.add_argument("--standard", type=Path, required=True, help="run folder of a model trained on images")
    parser.add_argument("--adversarial", type=Path, required=True, help="run folder of one trained adversarially")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    source = subjects.images(options, options.images, "digits")
    index = torch.arange(len(source))
    x, y = source.images(index), source.labels[index]
    rows = []
    for kind in ("standard", "adversarial"):
        model = load(getattr(options, kind)).eval()
        for size in ("2.5 eps / steps", "eps / 4"):
            for steps in options.steps:
                rows.append({"model": kind, **rows_of(model, x, y, options.eps, steps, size)})
                measure.say(rows[-1])
    result = {"images": f"{source.name} {source.split}", "machine": measure.machine()}
    measure.write_results(options.out, f"cycles_{source.name}", result, {"": rows})


if __name__ == "__main__":
    main()
