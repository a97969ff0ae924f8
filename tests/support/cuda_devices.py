"""Where the tests of the CUDA kernels run: on a CUDA device, and on the CPU under the emulator (emulated_cuda.py).

A test that takes the fixture ``device`` of conftest.py runs on both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import torch
from emulator.emulated_cuda import Emulator
from torch import Tensor

from advfeat import ops


class CudaDevice:
    """A place for tensors, and ``advfeat.ops`` with the CUDA kernels for them."""

    torch = torch.device("cuda")
    emulated = False

    def __init__(self) -> None:
        if ops._C is None or not ops._C.build_config()["cuda"]:
            pytest.skip("the extension was built without CUDA")

    def put(self, *values):
        """Tensors on the device; all else as it is."""
        return [v.to(self.torch) if isinstance(v, Tensor) else v for v in values]

    def run(self, op: str, *arguments, **options):
        """An operator of ``advfeat.ops``; tensors are put on the device first."""
        put = {name: self.put(value)[0] for name, value in options.items()}
        with self.kernels():
            return getattr(ops, op)(*self.put(*arguments), **put)

    def kernels(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def skip_long_rows(self, values: int, dtypes: Sequence[torch.dtype], but: Sequence[torch.dtype] = ()) -> None:
        """Ends the test where rows of so many values would take too long; not for float32, nor for the dtypes `but`."""

    def skip_layout(self, values: int, layout: str) -> None:
        """Ends the test where a layout changes nothing in rows of so many values that others do not change."""


LONG = 50_000  # values of a row that the emulator takes its time over


class EmulatedDevice(CudaDevice):
    """Tensors stay on the CPU; there the emulated kernels take them, by default as on an H200."""

    torch = torch.device("cpu")
    emulated = True

    def __init__(self, emulator: Emulator, slow: bool) -> None:
        self._emulator, self._slow = emulator, slow

    def kernels(self) -> contextlib.AbstractContextManager:
        return self._emulator.as_kernels()

    def run(self, op: str, *arguments, **options):
        x = arguments[0]
        if "l1" in op and x.numel() > LONG * len(x) and not self._slow:
            pytest.skip(
                "the L1 kernel passes over long rows many times, and does as in short ones: run with --thorough"
            )
        return super().run(op, *arguments, **options)

    def skip_long_rows(self, values: int, dtypes: Sequence[torch.dtype], but: Sequence[torch.dtype] = ()) -> None:
        # 16 blocks of 512 threads take some tenths of a second. Other dtypes go the same ways in shorter rows.
        if values > LONG and not self._slow and not set(dtypes) <= {torch.float32, *but}:
            pytest.skip("slow in the emulator: run with --thorough")

    def skip_layout(self, values: int, layout: str) -> None:
        if values > LONG and not self._slow and layout not in ("odd_start", "odd_rows_last"):
            pytest.skip("slow in the emulator: run with --thorough")
