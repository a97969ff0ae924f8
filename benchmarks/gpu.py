"""Everything that needs a GPU, in one command and under eight minutes: python -m benchmarks.gpu

Compiles, runs the CUDA tests, sweeps the operators, compares attacks, builds D_det and D_R with each library, measures
scaling, and runs the memory checker if there is one. Each part has a time limit and a log; one that fails does not stop
the others, and the exit status says that one did. gpu.json has everything: the parts, the machine, and their results.

Other libraries that are missing are named and left out. --wheels DIR installs those in DIR (no network is asked) for
this run alone. --dry-run goes through the same parts on the CPU, in tiny sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_ALL = 470.0  # seconds; fewer than the parts' limits together, for not all of them will need theirs ...
RESERVED = 0.3  # ... so this share of its limit is kept for each part that is still to come
CHECKER = "/usr/local/cuda/bin/compute-sanitizer"


@dataclass(frozen=True)
class Part:
    """One step: its command, its seconds at most, the results that it writes (without .json) and its environment."""

    name: str
    command: list[str]
    limit: float
    result: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def parts(options: argparse.Namespace) -> list[Part]:
    python, dry = sys.executable, options.dry_run
    device = "cpu" if dry else "cuda"
    images = ["--data", str(options.data), "--split", options.split] if options.data else []
    standard = ["--model", str(options.model)] if options.model else []
    robust = ["--model", str(options.robust_model)] if options.robust_model else []

    def benchmark(name: str, what: str, limit: float, result: str, real: str, tiny: str, subject: list[str]) -> Part:
        size = (tiny if dry else real).split()
        command = [python, "-m", f"benchmarks.{what}", "--device", device, "--out", str(options.out)]
        return Part(name, [*command, *size, *subject], limit, result)

    def building(name: str, recipe: str, real: str, ways: list[str], subject: list[str]) -> Part:
        result = f"build_{device}_{recipe}"
        both = f"--recipe {recipe} --arch resnet50 --name {result}"
        tiny = f"{both} --images 4 --peer-images 2 --steps 2 --rounds 1 --batch-size 4"
        return benchmark(name, "build", 90, result, f"{both} {real}", tiny, [*subject, "--options", *ways])

    # compiling a ResNet-50 for each build would take more time than there is
    ways = ["advfeat build", "advfeat build, bfloat16", "advfeat build, fast preset, bfloat16"]
    tests = [python, "-m", "pytest", "-q", "-m", "cuda", "tests", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        tests += ["-n", str(min(14, os.cpu_count() or 1)), "--dist", "worksteal"]
    tiny_attacks = "--rounds 1 --steps 2 --shapes 4x3x32x32 1x3x64x64"
    tiny_attacks += " --samples 16 --evaluation-rounds 1 --evaluation-steps 5"
    peers = ["--libraries", "torchattacks", "foolbox", "robustness", "robustness, best"]  # ART's goes through numpy
    return [
        Part("build", [python, "setup.py", "build_ext", "--inplace"], 150),
        Part("tests", tests, 150),
        benchmark(
            "operators",
            "ops",
            90,
            f"ops_{device}",
            "--rounds 7",
            "--rounds 1 --no-compile --shapes 8x3x32x32 2x3x64x64",
            [],
        ),
        benchmark(
            "attacks",
            "attacks",
            60,
            f"attacks_{device}",
            "--rounds 3 --steps 40 --samples 512 --evaluation-rounds 1",  # fewer steps are not replayed
            tiny_attacks,
            [*images, *standard],
        ),
        building(
            "D_det",
            "det",
            "--images 512 --peer-images 256 --batch-size 256 --steps 50 --rounds 2",
            ways,
            [*images, *peers],
        ),
        building(
            "D_R",
            "robust",
            "--images 256 --peer-images 128 --batch-size 128 --steps 100 --rounds 2",
            ways,
            [*images, *robust],
        ),
        benchmark(
            "scaling",
            "scaling",
            60,
            f"scaling_{device}",
            "--rounds 3 --arch resnet18 --batches 1 16 64 256 --sizes 32 64 128 224 --steps 1 5 20 100",
            "--rounds 1 --batches 1 4 --sizes 16 32 --steps 1 2",
            [],
        ),
        benchmark(
            "apgd",
            "apgd",
            60,
            f"apgd_{device}",
            "--rounds 3 --samples 512",
            "--rounds 1 --steps 5 --samples 16 --targets 2",
            [*images, *(robust or standard)],
        ),
        _checker(python, dry),
    ]


def _checker(python: str, dry: bool) -> Part:
    """Every kernel under compute-sanitizer; without PyTorch's own allocator, which hides what is out of bounds."""
    tool = shutil.which("compute-sanitizer") or (CHECKER if Path(CHECKER).is_file() else None)
    if dry:  # its kernels are the GPU's
        return Part("memory checker", [python, "-c", "import benchmarks.sanitize; print('not run without a GPU')"], 60)
    if tool is None:
        return Part("memory checker", [], 0)
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", python, "-m", "benchmarks.sanitize"]
    return Part("memory checker", command, 90, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def run(part: Part, limit: float, out: Path, environment: dict[str, str]) -> dict:
    """One part, its output in a log. Past its limit it is killed with everything that it started."""
    if not part.command:
        print(f"{part.name}: left out, compute-sanitizer is not here", flush=True)
        return {"part": part.name, "status": "left out", "seconds": 0.0}
    began = time.monotonic()
    print(f"{part.name} ...", flush=True)
    log = out / "logs" / f"{part.name.replace(' ', '_')}.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**environment, **part.environment},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=max(limit, 1.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also what it left running, and after an interrupt
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - began
    status = "ok" if code == 0 else "failed" if code is not None else "out of time"
    lines = log.read_text(errors="replace").strip().splitlines()
    print(f"  {status} in {seconds:.0f} s", flush=True)
    for line in lines[-3 if status == "ok" else -15 :]:
        print(f"  | {line[:200]}", flush=True)
    left_out = sorted({line for line in lines if ": left out (" in line})
    return {
        "part": part.name,
        "status": status,
        "exit": code,
        "seconds": round(seconds, 1),
        "limit": round(limit, 1),
        "left_out": left_out,
        "tail": lines[-5:],
    }


def install_wheels(wheels: Path, target: Path) -> None:
    """The wheels of a folder into another folder, by pip and from nowhere else. Errors: ValueError."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise ValueError(f"--wheels {wheels} should be a folder with wheels, it has none")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*pip, "--target", str(target), *files], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise ValueError(f"pip could not install the wheels in {wheels}: {done.stderr.strip()[-400:]}")


def machine(device: str, environment: dict[str, str]) -> dict:
    """Asked of a process of its own, after the build: this one may have found the extension missing or old."""
    command = [sys.executable, "-m", "benchmarks.measure", "--device", device]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        return {"error": str(error)}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"error": done.stderr.strip()[-400:]}


def write_whole(path: Path, value: object) -> None:
    """Beside its place and then renamed, so that it is never there in part."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # two runs may write at once
    beside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(beside, path)


def read_results(part: Part, out: Path, since: float) -> dict:
    """What a part wrote, if it wrote it now."""
    path = out / f"{part.result}.json"
    if not part.result or not path.is_file() or path.stat().st_mtime < since:
        return {}
    return {part.result: json.loads(path.read_text())}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results, with --dry-run its folder dry-run")
    parser.add_argument("--data", type=Path, help="the folder of CIFAR-10; else random images, and digits to evaluate")
    parser.add_argument("--split", default="test", choices=("train", "test"), help="of the data set")
    parser.add_argument("--model", type=Path, help="a run folder with a standard model, to evaluate")
    parser.add_argument("--robust-model", type=Path, help="a run folder with a robust model, for D_R and Auto-PGD")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels of other libraries, for this run alone")
    parser.add_argument("--revision", help="the commit measured, where the code was copied without its history")
    parser.add_argument("--only", nargs="*", help="these parts alone")
    parser.add_argument("--seconds", type=float, default=IN_ALL, help="for everything together")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, tiny sizes")
    options = parser.parse_args(arguments)
    for name in ("data", "model", "robust_model", "wheels"):
        path = getattr(options, name)
        if path is not None and not path.is_dir():
            parser.error(f"--{name.replace('_', '-')} should be a folder, {path} is none")
        if path is not None:
            setattr(options, name, path.resolve())  # the parts run in the repository
    results = ROOT / "benchmarks" / "results"
    options.out = (options.out or (results / "dry-run" if options.dry_run else results)).resolve()
    wanted = parts(options)
    if options.only and (unknown := set(options.only) - {part.name for part in wanted}):
        parser.error(f"--only should be among {[part.name for part in wanted]}, got {sorted(unknown)}")
    if not options.dry_run:
        import torch

        if not torch.cuda.is_available():
            print("no GPU: nothing was measured (--dry-run goes through the parts on the CPU)", file=sys.stderr)
            return 1
        # compile for this GPU alone
        major, minor = torch.cuda.get_device_capability()
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    return _run_all([p for p in wanted if not options.only or p.name in options.only], options)


def _run_all(wanted: list[Part], options: argparse.Namespace) -> int:
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    began, since = time.monotonic(), time.time() - 1
    with tempfile.TemporaryDirectory() as target:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if options.revision:
            environment["ADVFEAT_BENCHMARK_REVISION"] = options.revision
        if options.wheels:
            try:
                install_wheels(options.wheels, Path(target))
            except ValueError as error:
                print(error, file=sys.stderr)
                return 2
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [target, os.environ.get("PYTHONPATH", "")]))
        done, results = [], {}
        for i, part in enumerate(wanted):
            left = options.seconds - (time.monotonic() - began)
            limit = min(part.limit, left - sum(later.limit * RESERVED for later in wanted[i + 1 :]))
            done.append(run(part, limit, options.out, environment))
            results |= read_results(part, options.out, since)
        about = machine("cpu" if options.dry_run else "cuda", environment)
    seconds = round(time.monotonic() - began, 1)
    summary = {"machine": about, "dry_run": options.dry_run, "seconds": seconds, "parts": done, "results": results}
    name = "gpu_dry_run.json" if options.dry_run else "gpu.json"
    write_whole(options.out / name, summary)
    bad = [part["part"] for part in done if part["status"] not in ("ok", "left out")]
    print(f"{len(done)} parts in {seconds:.0f} s, {', '.join(bad) or 'none'} failed; written: {options.out / name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
