"""The operators that search in each row, against the same with sorts in plain torch: python -m benchmarks.searches

L1 steps and projections, and FAB's step in three norms, on a batch of CIFAR's size in float32. The other side is
``advfeat.reference``, which sorts each row, as other libraries do.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

from advfeat import ops, reference
from benchmarks.measure import RESULTS, machine, say, take_turns, write_results
from benchmarks.plots import Bar, about, bars


def candidates(rows: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By name of the operator: the operator, and its reference."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(rows, 3, 32, 32, generator=g)
    x = (x0 + 0.05 * torch.randn(x0.shape, generator=g)).clamp(0, 1)
    grad = torch.randn(x0.shape, generator=g)
    gap = 10 * torch.randn(rows, generator=g)
    eps = 60.0  # of points some 110 away from their images
    found: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "project_l1": (lambda: ops.project_l1(x, x0, eps), lambda: reference.project_l1(x, x0, eps)),
        "l1_step": (lambda: ops.l1_step(x, grad, x0, 1.0, eps), lambda: reference.l1_step(x, grad, x0, 1.0, eps)),
    }
    for name, order in (("linf", math.inf), ("l2", 2), ("l1", 1)):
        found[f"fab_step_, {name}"] = (
            lambda order=order: ops.fab_step_(x.clone(), grad, x0, gap, order),
            lambda order=order: reference.fab_step(x, grad, x0, gap, order),
        )
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = []
    for name, (fused, sorts) in candidates(options.rows).items():
        timed = take_turns({"advfeat": fused, "sorts": sorts}, rounds=options.rounds)
        ratio, low, high = timed["sorts"].over(timed["advfeat"])
        milliseconds = {f"{key}_ms": 1e3 * timing.median for key, timing in timed.items()}
        rows.append({"op": name, "rows": options.rows, **milliseconds, "ratio": ratio, "low": low, "high": high})
        say(rows[-1])
    about_it = machine()
    drawn = [Bar(r["op"], r["ratio"], r["low"], r["high"], f"{r['advfeat_ms']:.1f} ms") for r in rows]
    title = f"Time of sorts over that of searches, {options.rows} x 3 x 32 x 32, whiskers: quartiles\n{about(about_it)}"
    figure = bars({"float32": drawn}, title, "time over that of advfeat")
    write_results(options.out, "searches", {"machine": about_it}, {"": rows}, {"": figure})


if __name__ == "__main__":
    main()
