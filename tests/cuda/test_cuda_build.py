"""The CUDA kernels as they were compiled, without a GPU: no spills, and 16 bytes an access where planned.

Read from the extension itself, for each of its architectures. Skipped where it was built without CUDA.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from advfeat import ops

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc").rglob("*.cu"))
HOPPER = "sm_90"  # the architecture whose instructions are read

# Argument reduction of sine and cosine, in CUDA's own library, indexes a table of the thread; once an attack.
STACK = {"gaussian_rows": 40}  # bytes
# Loads and stores of 16 bytes by kernel: x, grad and x0 in, x out; with momentum the velocity in, and out where x is.
# A half gradient of float32 values has 8 bytes.
WIDE = {
    "linf_flat": (3, 1),
    "linf_tiles": (3, 1),
    "l2_rows": (3, 1),
    "l2_sum_tiles": (3, 0),
    "l2_move_tiles": (3, 1),
    "copy_words": (1, 1),
    "hash_tiles": (1, 0),
    "accumulate_rows": (3, 1),
}
# Of the loads those of the gradient, where there is more than one: for its norm, and for the values.
OF_GRADIENT = {"accumulate_rows": 2}
HALF_GRADIENT = ("f6__half", "f13__nv_bfloat16")
# No vectors: l2_decide reads values only where sums cancel, fab_rows and l1_rows compute far longer than they read, the
# rest has nothing to gain (tuning.h).
SCALAR = {"fab_rows", "l1_rows", "l2_decide", "count_rows", "uniform_values", "gaussian_rows"}


@dataclass
class Kernel:
    """One entry function: its name, its template arguments as mangled, and what it takes of a multiprocessor."""

    architecture: str  # such as "sm_90"
    symbol: str
    registers: int  # of a thread
    stack: int  # bytes of a thread, with what is spilled
    shared: int  # bytes of a block, of its static arrays
    name: str = ""
    arguments: str = ""
    momentum: bool = False

    def __post_init__(self) -> None:
        if self.number >= 90:
            self.shared = max(self.shared - 1024, 0)  # each block's that has any, for the system; from Hopper on
        rest = self.symbol.removeprefix("_ZN").removeprefix("_Z")
        while length := re.match(r"\d+", rest):
            end = length.end() + int(length[0])
            self.name, rest = rest[length.end() : end], rest[end:]
        self.arguments = rest.split("EEv")[0].removeprefix("I") if rest.startswith("I") else ""
        if types := re.match(r"NS\w*?_9StepTypesI(.*?)Lb([01])E", self.arguments):
            self.arguments, self.momentum = types[1], types[2] == "1"

    @property
    def number(self) -> int:
        return int(re.sub(r"\D", "", self.architecture))

    def __str__(self) -> str:
        return f"{self.name}<{self.arguments}> on {self.architecture}"


def kernels_of(usage: str) -> list[Kernel]:
    """What ``cuobjdump -res-usage`` says, by entry function."""
    found: list[Kernel] = []
    architecture = symbol = ""
    for line in usage.splitlines():
        if named := re.match(r"arch = (\w+)", line):
            architecture = named[1]
        elif function := re.match(r"\s*Function (\w+):", line):
            symbol = function[1]
        elif used := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            found.append(Kernel(architecture, symbol, *map(int, used.groups())))
    return found


def wide_accesses(sass: str) -> dict[str, tuple[int, int]]:
    """The global loads (into registers or shared memory) and stores of 16 bytes, by symbol."""
    found: dict[str, tuple[int, int]] = {}
    for part in re.split(r"Function : ", sass)[1:]:
        symbol = part.split(None, 1)[0]
        found[symbol] = tuple(len(re.findall(rf"\b{op}\.E[.\w]*\.128\b", part)) for op in ("(?:LDG|LDGSTS)", "STG"))
    return found


def find_cuobjdump() -> str | None:
    """cuobjdump of a toolkit, or the one that triton brings."""
    toolkits = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    folders = [*(os.path.join(toolkit, "bin") for toolkit in toolkits if toolkit), os.environ.get("PATH", "")]
    found = shutil.which("cuobjdump", path=os.pathsep.join(folders))
    triton = importlib.util.find_spec("triton")
    if found or triton is None or triton.origin is None:
        return found
    return shutil.which("cuobjdump", path=str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))


@pytest.fixture(scope="session")
def cuobjdump():
    """Runs cuobjdump on the extension with some options."""
    if ops._C is None or not ops._C.build_config()["cuda"]:
        pytest.skip("the extension was built without CUDA")
    command = find_cuobjdump()
    if command is None:
        pytest.skip("no cuobjdump in a CUDA toolkit, on PATH or in triton")

    @functools.cache
    def run(*options: str) -> str:
        return subprocess.run([command, *options, ops._C.__file__], capture_output=True, text=True, check=True).stdout

    return run


@pytest.fixture(scope="session")
def kernels(cuobjdump) -> list[Kernel]:
    return kernels_of(cuobjdump("-res-usage"))


@pytest.fixture(scope="session")
def hopper(kernels) -> list[Kernel]:
    """Those of the architecture whose instructions are read."""
    found = [kernel for kernel in kernels if kernel.architecture == HOPPER]
    return found or pytest.skip(f"the extension was built without code for {HOPPER}")


def test_every_kernel_is_looked_at(kernels):
    written = set()
    for source in SOURCES:
        pattern = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\("
        written |= set(re.findall(pattern, re.sub(r"//.*", "", source.read_text())))
    assert written == WIDE.keys() | SCALAR
    for architecture in {kernel.architecture for kernel in kernels}:
        assert {kernel.name for kernel in kernels if kernel.architecture == architecture} == written, architecture
    assert kernels and all(kernel.registers > 0 and kernel.shared >= 0 for kernel in kernels)


def test_no_kernel_spills(kernels):
    found = [f"{k}: {k.stack} bytes of stack" for k in kernels if k.stack > STACK.get(k.name, 0)]
    assert not found, "\n".join(found)


def test_static_shared_memory_is_what_the_launches_leave_free(kernels):
    tuning = (ROOT / "csrc" / "core" / "tuning.h").read_text()
    reserved = int(re.search(r"kStaticShared = (\d+);", tuning)[1])
    assert 0 < max(kernel.shared for kernel in kernels if kernel.name == "l2_rows") <= reserved


def test_blocks_share_a_multiprocessor_as_planned(hopper):
    # 65,536 registers, handed out to warps by the eight a thread: two blocks of 384 threads, or of 256 in half types.
    for kernel in hopper:
        if kernel.name == "l2_rows":
            assert kernel.registers <= (80 if kernel.arguments.startswith(("ff", "fd", "dd")) else 128), kernel


@pytest.mark.slow
def test_hot_kernels_load_and_store_16_bytes_at_once(cuobjdump, hopper):
    accesses = wide_accesses(cuobjdump("-sass", "-arch", HOPPER))
    found = []
    for kernel in hopper:
        # copy_words has versions for words of 4, 2 and 1 bytes, for rows that are no multiple of 16
        if kernel.name not in WIDE or (kernel.name == "copy_words" and "uint4" not in kernel.arguments):
            continue
        loads, stores = WIDE[kernel.name]
        loads += kernel.momentum - OF_GRADIENT.get(kernel.name, 1) * kernel.arguments.startswith(HALF_GRADIENT)
        if kernel.name == "accumulate_rows" and kernel.arguments == "dd":
            loads += 1  # a norm beyond the largest number is taken again
        stores += kernel.momentum and stores > 0
        got = accesses[kernel.symbol]
        # a loop may be there several times, but then with all of its loads
        if got[0] < loads or got[0] % loads or got[1] < stores:
            found.append(
                f"{kernel}: {got[0]} loads and {got[1]} stores of 16 bytes, expected {loads} and {stores} a loop"
            )
    assert not found, "\n".join(found)
