"""Timing that a noisy machine does not fool: candidates take turns, and a ratio compares times of the same round.

Also what all benchmarks share: what they say about the machine, and how their results reach the disk.
``python -m benchmarks.measure --device cuda`` prints the machine as JSON.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import io
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from advfeat.files import write_together
from advfeat.provenance import git_revision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"
PEERS = (
    "torchattacks",
    "foolbox",
    "robustness",
    "adv-lib",
    "adversarial-robustness-toolbox",
    "pyautoattack",
    "autoattack",
)
# Says which commit is measured where the code was copied without its history, or with an older one.
REVISION = "ADVFEAT_BENCHMARK_REVISION"


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one value a round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: Timing) -> tuple[float, float, float]:
        """This one's time as a multiple of the other's: the median over rounds, and the quartiles."""
        return spread([a / b for a, b in zip(self.rounds, other.rounds, strict=True)])


def take_turns(
    candidates: dict[str, Callable[[], object]],
    *,
    rounds: int = 15,
    seconds: float = 0.02,
    device: torch.device | str = "cpu",
    warm_up: int = 3,
) -> dict[str, Timing]:
    """Times every candidate once a round, in an order that rotates; a time is a mean over ``seconds``, 0 for one call.

    On CUDA the calls of one time are enqueued together and waited for once. warm_up: calls before the first round.
    """
    device = torch.device(device)
    calls = {name: _calls_in(seconds, call, device, warm_up) for name, call in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(_time(candidates[name], calls[name], device))
    return {name: Timing(values) for name, values in times.items()}


def _calls_in(seconds: float, call: Callable[[], object], device: torch.device, warm_up: int) -> int:
    for _ in range(warm_up):  # compiles, allocates, fills caches
        _time(call, 1, device)
    if not seconds:
        return 1
    calls = 1
    while (took := _time(call, calls, device) * calls) < seconds / 4:
        calls = max(2 * calls, min(1000 * calls, int(calls * seconds / 4 / max(took, 1e-7))))
    return max(1, round(calls * seconds / took))


def _time(call: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000 / calls


class Kept:
    """A call that keeps its last result: what was timed is what is judged, and nothing has to run again for it."""

    def __init__(self, call: Callable[[], torch.Tensor]) -> None:
        self.call = call
        self.result: torch.Tensor | None = None

    def __call__(self) -> torch.Tensor:
        self.result = self.call()
        return self.result


def machine(device: torch.device | str = "cpu") -> dict:
    """What a measurement was made on and with: goes into every result."""
    import advfeat

    device = torch.device(device)
    processor = platform.processor()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    found = {
        "date": datetime.date.today().isoformat(),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": advfeat.build_config().get("simd_level"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "advfeat": advfeat.__version__,
        "git": {"commit": os.environ[REVISION]} if os.environ.get(REVISION) else git_revision(),
        "peers": peer_versions(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "cuda": torch.version.cuda, "gpu_memory": properties.total_memory}
    return found


def peer_versions() -> dict[str, str]:
    """The versions of the libraries to compare with that are installed."""
    found = {}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def say(row: dict, leave_out: tuple[str, ...] = ()) -> None:
    """A row as one line, while the benchmark still runs."""
    cells = [f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items() if k not in leave_out]
    print("  ".join(cells), flush=True)


def write_results(
    folder: Path, name: str, result: dict, tables: dict[str, list[dict]], figures: dict[str, Figure] | None = None
) -> None:
    """``name.json`` with everything, ``name[_table].csv`` and ``name[_figure].png``: all of them, whole, or none.

    tables, figures: by what is added to the name; "" for nothing. result: what the JSON has beside the tables.
    """
    files = []
    for kind, rows in tables.items():
        if rows:
            files.append((folder / f"{_joined(name, kind)}.csv", _csv(rows)))
    for kind, figure in (figures or {}).items():
        image = io.BytesIO()
        figure.savefig(image, format="png")
        files.append((folder / f"{_joined(name, kind)}.png", image.getvalue()))
    everything = {**result, "tables": {_joined(name, kind): rows for kind, rows in tables.items()}}
    files.append((folder / f"{name}.json", (json.dumps(_plain(everything), indent=1) + "\n").encode()))
    write_together(files)
    print(f"written: {', '.join(str(path) for path, _ in files)}", flush=True)


def _joined(name: str, kind: str) -> str:
    return f"{name}_{kind}" if kind else name


def _csv(rows: list[dict]) -> bytes:
    """The columns are the keys of all rows, in the order in which they come up."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for row in rows for k in row)))
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return file.getvalue().encode()


def _plain(value: object) -> object:
    # NaN (what was not measured) is no JSON
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="prints what a measurement here is made on and with, as JSON")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    print(json.dumps(machine(parser.parse_args(arguments).device)))


if __name__ == "__main__":
    main()
