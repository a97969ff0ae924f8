"""Hypothesis strategies for the operators: shapes, dtypes, layouts, numbers; torch fills the bulk from a
seed.

Every tensor is cut out of a larger one that is filled with NaN, so that a stray read turns a result into NaN and a
stray write is found by :meth:`Placed.check`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from advfeat import ops, reference

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
# x and x0, grad: every pair that the operators take
DTYPE_PAIRS = [(F32, F32), (F64, F64), (F16, F16), (BF16, BF16), (F32, F16), (F32, BF16)]
STEPS = ["linf_step", "l2_step", "l1_step"]
PROJECTIONS = ["project_linf", "project_l2", "project_l1"]

# Samples around the sizes where the kernels change their loops: eight lanes, blocks of 4096 values, several blocks a
# row.
INNER = [(), (1,), (5,), (8,), (33,), (1, 1, 1), (3, 4, 5), (1, 6, 3), (3, 1, 1), (2, 3, 2, 5), (3, 17, 16)]
LONG = [(4095,), (4097,), (3, 53, 60), (8201,)]
ROWS = [0, 1, 2, 3, 5]

LAYOUTS = ["contiguous", "channels_last", "rows_apart", "channels_last_apart", "every_second", "batch_last", "reversed"]
_INT_OF = {F32: torch.int32, F64: torch.int64, F16: torch.int16, BF16: torch.int16}


def bits(t: Tensor) -> Tensor:
    """The bit patterns of a tensor, contiguous."""
    return t.detach().contiguous().view(_INT_OF.get(t.dtype, t.dtype))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: the relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return F64 if dtype == F64 else F32


def _strides(shape: tuple[int, ...], layout: str) -> list[int]:
    n = len(shape)
    order = list(range(n))  # from the slowest to the fastest dimension
    if layout.startswith("channels_last"):
        order = [0, *range(2, n), 1] if n in (4, 5) else order
    elif layout == "batch_last":
        order = [*range(1, n), 0]
    elif layout == "reversed":
        order = order[::-1]
    strides, step = [0] * n, 2 if layout == "every_second" else 1
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1)
        if layout.endswith("apart") and n > 1 and d == order[1]:
            step += 3  # a gap after each row
    return strides


@dataclass
class Placed:
    """A tensor inside a larger buffer of NaN."""

    view: Tensor
    buffer: Tensor
    outside: Tensor  # bool: the places of the buffer that are not the view's
    before: Tensor
    layout: str

    def __repr__(self) -> str:  # what a failing example prints
        return f"<{str(self.view.dtype).removeprefix('torch.')} {tuple(self.view.shape)} strides {self.view.stride()}>"

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:  # hypothesis prints the fields of dataclasses else
        printer.text(repr(self))

    def check(self, view_too: bool = False) -> None:
        """Nothing outside the view was written, nor (view_too) inside."""
        where = torch.ones_like(self.outside) if view_too else self.outside
        changed = bits(self.buffer)[where] != bits(self.before)[where]
        assert not changed.any(), f"{int(changed.sum())} values written that should not be"


def place(values: Tensor, layout: str = "contiguous", offset: int = 3) -> Placed:
    """The values in a buffer of NaN, in a layout of LAYOUTS or "expanded" (the first row for all, stride 0)."""
    shape = tuple(values.shape)
    if layout == "expanded" and shape[0] > 0:
        one = place(values[:1], "contiguous", offset)
        return dataclasses.replace(one, view=one.view.expand(shape))
    strides = _strides(shape, layout)
    extent = 1 + sum((s - 1) * k for s, k in zip(shape, strides, strict=True)) if values.numel() else 0
    buffer = torch.full((offset + extent + 7,), math.nan, dtype=values.dtype)
    outside = torch.ones(buffer.shape, dtype=torch.bool)
    view = buffer.as_strided(shape, strides, offset)
    view.copy_(values)
    outside.as_strided(shape, strides, offset).fill_(False)
    return Placed(view, buffer, outside, buffer.clone(), layout)


@dataclass
class Case:
    """The arguments of one call; ``grad`` and ``step_size`` are left out of projections."""

    x: Placed
    grad: Placed
    x0: Placed
    step_size: float | Tensor
    eps: float | Tensor
    lo: float | Tensor
    hi: float | Tensor

    @property
    def shape(self) -> torch.Size:
        return self.x.view.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.x.view.dtype

    def arguments(self, op: str) -> tuple:
        x, grad, x0 = self.x.view, self.grad.view, self.x0.view
        if op.startswith("project"):
            return x, x0, self.eps, self.lo, self.hi
        return x, grad, x0, self.step_size, self.eps, self.lo, self.hi

    def call(self, op: str, **kwargs) -> Tensor:
        return getattr(ops, op)(*self.arguments(op), **kwargs)

    def reference(self, op: str) -> Tensor:
        """The reference in float64."""
        wide = [a.double() if isinstance(a, Tensor) else a for a in self.arguments(op)]
        return getattr(reference, op)(*wide)

    def check_inputs(self) -> None:
        for placed in (self.x, self.grad, self.x0):
            placed.check(view_too=True)

    def clone(self) -> Case:
        """Plain contiguous copies of the tensors, for tests that compare layouts or write in place."""
        x, grad, x0 = (place(p.view.clone(memory_format=torch.contiguous_format)) for p in (self.x, self.grad, self.x0))
        return dataclasses.replace(self, x=x, grad=grad, x0=x0)

    def rows(self, index: slice | Tensor) -> tuple[Callable[[str], tuple]]:
        """The arguments for some of the samples."""

        def arguments(op: str) -> tuple:
            picked = []
            for name, value in zip(_names(op), self.arguments(op), strict=True):
                by_row = isinstance(value, Tensor) and (name in ("x", "grad", "x0") or name in ("step_size", "eps"))
                picked.append(value[index] if by_row and value.dim() > 0 else value)
            return tuple(picked)

        return arguments


def _names(op: str) -> list[str]:
    if op.startswith("project"):
        return ["x", "x0", "eps", "lo", "hi"]
    return ["x", "grad", "x0", "step_size", "eps", "lo", "hi"]


def as_rows(value: float | Tensor, x: Tensor) -> Tensor:
    """A number for each sample as float64 [B, 1, ...]."""
    value = torch.as_tensor(value, dtype=F64)
    return value.expand(x.shape[0]).reshape(-1, *[1] * (x.dim() - 1))


def as_channels(value: float | Tensor, x: Tensor) -> Tensor:
    """A bound for each channel as float64 [1, C, 1, ...]."""
    value = torch.as_tensor(value, dtype=F64)
    return value if value.dim() == 0 else value.reshape(1, -1, *[1] * (x.dim() - 2))


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive numbers spread over magnitudes."""
    return st.floats(math.log10(low), math.log10(high)).map(lambda e: 10.0**e)


