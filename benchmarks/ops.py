"""The fused steps against the memory they move, eager torch and torch.compile: python -m benchmarks.ops

On the CPU a case is a tensor as attacks have them, and the yardstick is two ``y.copy_(x)`` of its size into a ready
tensor: a step reads x, grad and x0 and writes x, which is the traffic of two copies. On CUDA it is torch.clone:
rows of many lengths in tensors of 64 MiB, and batches that fit the L2 cache, replayed from a CUDA graph.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from advfeat import ops
from benchmarks import plain
from benchmarks.measure import RESULTS, machine, say, take_turns, write_results
from benchmarks.plots import Bar, about, bars

CPU_SHAPES = [(256, 3, 32, 32), (2048, 3, 32, 32), (16, 3, 224, 224), (64, 3, 224, 224)]
CUDA_ROWS = [784, 3072, 12_288, 49_152, 150_528, 262_144]
COMPILED_ROWS = [3072, 150_528]
LARGE = 64 * 2**20  # bytes of one tensor: beyond the cache
CACHED_SHAPES = [(128, 3, 32, 32), (256, 3, 32, 32)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS = {"linf": (ops.linf_step_, plain.linf_step), "l2": (ops.l2_step_, plain.l2_step)}


def tensors(shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: torch.device) -> list[Tensor]:
    """x, grad, x0 (a step then leaves the ball, as in the middle of an attack) and a ready tensor for copies."""
    g = torch.Generator(device).manual_seed(0)
    x0 = torch.rand(shape, generator=g, device=device)
    x = (x0 + 0.02 * torch.randn(shape, generator=g, device=device)).clamp(0, 1)
    made = [x, torch.randn(shape, generator=g, device=device), x0, torch.empty(shape, device=device)]
    if layout == "channels_last":
        made = [t.to(memory_format=torch.channels_last) for t in made]
    return [t.to(dtype) for t in made]


def numbers(norm: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """step_size, eps, of a size that makes ball and step both matter."""
    return (0.01, 0.03) if norm == "linf" else (0.1, 0.015 * math.sqrt(math.prod(shape[1:])))


def candidates(norm: str, shape, dtype, layout, device, compiled: bool) -> dict[str, Callable[[], object]]:
    x, grad, x0, ready = tensors(shape, dtype, layout, device)
    fused, eager = STEPS[norm]
    a, eps = numbers(norm, shape)
    moving = x.clone()
    found: dict[str, Callable[[], object]] = {
        "copy": lambda: ready.copy_(x),
        "advfeat": lambda: fused(moving, grad, x0, a, eps),
        "eager": lambda: eager(x, grad, x0, a, eps),
    }
    if compiled:
        quick = torch.compile(eager, fullgraph=True, dynamic=False)
        found["compile"] = lambda: quick(x, grad, x0, a, eps)
    return found


def cpu_rows(rounds: int, compiled: bool, shapes: list[tuple[int, ...]]) -> list[dict]:
    rows = []
    for shape in shapes:
        for dtype_name, dtype in DTYPES.items():
            for layout in ("contiguous", "channels_last"):
                for norm in STEPS:
                    torch._dynamo.reset()
                    timed = take_turns(candidates(norm, shape, dtype, layout, "cpu", compiled), rounds=rounds)
                    size = math.prod(shape) * dtype.itemsize
                    to_copy, low, high = timed["advfeat"].over(timed["copy"])
                    row = {
                        "op": f"{norm}_step_",
                        "shape": "x".join(map(str, shape)),
                        "dtype": dtype_name,
                        "layout": layout,
                        "us": 1e6 * timed["advfeat"].median,
                        "model_bytes": 4 * size,
                        "GB_per_s": 4 * size / timed["advfeat"].median / 1e9,
                        "to_two_copies": to_copy / 2,
                        "low": low / 2,
                        "high": high / 2,
                        "eager_over_advfeat": timed["eager"].over(timed["advfeat"])[0],
                        "compile_over_advfeat": timed["compile"].over(timed["advfeat"])[0] if compiled else math.nan,
                    }
                    rows.append(row)
                    say(row, ("model_bytes",))
    return rows


def call_overhead(rounds: int, device: torch.device | str = "cpu") -> list[dict]:
    """Calls on 16 values: nothing but overhead. torch.clamp_ is what a call costs in torch itself."""
    x, grad, x0, _ = tensors((1, 16), torch.float32, "contiguous", device)
    moving = x.clone()
    timed = take_turns(
        {
            "clamp_": lambda: x.clamp_(0.0, 1.0),
            "linf_step_": lambda: ops.linf_step_(moving, grad, x0, 0.01, 0.03),
            "l2_step_": lambda: ops.l2_step_(moving, grad, x0, 0.1, 0.5),
            "eager linf": lambda: plain.linf_step(x, grad, x0, 0.01, 0.03),
            "eager l2": lambda: plain.l2_step(x, grad, x0, 0.1, 0.5),
        },
        rounds=rounds,
        device=device,
    )
    rows = []
    for name, timing in timed.items():
        ratio, low, high = timing.over(timed["clamp_"])
        rows.append({"call": name, "us": 1e6 * timing.median, "to_clamp": ratio, "low": low, "high": high})
        print(f"{name:12s} {1e6 * timing.median:7.2f} us   {ratio:5.2f} of clamp_ ({low:.2f} - {high:.2f})")
    return rows


def cuda_rows(rounds: int, compiled: bool) -> list[dict]:
    """Tensors of 64 MiB; per cent of the bandwidth that torch.clone reaches in the same round.

    Compiling takes seconds a case, so only the lengths in COMPILED_ROWS are compared with torch.compile.
    """
    device, rows = torch.device("cuda"), []
    for length in CUDA_ROWS:
        for dtype_name, dtype in DTYPES.items():
            shape = (math.ceil(LARGE / dtype.itemsize / length), length)
            for norm in STEPS:
                torch._dynamo.reset()
                too = compiled and length in COMPILED_ROWS
                found = candidates(norm, shape, dtype, "contiguous", device, compiled=too)
                x = tensors(shape, dtype, "contiguous", device)[0]
                found["clone"] = lambda x=x: x.clone()
                timed = take_turns(found, rounds=rounds, seconds=0.01, device=device)
                size = math.prod(shape) * dtype.itemsize
                # a clone moves 2 of these, a step 4
                share, low, high = timed["clone"].over(timed["advfeat"])
                row = {
                    "op": f"{norm}_step_",
                    "shape": "x".join(map(str, shape)),
                    "dtype": dtype_name,
                    "us": 1e6 * timed["advfeat"].median,
                    "model_bytes": 4 * size,
                    "GB_per_s": 4 * size / timed["advfeat"].median / 1e9,
                    "percent_of_clone": 200 * share,
                    "low": 200 * low,
                    "high": 200 * high,
                    "eager_over_advfeat": timed["eager"].over(timed["advfeat"])[0],
                    "compile_over_advfeat": timed["compile"].over(timed["advfeat"])[0] if too else math.nan,
                }
                rows.append(row)
                say(row, ("model_bytes",))
    return rows


def cached_rows(rounds: int, calls: int = 50) -> list[dict]:
    """Batches that stay in the L2 cache, ``calls`` of them in one CUDA graph, beside one elementwise kernel."""
    device, rows = torch.device("cuda"), []
    for shape in CACHED_SHAPES:
        for dtype_name, dtype in DTYPES.items():
            for norm, (fused, _) in STEPS.items():
                x, grad, x0, ready = tensors(shape, dtype, "contiguous", device)
                a, eps = numbers(norm, shape)
                graphs = {
                    "advfeat": _graph(lambda x=x, g=grad, x0=x0, f=fused, a=a, e=eps: f(x, g, x0, a, e), calls),
                    "elementwise": _graph(lambda x=x, out=ready: torch.mul(x, 0.5, out=out), calls),
                }
                timed = take_turns({k: g.replay for k, g in graphs.items()}, rounds=rounds, device=device)
                ratio, low, high = timed["advfeat"].over(timed["elementwise"])
                row = {
                    "op": f"{norm}_step_",
                    "shape": "x".join(map(str, shape)),
                    "dtype": dtype_name,
                    "us": 1e6 * timed["advfeat"].median / calls,
                    "to_elementwise": ratio,
                    "low": low,
                    "high": high,
                }
                rows.append(row)
                say(row, ("model_bytes",))
    return rows


def _graph(call: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


def figures(result: dict) -> dict:
    """A panel for each operator: time over that of two copies (CPU), per cent of clone, time over a plain kernel's."""
    title = f"whiskers: quartiles\n{about(result['machine'])}"
    if "to_two_copies" in result["steps"][0]:
        drawn = {"": ("to_two_copies", {1.0: "two copies, the same traffic", 1.35: "the goal: 1.35"})}
    else:
        drawn = {
            "": ("percent_of_clone", {90.0: "the goal: 90 %, of bfloat16 85 %"}),
            "cached": ("to_elementwise", {1.5: "the goal: 1.5"}),
        }
    words = {
        "to_two_copies": "time over that of two copies of the tensor",
        "percent_of_clone": "bandwidth, in per cent of torch.clone's",
        "to_elementwise": "time over that of one elementwise kernel, in the L2 cache",
    }
    made = {}
    for kind, (column, lines) in drawn.items():
        panels: dict[str, list[Bar]] = {}
        for row in result["cached" if kind else "steps"]:
            layout = " nhwc" if row.get("layout") == "channels_last" else ""
            note = f"{row[column]:.3g}, {row['us']:.3g} us"
            bar = Bar(f"{row['shape']} {row['dtype']}{layout}", row[column], row["low"], row["high"], note, ours=True)
            panels.setdefault(row["op"], []).append(bar)
        made[kind] = bars(panels, f"One fused step, {title}", words[column], columns=2, lines=lines)
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--shapes", nargs="*", help="on the CPU, such as 256x3x32x32; default: the four of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes or ()] or CPU_SHAPES
    result: dict = {"machine": machine(options.device), "rounds": options.rounds}
    tables = {"overhead": call_overhead(options.rounds, options.device)}
    if options.device == "cpu":
        tables[""] = cpu_rows(options.rounds, not options.no_compile, shapes)
    else:
        tables[""] = cuda_rows(options.rounds, not options.no_compile)
        tables["cached"] = cached_rows(options.rounds)
    drawn = figures({**result, "steps": tables[""], "cached": tables.get("cached")})
    write_results(options.out, f"ops_{options.device}", result, tables, drawn)


if __name__ == "__main__":
    main()
