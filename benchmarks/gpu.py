"""Everything that needs a GPU, in one command: python -m benchmarks.gpu

Compiles, runs the CUDA tests, sweeps the operators, compares attacks, and runs the memory checker if there is one.
Each part has a time limit and a log of its own; a part that fails does not stop the others, and the summary says which
did. ``--dry-run`` goes through the same parts on the CPU, as far as they go there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measure import RESULTS, machine

ROOT = Path(__file__).resolve().parents[1]


def parts(dry: bool, out: Path, data: Path | None) -> list[tuple[str, list[str], int]]:
    """Name, command and time limit in seconds of each part; eight minutes in all."""
    python, device = sys.executable, "cpu" if dry else "cuda"
    found = [
        ("build", [python, "setup.py", "build_ext", "--inplace"], 240),
        ("tests", [python, "-m", "pytest", "-q", "-m", "cuda", "tests", "-x", "--timeout=120"], 150),
        ("ops", [python, "-m", "benchmarks.ops", "--device", device, "--out", str(out)], 120),
        ("attacks", [python, "-m", "benchmarks.attacks", "--device", device, "--rounds", "5", "--out", str(out)], 90),
    ]
    if dry:
        quick = ["--rounds", "1"]
        found[2][1].extend([*quick, "--no-compile"])
        found[3][1].extend(quick)
    if data:
        command = [python, "-m", "benchmarks.build", "--device", device, "--data", str(data), "--arch", "resnet50"]
        if dry:
            command[-1] = "small-convnet"
            command += ["--images", "64", "--steps", "2", "--rounds", "1"]
        found.append(("build a set", [*command, "--out", str(out)], 150))
    checker = shutil.which("compute-sanitizer")
    if checker and not dry:
        script = "from sanitize import main; main()"
        found.append(("sanitizer", [checker, "--tool", "memcheck", "--error-exitcode", "9", python, "-c", script], 120))
    return found


def run(name: str, command: list[str], limit: int, logs: Path) -> dict:
    """One part, its output in a log."""
    began = time.monotonic()
    print(f"{name} ...", flush=True)
    log = logs / f"{name.replace(' ', '_')}.log"
    with open(log, "w") as file:
        try:
            path = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
            code = subprocess.run(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit,
                env={**os.environ, "PYTHONPATH": path},
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    seconds = time.monotonic() - began
    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
    print(f"  {'ok' if code == 0 else 'FAILED' if code is not None else 'OUT OF TIME'} in {seconds:.0f} s", flush=True)
    for line in tail:
        print(f"  | {line[:160]}", flush=True)
    return {"part": name, "exit": code, "seconds": round(seconds, 1), "limit": limit, "tail": tail}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10, for building a set")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, one short round of each part")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("no GPU: nothing was measured (--dry-run goes through the parts on the CPU)", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    logs = options.out / "logs"
    logs.mkdir(exist_ok=True)
    done = [
        run(name, command, limit, logs) for name, command, limit in parts(options.dry_run, options.out, options.data)
    ]
    summary = {"machine": machine("cpu" if options.dry_run else "cuda"), "dry_run": options.dry_run, "parts": done}
    (options.out / "gpu.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"written to {options.out}")
    return 0 if all(part["exit"] == 0 for part in done) else 1


if __name__ == "__main__":
    sys.exit(main())