@st.composite
def dtypes(draw: st.DrawFn) -> tuple[torch.dtype, torch.dtype]:
    return draw(st.sampled_from(DTYPE_PAIRS))


def _per_sample(draw: st.DrawFn, number: st.SearchStrategy[float], rows: int) -> float | Tensor:
    kind = draw(st.sampled_from(["float", "float", "tensor", "0-dim", "float32"]))
    if kind == "float":
        return draw(number)
    if kind == "0-dim":
        return torch.tensor(draw(number), dtype=F64)
    values = [draw(number) for _ in range(rows)]
    return torch.tensor(values, dtype=F32 if kind == "float32" else F64)


def _box(draw: st.DrawFn, shape: tuple[int, ...], seed: int) -> tuple[float | Tensor, float | Tensor]:
    kinds = ["unit", "unit", "none", "narrow", "half"] + (["channels", "one_by_channel"] if len(shape) > 1 else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "unit":
        return 0.0, 1.0
    if kind == "none":
        return -math.inf, math.inf
    if kind == "narrow":
        return 0.3, 0.55
    if kind == "half":
        return -math.inf, 0.75
    lo = torch.rand(shape[1], generator=torch.Generator().manual_seed(seed), dtype=F64) * 0.4
    if kind == "one_by_channel":
        return lo.float(), 0.9
    return lo, lo + 0.5


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    inner: list[tuple[int, ...]] | None = None,
    rows: list[int] | None = None,
    dtype_pairs: list | None = None,
    layouts: list[str] | None = None,
    x0_in_box: bool = False,
    eps: st.SearchStrategy[float] | None = None,
    step_size: st.SearchStrategy[float] | None = None,
    grad_exponent: tuple[int, int] = (-3, 3),
) -> Case:
    """Arguments of a step or projection: ordinary magnitudes, any dtype, layout and form of the numbers."""
    shape = (draw(st.sampled_from(rows or ROWS)), *draw(st.sampled_from(inner or INNER + LONG)))
    dtype, grad_dtype = draw(st.sampled_from(dtype_pairs or DTYPE_PAIRS))
    seed = draw(st.integers(0, 2**31))
    spread = draw(st.sampled_from([0.0, 1e-3, 0.05, 1.0]))  # how far x is from x0
    scale = 10.0 ** draw(st.integers(*grad_exponent))
    sparse = draw(st.booleans())
    places = st.sampled_from(layouts or LAYOUTS)
    lo, hi = _box(draw, shape, seed)

    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(shape, generator=g, dtype=F64)
    if x0_in_box:
        x0 = x0.clamp(min=as_channels(lo, x0)).clamp(max=as_channels(hi, x0))
    x0 = x0.to(dtype)
    if x0_in_box:  # rounding to dtype may have left the box again
        x0 = reference.project_linf(x0, x0, math.inf, lo, hi)
    x0_layout = draw(st.sampled_from([*(layouts or LAYOUTS), *([] if layouts else ["expanded"])]))
    if x0_layout == "expanded":
        x0 = x0[:1].expand(shape).clone() if shape[0] else x0
    x = (x0.double() + spread * torch.randn(shape, generator=g, dtype=F64)).to(dtype)
    grad = torch.randn(shape, generator=g, dtype=F64)
    if sparse:
        grad = grad * (torch.rand(shape, generator=g) < 0.5)
    grad = (grad * scale).to(grad_dtype)
    radius = (
        eps
        if eps is not None
        else st.one_of(numbers(1e-3, 3.0), numbers(1e-3, 3.0), st.sampled_from([0.0, math.inf, 8 / 255]))
    )
    size = step_size if step_size is not None else st.one_of(numbers(1e-3, 1.0), st.sampled_from([0.0, -0.1, 2 / 255]))
    return Case(
        place(x, draw(places)),
        place(grad, draw(places)),
        place(x0, x0_layout),
        _per_sample(draw, size, shape[0]),
        _per_sample(draw, radius, shape[0]),
        lo,
        hi,
    )
