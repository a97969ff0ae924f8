"""Square with its queries in float32 and in bfloat16: python -m benchmarks.queries --data DATA --model RUN

For each model (``--model`` several times), norm and seed a row: samples left, the mean of the objective at the best
points, passes through the model and seconds. ``differ`` are the samples that one of the two leaves and the other does
not. Without a model and data: digits enlarged to 32 x 32, and a small network trained on the spot.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import Square, Threat
from advfeat._hardware import has_bfloat16
from advfeat.datasets import sources
from advfeat.models import load
from advfeat.training import TrainConfig, train
from benchmarks.measure import RESULTS, machine, say, write_results

NORMS = ("linf", "l2", "l1")


class _Enlarged(nn.Module):
    """A network of 8 x 8 images on images of 32 x 32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(nn.functional.avg_pool2d(x, 4))


def compare(name: str, model: nn.Module, norm: str, eps: float, seed: int, steps: int, x: Tensor, y: Tensor) -> dict:
    """One row."""
    row: dict[str, object] = {"model": name, "norm": norm, "eps": eps, "seed": seed, "queries": steps}
    left = []
    for key, bf16 in (("float32", False), ("bfloat16", True)):
        began = time.perf_counter()
        result = Square(Threat.of(norm, eps), steps=steps, bf16_queries=bf16, seed=seed).run(model, x, y)
        assert result.success is not None
        left.append(~result.success)
        row |= {
            f"{key}_left": int(left[-1].sum()),
            f"{key}_objective": float(result.value.mean()),
            f"{key}_passes": result.samples_forwarded,
            f"{key}_seconds": time.perf_counter() - began,
        }
    row["differ"] = int((left[0] != left[1]).sum())
    say(row)
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that the data set lies in; without it digits")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--model", type=Path, action="append", help="a run folder; several times for several models")
    parser.add_argument("--radii", nargs=3, type=float, default=[4 / 255, 0.5, 6.0], help="L-inf, L2, L1")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if bool(options.data) != bool(options.model):
        parser.error("--data and --model belong together: the models are those of its images")
    name = options.dataset if options.data else "digits"
    source = sources.load(name, "test", options.data, limit=options.samples)
    x, y = source.images().contiguous(), source.labels
    if options.model:
        models = {path.name: load(path).eval() for path in options.model}
    else:
        config = TrainConfig(epochs=8, lr=0.1, batch_size=32, width=8)
        models = {"standard": _Enlarged(train(config, sources.load("digits", "train"), device="cpu").model).eval()}
        x = nn.functional.interpolate(x, scale_factor=4)
    rows = [
        compare(which, model, norm, eps, seed, options.queries, x, y)
        for which, model in models.items()
        for norm, eps in zip(NORMS, options.radii, strict=True)
        for seed in range(options.seeds)
    ]
    about_it = {"machine": machine(), "native_bfloat16": has_bfloat16(torch.device("cpu"))}
    subject = {"images": f"{name} test", "samples": len(x), "models": list(models)}
    write_results(options.out, f"queries_{name}", {**about_it, "subject": subject}, {"": rows})


if __name__ == "__main__":
    main()
