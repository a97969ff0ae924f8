"""Helpers of the CUDA kernels' tests: inputs of every size, and comparisons with the reference and the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advfeat import ops, reference
from support.cuda_devices import CudaDevice
from support.strategies import F32, F64, arithmetic, unit_roundoff

# One value, less than one vector of 16 bytes, odd sizes; MNIST, CIFAR; one tile and a bit.
SHAPES = [(1, 1), (5, 3), (1, 33), (3, 1001), (7, 1, 28, 28), (5, 3, 32, 32), (2, 8193)]
# What the clusters of an H100 or H200 hold, ImageNet among them; beyond them in every dtype: rows cut into tiles.
TILED = 700_001
LONG = [(3, 3, 128, 128), (3, 3, 224, 224), (1, 262144), (2, 262145), (2, TILED)]


def tensors(shape, dtypes=(F32, F32), *, spread=0.1, grad_scale=1.0, seed=0) -> tuple[Tensor, Tensor, Tensor]:
    """x, grad, x0 on the CPU."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(shape, generator=g, dtype=F64)
    x = x0 + spread * torch.randn(shape, generator=g, dtype=F64)
    grad = torch.randn(shape, generator=g, dtype=F64) * grad_scale
    return x.to(dtypes[0]), grad.to(dtypes[1]), x0.to(dtypes[0])


def radius(op: str, shape) -> float:
    """A radius that some values (L-inf) or samples (L2) leave and others do not."""
    return 0.15 if "linf" in op else 0.1 * math.sqrt(math.prod(shape[1:]))


def wide(*values):
    return [v.double() if isinstance(v, Tensor) else v for v in values]


def assert_close(got: Tensor, want: Tensor, what: str = "", roundings: int = 1, of_sums: int = 8) -> None:
    """Within some roundings of the arithmetic, which sums have, and one (or more) of the dtype."""
    got, want = got.detach().cpu(), want.detach().cpu().double()
    finite = want[want.isfinite()]
    largest = max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
    torch.testing.assert_close(
        got.double(),
        want,
        rtol=1.01 * roundings * unit_roundoff(got.dtype),
        atol=of_sums * unit_roundoff(arithmetic(got.dtype)) * largest,
        equal_nan=True,
        msg=lambda message: f"{what}: {message}",
    )


def assert_same(got: Tensor, want: Tensor, what: str = "") -> None:
    """Bit for bit; any NaN equals any other."""
    got, want = got.detach().cpu(), want.detach().cpu()
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=lambda message: f"{what}: {message}")
    assert torch.equal(torch.signbit(got[~got.isnan()]), torch.signbit(want[~want.isnan()])), f"{what}: sign of zero"


def check_step(device: CudaDevice, op: str, arguments: list) -> Tensor:
    """Runs op on the device; compares with the reference and with the CPU kernel."""
    got = device.run(op, *arguments)
    assert got.device.type == device.torch.type and got.stride() == torch.empty_like(arguments[0]).stride()
    assert_close(got, getattr(reference, op)(*wide(*arguments)), f"{op} and its reference")
    on_cpu = getattr(ops, op)(*arguments)
    if "linf" in op:
        assert_same(got, on_cpu, f"{op} on CUDA and on the CPU")
    else:  # the order of the sums differs
        assert_close(got, on_cpu, f"{op} on CUDA and on the CPU", roundings=2)
    return got


def place(device: CudaDevice, values: Tensor, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """The values inside a buffer of NaN on the device; the buffer, and which of its places are not the values'."""
    shape, dim = values.shape, math.prod(values.shape[1:])
    # 16 bytes are at most 8 values, so a gap of 5 values misaligns all rows but the first
    row_stride, offset = {"dense": (dim, 16), "odd_start": (dim, 1), "apart": (dim + 8, 16), "odd_rows": (dim + 5, 3)}[
        layout.removesuffix("_last")
    ]
    memory_format = torch.channels_last if layout.endswith("_last") else torch.contiguous_format
    inner = values[:1].contiguous(memory_format=memory_format)
    buffer = torch.full((offset + shape[0] * row_stride + 16,), math.nan, dtype=values.dtype, device=device.torch)
    strides = (row_stride, *inner.stride()[1:])
    outside = torch.ones(buffer.shape, dtype=torch.bool, device=device.torch)
    outside.as_strided(shape, strides, offset).fill_(False)
    view = buffer.as_strided(shape, strides, offset)
    view.copy_(values)
    return view, buffer, outside
