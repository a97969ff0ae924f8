"""Timing that a noisy machine does not fool: candidates take turns, and a ratio compares times of the same round."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from advfeat.runs import git_revision

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds a call, one value a round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: Timing) -> tuple[float, float, float]:
        """This one's time as a multiple of the other's: the median over rounds, and the quartiles."""
        ratios = [a / b for a, b in zip(self.rounds, other.rounds, strict=True)]
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high


def take_turns(
    candidates: dict[str, Callable[[], object]],
    *,
    rounds: int = 15,
    seconds: float = 0.02,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Times every candidate once a round, in an order that rotates; a time is a mean over ``seconds``.

    On CUDA the calls of one time are enqueued together and waited for once.
    """
    device = torch.device(device)
    calls = {name: _calls_in(seconds, call, device) for name, call in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(_time(candidates[name], calls[name], device))
    return {name: Timing(values) for name, values in times.items()}


def _calls_in(seconds: float, call: Callable[[], object], device: torch.device) -> int:
    for _ in range(3):  # compiles, allocates, fills caches
        _time(call, 1, device)
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
        "git": git_revision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "cuda": torch.version.cuda, "gpu_memory": properties.total_memory}
    return found


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows of one kind as a table; the columns are the keys of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
