"""The fused steps against the memory they move, eager torch and torch.compile: python -m benchmarks.ops

On the CPU a case is a tensor as attacks have them, and the yardstick is two ``y.copy_(x)`` of its size into a ready
tensor: a step reads x, grad and x0 and writes x, which is the traffic of two copies. On CUDA it is torch.clone:
rows of many lengths in tensors of 64 MiB, and batches that fit the L2 cache, replayed from a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from advfeat import ops
from benchmarks import plain
from benchmarks.measure import RESULTS, machine, take_turns, write_csv

CPU_SHAPES = [(256, 3, 32, 32), (2048, 3, 32, 32), (16, 3, 224, 224), (64, 3, 224, 224)]
CUDA_ROWS = [784, 3072, 12_288, 49_152, 150_528, 262_144]
LARGE = 64 * 2**20  # bytes of one tensor: beyond the cache
CACHED_SHAPES = [(128, 3, 32, 32), (256, 3, 32, 32)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS = {"linf": (ops.linf_step_, plain.linf_step), "l2": (ops.l2_step_, plain.l2_step)}


def tensors(shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: torch.device) -> list[Tensor]:
    """x, grad, x0 (a step then leaves the ball, as in the middle of an attack) and a ready tensor for copies."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.rand(shape, generator=g)
    x = (x0 + 0.02 * torch.randn(shape, generator=g)).clamp(0, 1)
    made = [x, torch.randn(shape, generator=g), x0, torch.empty(shape)]
    if layout == "channels_last":
        made = [t.to(memory_format=torch.channels_last) for t in made]
    return [t.to(dtype=dtype, device=device) for t in made]


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


def cpu_rows(rounds: int, compiled: bool, shapes=CPU_SHAPES) -> list[dict]:
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
                        "to_two_copies_low": low / 2,
                        "to_two_copies_high": high / 2,
                        "eager_over_advfeat": timed["eager"].over(timed["advfeat"])[0],
                        "compile_over_advfeat": timed["compile"].over(timed["advfeat"])[0] if compiled else math.nan,
                    }
                    rows.append(row)
                    _say(row)
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


def cuda_rows(rounds: int) -> list[dict]:
    """Tensors of 64 MiB; per cent of the bandwidth that torch.clone reaches in the same round."""
    device, rows = torch.device("cuda"), []
    for length in CUDA_ROWS:
        for dtype_name, dtype in DTYPES.items():
            shape = (math.ceil(LARGE / dtype.itemsize / length), length)
            for norm in STEPS:
                torch._dynamo.reset()
                found = candidates(norm, shape, dtype, "contiguous", device, compiled=True)
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
                    "percent_low": 200 * low,
                    "percent_high": 200 * high,
                    "eager_over_advfeat": timed["eager"].over(timed["advfeat"])[0],
                    "compile_over_advfeat": timed["compile"].over(timed["advfeat"])[0],
                }
                rows.append(row)
                _say(row)
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
                _say(row)
    return rows


def _graph(call: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


def _say(row: dict) -> None:
    cells = [f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items() if k != "model_bytes"]
    print("  ".join(cells), flush=True)


def plot(rows: list[dict], path: Path) -> None:
    """One bar a case: the step's time over that of two copies, with the targets' line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [f"{r['shape']} {r['dtype']}{' nhwc' if r['layout'] == 'channels_last' else ''}" for r in rows]
    order = list(dict.fromkeys(labels))
    figure = Figure(figsize=(8, 0.42 * len(order) + 1.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for offset, op, colour in ((-0.2, "linf_step_", "#3b6fb6"), (0.2, "l2_step_", "#d9822b")):
        own = {label: row for label, row in zip(labels, rows, strict=True) if row["op"] == op}
        places = [order.index(label) + offset for label in own]
        values = [r["to_two_copies"] for r in own.values()]
        spread = [
            [r["to_two_copies"] - r["to_two_copies_low"] for r in own.values()],
            [r["to_two_copies_high"] - r["to_two_copies"] for r in own.values()],
        ]
        axis.barh(places, values, 0.38, xerr=spread, color=colour, label=op, error_kw={"lw": 1})
    axis.axvline(1, color="black", lw=0.8)
    axis.axvline(1.35, color="black", lw=0.8, ls=":")
    axis.set_yticks(range(len(order)), order)
    axis.invert_yaxis()
    axis.set_xlabel("time over that of two copies (the same traffic); quartiles; dotted: 1.35")
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (CPU)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    result: dict = {"machine": machine(options.device), "rounds": options.rounds}
    result["overhead"] = call_overhead(options.rounds, options.device)
    if options.device == "cpu":
        result["steps"] = cpu_rows(options.rounds, not options.no_compile)
        plot(result["steps"], options.out / "ops_cpu.png")
    else:
        result["steps"] = cuda_rows(options.rounds)
        result["cached"] = cached_rows(options.rounds)
        write_csv(options.out / "ops_cuda_cached.csv", result["cached"])
    write_csv(options.out / f"ops_{options.device}.csv", result["steps"])
    (options.out / f"ops_{options.device}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
