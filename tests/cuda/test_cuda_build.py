"""The CUDA sources, compiled as the build does, without a GPU: no spills, and 16 bytes an access where planned.

Device code only, for the oldest and the newest of the build's architectures: half a minute on one core. Skipped where
the build would leave CUDA out.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

pytestmark = pytest.mark.slow  # nvcc takes most of a minute

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc").rglob("*.cu"))
HOPPER = "9.0"  # the architecture whose instructions are read

# Argument reduction of sine and cosine, in CUDA's own library, indexes a table of the thread; once an attack.
WITH_STACK = {"gaussian_rows"}
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
    """One entry function: its name, its template arguments as mangled, and what ptxas says of it."""

    symbol: str
    name: str = ""
    arguments: str = ""
    momentum: bool = False
    stack: int = -1
    spilled: int = -1
    registers: int = -1
    shared: int = 0

    def __post_init__(self) -> None:
        rest = self.symbol.removeprefix("_ZN").removeprefix("_Z")
        while length := re.match(r"\d+", rest):
            end = length.end() + int(length[0])
            self.name, rest = rest[length.end() : end], rest[end:]
        self.arguments = rest.split("EEv")[0].removeprefix("I") if rest.startswith("I") else ""
        if types := re.match(r"NS\w*?_9StepTypesI(.*?)Lb([01])E", self.arguments):
            self.arguments, self.momentum = types[1], types[2] == "1"

    def __str__(self) -> str:
        return f"{self.name}<{self.arguments}>"


def kernels_of(ptxas: str) -> list[Kernel]:
    """What ``-Xptxas=-v`` says, by entry function."""
    found: list[Kernel] = []
    for line in ptxas.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            found.append(Kernel(entry[1]))
        elif numbers := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # also said of functions that are called, under the entry that they belong to
            found[-1].stack = max(found[-1].stack, int(numbers[1]))
            found[-1].spilled = max(found[-1].spilled, int(numbers[2]) + int(numbers[3]))
        elif used := re.search(r"Used (\d+) registers", line):
            found[-1].registers = int(used[1])
            shared = re.search(r"(\d+) bytes smem", line)
            found[-1].shared = int(shared[1]) if shared else 0
    return found


def wide_accesses(sass: str) -> dict[str, tuple[int, int]]:
    """The global loads (into registers or shared memory) and stores of 16 bytes, by symbol."""
    found: dict[str, tuple[int, int]] = {}
    for part in re.split(r"Function : ", sass)[1:]:
        symbol = part.split(None, 1)[0]
        found[symbol] = tuple(len(re.findall(rf"\b{op}\.E[.\w]*\.128\b", part)) for op in ("(?:LDG|LDGSTS)", "STG"))
    return found


@dataclass
class Compiled:
    cubins: list[Path]
    kernels: list[Kernel]
    toolkit: str


@pytest.fixture(scope="session")
def plan():
    spec = importlib.util.spec_from_file_location("torch_build", ROOT / "build_support" / "torch_build.py")
    torch_build = importlib.util.module_from_spec(spec)
    sys.modules["torch_build"] = torch_build  # dataclasses look their module up
    spec.loader.exec_module(torch_build)
    from torch.utils import cpp_extension

    # the build sets CUDA_HOME for torch
    with mock.patch.dict(os.environ), mock.patch.object(cpp_extension, "CUDA_HOME", cpp_extension.CUDA_HOME):
        plan = torch_build.make_plan({k: v for k, v in os.environ.items() if k != "FORCE_CUDA"})
    if not plan.cuda:
        pytest.skip(f"the build leaves CUDA out: {plan.reason}")
    supported = torch_build.supported_architectures(plan.toolkit)
    defaults = [a for a in torch_build.DEFAULT_ARCHITECTURES if a in supported]
    if HOPPER not in defaults:
        pytest.skip(f"this nvcc does not compile for {HOPPER}")
    return plan, dict.fromkeys((defaults[0], HOPPER))


@pytest.fixture(scope="session")
def compiled(plan, tmp_path_factory) -> dict[str, Compiled]:
    """By architecture; a file that does not compile fails with nvcc's message."""
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

    plan, architectures = plan
    folder = tmp_path_factory.mktemp("cubins")
    nvcc = [os.path.join(plan.toolkit, "bin", "nvcc"), *COMMON_NVCC_FLAGS, *plan.compile_args()["nvcc"]]
    found = {}
    for architecture in architectures:
        number = architecture.replace(".", "")
        found[architecture] = Compiled([], [], plan.toolkit)
        for source in SOURCES:
            cubin = folder / f"{source.stem}-{number}.cubin"
            command = [*nvcc, f"-gencode=arch=compute_{number},code=sm_{number}", "-Xptxas=-v", "-cubin"]
            done = subprocess.run([*command, "-o", str(cubin), str(source)], capture_output=True, text=True)
            assert done.returncode == 0, f"{source.name} for sm_{number}:\n{done.stderr}"
            warnings = [line for line in done.stderr.splitlines() if "warning" in line]
            assert not warnings, f"{source.name} for sm_{number}: {warnings}"
            found[architecture].cubins.append(cubin)
            found[architecture].kernels += kernels_of(done.stderr)
    return found


