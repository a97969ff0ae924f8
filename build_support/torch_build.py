"""What setup.py and CMakeLists.txt share: which torch, whether CUDA, for which architectures, which sources and flags.

Everything is decided from the torch that is installed and the toolkit that is found, never from a GPU being present:
a build gives the same library on a login node and on a compute node. ``python build_support/torch_build.py`` prints the
plan for CMake, a ``NAME=a;b;c`` a line.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_TORCH = (2, 10)
MINIMUM_SETUPTOOLS = (77, 0)  # the first that takes the license as an expression
STABLE_ABI_TARGET = "0x020a000000000000"  # 2.10 as TORCH_TARGET_VERSION spells it

# A cubin runs on later minor versions of its major one, and PTX on all that follow: Turing, Ampere and Ada, Hopper
# (with thread-block clusters), and what comes after it, in three passes of nvcc. The kernels are bound by memory:
# cubins of their own for 8.6, 8.9, 10.0 and 12.0 would cost a pass each.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "9.0")

TORCH_MISSING = """\
advfeat is compiled against the PyTorch you use, and {python} has none that this build can see.
Install one and try again: python -m pip install "torch>=2.10"    (CPU or CUDA: https://pytorch.org/get-started)
If there is one: python -m pip install -U setuptools ninja && python -m pip install --no-build-isolation ."""


def require_torch() -> None:
    """End with three lines, instead of a traceback, where there is no torch."""
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(TORCH_MISSING.format(python=sys.prefix))


def require_setuptools(version: str) -> None:
    """End with one line where setuptools cannot make wheels by itself: only possible without build isolation."""
    if _numbers(version) < MINIMUM_SETUPTOOLS:
        minimum = ".".join(map(str, MINIMUM_SETUPTOOLS))
        raise SystemExit(f"setuptools should be {minimum} or later, got {version}: python -m pip install -U setuptools")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


def check_torch_version(version: str) -> None:
    """ValueError unless ``version``, such as "2.14.1+cu130", is at least MINIMUM_TORCH."""
    if _numbers(version) < MINIMUM_TORCH:
        raise ValueError(f"torch should be {'.'.join(map(str, MINIMUM_TORCH))} or later, got {version}")


# --- CUDA ---


def is_toolkit(folder: str | None) -> bool:
    """Whether ``folder`` is a CUDA toolkit: the compiler and the headers, not just something called bin/nvcc."""
    if not folder or not os.path.isfile(os.path.join(folder, "bin", "nvcc")):
        return False
    header = "cuda_runtime.h"
    return os.path.isfile(os.path.join(folder, "include", header)) or bool(
        glob.glob(os.path.join(glob.escape(folder), "targets", "*", "include", header))
    )


def find_toolkit(environment: Mapping[str, str]) -> str | None:
    """The root of the CUDA toolkit: CUDA_HOME or CUDA_PATH, else the one behind the nvcc on PATH, else /usr/local/cuda.

    torch takes the folder above nvcc's for the toolkit. Where nvcc is a link or a small script in /usr/local/bin, that
    is /usr/local, without headers; nvcc itself tells its toolkit, as TOP, in a dry run.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(name):
            if not is_toolkit(environment[name]):
                raise ValueError(
                    f"{name} should be a CUDA toolkit with bin/nvcc and cuda_runtime.h, got {environment[name]}"
                )
            return environment[name]
    candidates: list[str] = []
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    if nvcc:
        candidates += [str(Path(nvcc).parent.parent), str(Path(nvcc).resolve().parent.parent)]
        dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        candidates += re.findall(r"^#\$ TOP=(.+)$", dry_run.stderr, flags=re.MULTILINE)
    candidates.append("/usr/local/cuda")
    return next((os.path.realpath(c) for c in candidates if is_toolkit(c)), None)


def _ask_nvcc(toolkit: str, option: str) -> str:
    return subprocess.run(
        [os.path.join(toolkit, "bin", "nvcc"), option], capture_output=True, text=True, check=True
    ).stdout


def toolkit_version(toolkit: str) -> str:
    """The release of the toolkit's nvcc, such as "13.0"."""
    output = _ask_nvcc(toolkit, "--version")
    release = re.search(r"release (\d+\.\d+)", output)
    if release is None:
        raise ValueError(f"{toolkit}/bin/nvcc --version should name a release, got {output!r}")
    return release.group(1)


def supported_architectures(toolkit: str) -> list[str]:
    """The architectures that the toolkit's nvcc compiles for, such as ["7.5", "8.0", ..., "12.1"]."""
    numbers = re.findall(r"compute_(\d+)(\d)\b", _ask_nvcc(toolkit, "--list-gpu-arch"))
    return [f"{major}.{minor}" for major, minor in numbers]


def choose_cuda(torch_cuda: str | None, toolkit: str | None, force: str | None) -> tuple[bool, str]:
    """Whether to compile for CUDA, and why (not).

    ``torch_cuda``: torch.version.cuda; ``toolkit``: the release of the toolkit found, such as "13.0", or None;
    ``force``: FORCE_CUDA, "0", "1" or unset. ValueError where FORCE_CUDA=1 asks for what cannot be built.
    """
    if force not in (None, "", "0", "1"):
        raise ValueError(f"FORCE_CUDA should be 0 or 1, got {force!r}")
    if force == "0":
        return False, "FORCE_CUDA=0"
    if not torch_cuda:
        problem = "this torch was built without CUDA"
    elif not toolkit:
        problem = "no CUDA toolkit was found (nvcc on PATH, or CUDA_HOME)"
    elif toolkit.split(".")[0] != torch_cuda.split(".")[0]:
        problem = f"the toolkit is CUDA {toolkit}, this torch is built for CUDA {torch_cuda}"
    else:
        return True, f"torch for CUDA {torch_cuda} and toolkit {toolkit}"
    if force == "1":
        raise ValueError(f"FORCE_CUDA=1 asks for CUDA kernels, but {problem}")
    return False, problem


def architectures(requested: str | None, supported: Sequence[str]) -> str:
    """TORCH_CUDA_ARCH_LIST as asked for, or else the default ones that this nvcc supports, the last also as PTX.

    >>> architectures(None, ["7.5", "8.0", "9.0", "12.0"])
    '7.5;8.0;9.0+PTX'
    >>> architectures("8.6", ["7.5", "8.0", "9.0"])
    '8.6'
    """
    if requested:
        return requested
    chosen = [a for a in DEFAULT_ARCHITECTURES if a in supported]
    if not chosen:  # a toolkit of another age: its oldest architecture, and PTX for all that follow
        chosen = list(supported[:1])
    if not chosen:
        raise ValueError("nvcc --list-gpu-arch should name an architecture, got none; set TORCH_CUDA_ARCH_LIST")
    return ";".join(chosen) + "+PTX"


# --- sources and flags ---


def source_files(cuda: bool, root: Path = ROOT) -> list[str]:
    """The sources, relative to ``root``: a build without CUDA leaves the .cu files out, and nothing else differs."""
    patterns = ["csrc/*.cpp", "csrc/*/*.cpp", *(["csrc/*/*.cu"] if cuda else [])]
    return sorted(path.relative_to(root).as_posix() for pattern in patterns for path in root.glob(pattern))


# -std: torch 2.11 and older would ask for C++17.
CXX_FLAGS = ["-std=c++20", "-O3", "-fopenmp-simd", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler=-Wall,-Wextra,-fvisibility=hidden"]


@dataclass(frozen=True)
class Plan:
    """All that a build has to know."""

    torch: str
    cuda: bool
    reason: str
    toolkit: str = ""
    cuda_version: str = ""
    architectures: str = ""
    sources: list[str] = field(default_factory=list)
    include_dirs: list[str] = field(default_factory=list)
    library_dirs: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)

    @property
    def defines(self) -> dict[str, str]:
        """Macros for C++ and CUDA alike."""
        return {"TORCH_TARGET_VERSION": STABLE_ABI_TARGET}

    def facts(self, build_type: str) -> dict[str, str]:
        """Macros, string literals all, that csrc/module.cpp reports in build_config()."""
        return {
            "ADVFEAT_TORCH_VERSION": self.torch,
            "ADVFEAT_CUDA_VERSION": self.cuda_version,
            "ADVFEAT_CUDA_ARCHITECTURES": self.architectures.replace(";", " "),
            "ADVFEAT_CUDA_REASON": self.reason,
            "ADVFEAT_BUILD_TYPE": build_type,
        }

    def compile_args(self, build_type: str = "Release") -> dict[str, list[str]]:
        """Flags for torch's BuildExtension. Its include folders become system folders: their warnings are not ours."""
        system = [flag for folder in self.include_dirs for flag in ("-isystem", folder)]
        defines = [f"-D{name}={value}" for name, value in self.defines.items()]
        facts = [f'-D{name}="{value}"' for name, value in self.facts(build_type).items()]
        # -g0: Python's own flags often ask for debugging symbols, four fifths of the file.
        args = {"cxx": [*CXX_FLAGS, "-g0", *defines, *facts, *system]}
        if self.cuda:
            args["nvcc"] = [*NVCC_FLAGS, *defines, "-DUSE_CUDA", *system]
        return args


def make_plan(environment: dict[str, str] | None = None, root: Path = ROOT) -> Plan:
    """Decide, and set CUDA_HOME and TORCH_CUDA_ARCH_LIST in os.environ, from which torch reads them."""
    environment = dict(os.environ) if environment is None else environment
    require_torch()
    import torch

    check_torch_version(torch.__version__)
    toolkit = find_toolkit(environment) if torch.version.cuda and environment.get("FORCE_CUDA") != "0" else None
    version = toolkit_version(toolkit) if toolkit else None
    cuda, reason = choose_cuda(torch.version.cuda, version, environment.get("FORCE_CUDA"))
    archs = ""
    if cuda:
        archs = architectures(environment.get("TORCH_CUDA_ARCH_LIST"), supported_architectures(toolkit))
        # cpp_extension reads CUDA_HOME on import, and indexes an empty list where no GPU names an architecture.
        os.environ["CUDA_HOME"], os.environ["TORCH_CUDA_ARCH_LIST"] = toolkit, archs

    from torch.utils import cpp_extension

    device = "cuda" if cuda else "cpu"
    if cuda:
        cpp_extension.CUDA_HOME = toolkit  # where it had been imported before
    includes = cpp_extension.include_paths(device)
    if not any(os.path.isdir(os.path.join(folder, "pybind11")) for folder in includes):
        import pybind11  # torch brings its own copy, but some distributions leave it out

        includes.append(pybind11.get_include())
    return Plan(
        torch=torch.__version__,
        cuda=cuda,
        reason=reason,
        toolkit=toolkit if cuda else "",
        cuda_version=version if cuda else "",
        architectures=archs,
        sources=source_files(cuda, root),
        include_dirs=includes,
        library_dirs=cpp_extension.library_paths(device),
        libraries=["c10", "torch", "torch_cpu", *(["cudart", "c10_cuda", "torch_cuda"] if cuda else [])],
    )


def _cmake_architectures(archs: str) -> list[str]:
    """ "8.0;9.0+PTX" as CMake spells it: 80-real;90."""
    numbers = re.findall(r"(\d+)\.(\d+)([af]?)(\+PTX)?", archs)
    if archs and not numbers:
        raise ValueError(f"TORCH_CUDA_ARCH_LIST should be numbers such as 8.0;9.0+PTX for CMake, got {archs}")
    return [f"{major}{minor}{suffix}" + ("" if ptx else "-real") for major, minor, suffix, ptx in numbers]


def main() -> None:
    plan = make_plan()
    values: dict[str, Sequence[str]] = {
        "CUDA": ["ON" if plan.cuda else "OFF"],
        "TOOLKIT": [plan.toolkit],
        "ARCHITECTURES": _cmake_architectures(plan.architectures),
        "SOURCES": plan.sources,
        "INCLUDE_DIRS": plan.include_dirs,
        "LIBRARY_DIRS": plan.library_dirs,
        "LIBRARIES": plan.libraries,
        "CXX_FLAGS": [f for f in CXX_FLAGS if f != "-O3"],
        "NVCC_FLAGS": [f for f in NVCC_FLAGS if f != "-O3"],
        "DEFINES": [f"{name}={value}" for name, value in plan.defines.items()],
    }
    for name, entries in values.items():
        print(f"{name}={';'.join(entries)}")
    for name, value in plan.facts("").items():
        if name != "ADVFEAT_BUILD_TYPE":
            print(f"FACT_{name}={value}")


if __name__ == "__main__":
    main()
