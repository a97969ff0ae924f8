"""Time and memory against batch size, image size and number of steps: python -m benchmarks.scaling

For the engine and for the bare model (forward and backward pass by the input). ``engine`` is the plain attack,
``tracking`` also keeps each sample's best iterate. Memory is the peak beyond what was allocated before the call: the
images it was given do not count. ``images_a_sample`` is the engine's peak beyond the bare model's, in images for each
sample of the batch; the goal is at most four.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import L2, PGD
from advfeat.models import create
from benchmarks.attacks import bare_model_steps
from benchmarks.measure import RESULTS, machine, say, take_turns, write_results
from benchmarks.memory import peak_bytes
from benchmarks.plots import about, curves

GOAL = 4.0
BATCHES, SIZES, STEPS = [1, 4, 16, 64, 256], [16, 32, 64, 128, 224], [1, 2, 5, 10, 20, 50, 100]
BATCH, SIZE, STEP_COUNT = 64, 32, 10  # what stays while another one varies
LINES = {"model": "the model alone", "engine": "attack", "tracking": "attack, best iterates kept"}
AXES = {"batch": "samples in the batch", "size": "side of the image, pixels", "steps": "steps"}


def engines(model: nn.Module, steps: int) -> dict[str, Callable[[Tensor, Tensor], object]]:
    plain = PGD(L2(0.5), steps=steps, step_size=0.1)
    best = plain.replace(keep="best")
    return {
        "model": partial(bare_model_steps, model, steps=steps),
        "engine": lambda x, y: plain(model, x, y),
        "tracking": lambda x, y: best.run(model, x, y),
    }


def measure(arch: str, batch: int, size: int, steps: int, rounds: int, device: torch.device) -> list[dict]:
    """Time a step and peak memory of each of :func:`engines` for one setting."""
    torch.manual_seed(0)
    model = create(arch, 10, (3, size, size)).to(device).eval()
    x, y = torch.rand(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
    calls = {name: partial(call, x=x, y=y) for name, call in engines(model, steps).items()}
    timed = take_turns(calls, rounds=rounds, seconds=0.02, device=device, warm_up=2)
    peaks = {name: peak_bytes(call, device) for name, call in calls.items()}
    rows = []
    for name in calls:
        ratio, low, high = timed[name].over(timed["model"])
        rows.append(
            {
                "what": name,
                "batch": batch,
                "size": size,
                "steps": steps,
                "ms_per_step": 1e3 * timed[name].median / steps,
                "to_model": ratio,
                "low": low,
                "high": high,
                "peak_bytes": peaks[name],
                "images_a_sample": (peaks[name] - peaks["model"]) / x.nbytes,
            }
        )
        say(rows[-1])
    return rows


def sweep(
    arch: str, device: torch.device, rounds: int, batches: list[int], sizes: list[int], steps: list[int]
) -> list[dict]:
    """One axis at a time, the others as BATCH, SIZE and STEP_COUNT have them."""
    settings = [("batch", b, SIZE, STEP_COUNT) for b in batches]
    settings += [("size", max(1, min(BATCH, BATCH * 64**2 // s**2)), s, STEP_COUNT) for s in sizes]
    settings += [("steps", BATCH, SIZE, s) for s in steps]
    rows = []
    for axis, batch, size, count in settings:
        rows += [{"axis": axis, **row} for row in measure(arch, batch, size, count, rounds, device)]
    return rows


def figure(rows: list[dict], result: dict):
    """Three panels for time, three for memory."""
    panels, labels, limits = {}, {}, {}
    for column, unit in (("ms_per_step", "ms a step and sample"), ("images_a_sample", "images a sample")):
        for axis, words in AXES.items():
            name = ("Time" if column == "ms_per_step" else "Peak memory beyond the model's") + f" against {axis}"
            lines: dict[str, tuple[list[float], list[float]]] = {}
            for row in (r for r in rows if r["axis"] == axis):
                if column == "images_a_sample" and row["what"] == "model":
                    continue
                value = row[column] / row["batch"] if column == "ms_per_step" else row[column]
                x, y = lines.setdefault(LINES[row["what"]], ([], []))
                x.append(row[axis])
                y.append(value)
            if lines:
                panels[name], labels[name] = lines, (words, unit)
                if column == "images_a_sample":
                    limits[name] = (GOAL, "the goal: at most four")
    title = f"PGD on {result['arch']}, 3 channels; else {BATCH} samples of {SIZE}x{SIZE}, {STEP_COUNT} steps"
    return curves(panels, f"{title}\n{about(result['machine'])}", labels, limits=limits)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--arch", default="small-convnet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--steps", nargs="*", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    rows = sweep(options.arch, device, options.rounds, options.batches, options.sizes, options.steps)
    if not rows:
        parser.error("--batches, --sizes and --steps are all empty: nothing to measure")
    result = {"machine": machine(device), "rounds": options.rounds, "arch": options.arch, "goal_images": GOAL}
    write_results(options.out, f"scaling_{options.device}", result, {"": rows}, {"": figure(rows, result)})
    worst = max((r["images_a_sample"] for r in rows if r["what"] != "model"), default=math.nan)
    print(f"at most {worst:.2f} images a sample beyond the model's own (the goal: {GOAL:g})")


if __name__ == "__main__":
    main()