def test_every_kernel_is_looked_at(compiled):
    written = set()
    for source in SOURCES:
        pattern = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\("
        written |= set(re.findall(pattern, re.sub(r"//.*", "", source.read_text())))
    assert written == WIDE.keys() | SCALAR
    for architecture, result in compiled.items():
        assert {kernel.name for kernel in result.kernels} == written, architecture
        assert all(min(k.stack, k.spilled, k.registers) >= 0 for k in result.kernels), "ptxas says it otherwise now"


def test_no_kernel_spills(compiled):
    found = []
    for architecture, result in compiled.items():
        for kernel in result.kernels:
            if kernel.spilled or (kernel.stack and kernel.name not in WITH_STACK):
                found.append(f"{kernel} on {architecture}: {kernel.spilled} bytes spilled, {kernel.stack} of stack")
    assert not found, "\n".join(found)


def test_static_shared_memory_is_what_the_launches_leave_free(compiled):
    tuning = (ROOT / "csrc" / "core" / "tuning.h").read_text()
    reserved = int(re.search(r"kStaticShared = (\d+);", tuning)[1])
    for result in compiled.values():
        rows = [kernel for kernel in result.kernels if kernel.name == "l2_rows"]
        assert 0 < max(kernel.shared for kernel in rows) <= reserved


def test_blocks_share_a_multiprocessor_as_planned(compiled):
    # 65,536 registers, handed out to warps by the eight a thread: two blocks of 384 threads, or of 256 in half types.
    for kernel in compiled[HOPPER].kernels:
        if kernel.name == "l2_rows":
            assert kernel.registers <= (80 if kernel.arguments.startswith(("ff", "fd", "dd")) else 128), kernel


def disassembler(toolkit: str) -> str | None:
    """cuobjdump of the toolkit, or the one that triton brings."""
    found = shutil.which("cuobjdump", path=os.pathsep.join([os.path.join(toolkit, "bin"), os.environ.get("PATH", "")]))
    triton = importlib.util.find_spec("triton")
    if found or triton is None or triton.origin is None:
        return found
    return shutil.which("cuobjdump", path=str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))


def test_hot_kernels_load_and_store_16_bytes_at_once(compiled):
    result = compiled[HOPPER]
    cuobjdump = disassembler(result.toolkit)
    if cuobjdump is None:
        pytest.skip("no cuobjdump in the toolkit, on PATH or in triton")
    accesses: dict[str, tuple[int, int]] = {}
    for cubin in result.cubins:
        accesses |= wide_accesses(
            subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
        )
    found = []
    for kernel in result.kernels:
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
