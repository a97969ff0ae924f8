"""The CUDA kernels of csrc on the CPU: compiled with the C++ compiler against the emulator beside this file.

Its operators are ``torch.ops.advfeat_emulated``, take tensors on the CPU and are checked like the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from advfeat import ops

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
EMULATOR = HERE
SOURCES = [
    *sorted(EMULATOR.glob("*.cpp")),
    *(CSRC / "core" / name for name in ("check.cpp", "prepare.cpp")),
    *sorted((CSRC / "ops").glob("*.c*")),
]
# Undefined behaviour (a pack that is not aligned, an index beyond an array) ends the process with a message; where the
# compiler can put that check into a library.
CHECKED = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]


class Device(ctypes.Structure):
    """A GPU as the kernels see it (emulator.h); by default an H100 or H200."""

    _fields_ = [
        ("shared_per_block", ctypes.c_int),
        ("shared_per_multiprocessor", ctypes.c_int),
        ("largest_cluster", ctypes.c_int),
        ("clusters_at_once", ctypes.c_int),
        ("ptx_version", ctypes.c_int),
        ("max_blocks", ctypes.c_uint),
        ("seed", ctypes.c_uint),
    ]

    def __init__(self, **different: int) -> None:
        h200 = {
            "shared_per_block": 227 * 1024,
            "shared_per_multiprocessor": 228 * 1024,
            "largest_cluster": 16,
            "clusters_at_once": 3,  # fewer, so that few rows are enough for a cluster to do several
            "ptx_version": 90,
            "max_blocks": 2**31 - 1,
            "seed": 1,
        }
        super().__init__(**(h200 | different))


class Launch(ctypes.Structure):
    """One launch, as the host asked for it: bytes of shared memory are a block's."""

    _fields_ = [
        ("blocks", ctypes.c_uint),
        ("cluster", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("shared", ctypes.c_size_t),
    ]


def load(folder: Path) -> Emulator:
    """The library in `folder`; compiled only where a source, the flags, the compiler or torch have changed since."""
    from torch.utils import cpp_extension

    compiler = shlex.split(cpp_extension.get_cxx_compiler())
    if sys.platform != "linux" or shutil.which(compiler[0]) is None:
        pytest.skip(f"the emulator needs Linux and a C++ compiler, {compiler[0]} is not here")
    # longjmp goes from one stack to another, which a fortified one refuses
    flags = ["-std=c++20", "-O2", "-g1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-w", "-U_FORTIFY_SOURCE"]
    flags += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-include", "as_on_cpu.h", f"-I{EMULATOR}"]
    flags += [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    texts = [path.read_bytes() for top in (EMULATOR, CSRC) for path in sorted(top.rglob("*.[ch]*"))]
    version = subprocess.run([*compiler, "-v"], capture_output=True, text=True).stderr  # names the machine, too
    key = hashlib.sha256(repr((torch.__version__, version, flags, texts)).encode()).hexdigest()[:16]
    library = folder / f"emulated-{key}.so"

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")

    def make(objects: Path) -> None:
        probe = objects / "probe.cpp"
        probe.write_text("int twice(int x) { return 2 * x; }")
        links = [*compiler, "-shared", "-fPIC", "-Wl,-z,defs", *CHECKED, str(probe), "-o", str(objects / "probe.so")]
        checked = CHECKED if subprocess.run(links, capture_output=True).returncode == 0 else []

        def compile_one(source: Path) -> str:
            made = objects / f"{source.stem}.o"
            own = ["-DADVFEAT_CUDA_SOURCE", *checked] if source.suffix == ".cu" else []
            own += ["-O3"] if source.name == "emulator.cpp" else []  # it looks at thousands of fibers at each barrier
            run([*compiler, *flags, *own, "-x", "c++", "-c", str(source), "-o", str(made)])
            return str(made)

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            made = list(pool.map(compile_one, SOURCES))
        run([*compiler, "-shared", "-Wl,-z,defs", "-o", str(objects / "made.so"), *made, *libraries, *checked])
        (objects / "made.so").replace(library)

    with FileLock(folder / "lock"):  # several processes of one test run ask for it
        if not library.exists():
            for old in folder.glob("emulated-*.so"):
                old.unlink()
            with tempfile.TemporaryDirectory(dir=folder) as objects:
                make(Path(objects))
        return Emulator(library)


class Emulator:
    """The loaded library."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        self._operators = {
            f"_{name}": getattr(torch.ops.advfeat_emulated, name).default
            for name in (op.removeprefix("_") for op in vars(ops) if isinstance(vars(ops)[op], torch._ops.OpOverload))
        }

    @contextlib.contextmanager
    def as_kernels(self) -> Iterator[None]:
        """``advfeat.ops`` runs the emulated kernels."""
        with mock.patch.multiple(ops, **self._operators):
            yield

    def set_device(self, device: Device) -> None:
        self._library.advfeat_set_device(ctypes.byref(device))

    def take_launches(self) -> list[Launch]:
        """Those since the last call, the first 64 of them."""
        launches = (Launch * 64)()
        count = self._library.advfeat_take_launches(launches, ctypes.c_size_t(len(launches)))
        return list(launches[: min(count, len(launches))])

    def run_mistake(self, mistake: int, x: Tensor) -> tuple[Tensor, str]:
        """The sum of faults.cpp with that mistake: what it wrote, and what the emulator said."""
        out, message = torch.zeros_like(x), ctypes.create_string_buffer(400)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, out)]
        self._library.advfeat_run_mistake(mistake, *pointers, message, ctypes.c_size_t(len(message)))
        return out, message.value.decode()
