"""Checks of the arguments of :mod:`advfeat.ops` where plain torch is used.

They reject the same arguments as the kernels, which check for themselves (csrc/core/check.cpp and prepare.cpp); plain
torch would broadcast, or continue with a negative radius.

Errors are RuntimeErrors that name the argument, what was expected and what was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Number = float | Tensor

_HALF = (torch.float16, torch.bfloat16)
_FLOATING = (torch.float32, torch.float64, *_HALF)


def check_step(
    x: Tensor,
    x0: Tensor,
    eps: Number,
    lo: Number | None,
    hi: Number | None,
    grad: Tensor | None = None,
    step_size: Number = 0.0,
    grad_status: Tensor | None = None,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
    *,
    steps: bool,
    look: bool,
) -> None:
    """Checks the arguments of a step, or with ``steps=False`` of a projection.

    Args:
        x: as for :func:`advfeat.ops.l2_step`.
        x0: as for :func:`advfeat.ops.l2_step`.
        eps: as for :func:`advfeat.ops.l2_step`.
        lo: as for :func:`advfeat.ops.l2_step`.
        hi: as for :func:`advfeat.ops.l2_step`.
        grad: as for :func:`advfeat.ops.l2_step`.
        step_size: as for :func:`advfeat.ops.l2_step`.
        grad_status: as for :func:`advfeat.ops.l2_step`.
        velocity: as for :func:`advfeat.ops.l2_step`.
        momentum: as for :func:`advfeat.ops.l2_step`.
        steps: whether it is a step.
        look: whether the values of tensors can be read; not so under a transform of torch.func or in a compiled
            function.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _check_batch("x", x)
    _check_like("x0", x0, "x", x)
    if x0.dtype != x.dtype:
        raise RuntimeError(f"x0 should have the dtype of x, {_name(x)}, got {_name(x0)}")
    if steps:
        _check_grad(grad, "x", x)
        largest = math.inf if x.dtype == torch.float64 else torch.finfo(torch.float32).max
        _check_by_row(
            "step_size",
            step_size,
            x,
            "finite in the arithmetic type",
            lambda v: (abs(v) <= largest) & (abs(v) < math.inf),
            look,
        )
        if velocity is not None:
            _check_like("velocity", velocity, "x", x)
            if velocity.dtype != x.dtype:
                raise RuntimeError(f"velocity should have the dtype of x, {_name(x)}, got {_name(velocity)}")
            if not 0 <= momentum < 1:
                raise RuntimeError(f"momentum should be at least 0 and below 1, got {momentum:g}")
        elif momentum:
            raise no_velocity(momentum)
    _check_ball_and_box(x, eps, lo, hi, look)
    _check_grad_status(grad_status, "x", x)


def check_share(share: Number, x: Tensor, *, look: bool) -> None:
    """Checks the share of the values that an L1 step moves.

    Args:
        share: as for :func:`advfeat.ops.l1_step`.
        x: as for :func:`advfeat.ops.l1_step`.
        look: as for :func:`check_step`.

    Raises:
        RuntimeError: it is not above 0 and at most 1.
    """
    _check_by_row("share", share, x, "above 0 and at most 1", lambda v: (v > 0) & (v <= 1), look)


def no_velocity(momentum: float) -> RuntimeError:
    """The error of a step that has a momentum without a velocity.

    Args:
        momentum: the momentum.

    Returns:
        The error.
    """
    return RuntimeError(f"velocity should be a tensor like x where there is momentum, {momentum:g}, got None")


def check_accumulate(total: Tensor, grad: Tensor, decay: float, grad_status: Tensor | None) -> None:
    """Checks the arguments of :func:`advfeat.ops.accumulate_gradient_`.

    Args:
        total: as for :func:`advfeat.ops.accumulate_gradient_`.
        grad: as for :func:`advfeat.ops.accumulate_gradient_`.
        decay: as for :func:`advfeat.ops.accumulate_gradient_`.
        grad_status: as for :func:`advfeat.ops.accumulate_gradient_`.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _check_batch("total", total)
    _check_grad(grad, "total", total)
    if not isinstance(decay, Real):
        raise RuntimeError(f"decay should be a float, got {type(decay).__name__}")
    if not 0 <= decay <= 1:
        raise RuntimeError(f"decay should be at least 0 and at most 1, got {decay:g}")
    _check_grad_status(grad_status, "total", total)


def check_fab(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    gap: Tensor,
    order: float,
    eta: float,
    alpha_max: float,
    lo: Number | None,
    hi: Number | None,
    grad_status: Tensor | None,
    *,
    look: bool,
) -> None:
    """Checks the arguments of :func:`advfeat.ops.fab_step_`.

    Args:
        x: as for :func:`advfeat.ops.fab_step_`.
        grad: as for :func:`advfeat.ops.fab_step_`.
        x0: as for :func:`advfeat.ops.fab_step_`.
        gap: as for :func:`advfeat.ops.fab_step_`.
        order: as for :func:`advfeat.ops.fab_step_`.
        eta: as for :func:`advfeat.ops.fab_step_`.
        alpha_max: as for :func:`advfeat.ops.fab_step_`.
        lo: as for :func:`advfeat.ops.fab_step_`.
        hi: as for :func:`advfeat.ops.fab_step_`.
        grad_status: as for :func:`advfeat.ops.fab_step_`.
        look: as for :func:`check_step`.

    Raises:
        RuntimeError: an argument is invalid.
    """
    check_step(x, x0, 0.0, lo, hi, grad, grad_status=grad_status, steps=True, look=look)
    check_fab_numbers(order, eta, alpha_max)
    if not isinstance(gap, Tensor) or gap.shape != x.shape[:1]:
        got = f"shape {tuple(gap.shape)}" if isinstance(gap, Tensor) else type(gap).__name__
        raise RuntimeError(f"gap should be a tensor [B] = ({x.shape[0]},), got {got}")
    _check_floating("gap", gap)
    _check_device("gap", gap, "x", x)


def check_fab_numbers(order: float, eta: float, alpha_max: float) -> None:
    """Checks the numbers of :func:`advfeat.ops.fab_step_` that do not depend on the sample.

    Args:
        order: as for :func:`advfeat.ops.fab_step_`.
        eta: as for :func:`advfeat.ops.fab_step_`.
        alpha_max: as for :func:`advfeat.ops.fab_step_`.

    Raises:
        RuntimeError: an argument is invalid.
    """
    for name, value in (("order", order), ("eta", eta), ("alpha_max", alpha_max)):
        if not isinstance(value, Real):
            raise RuntimeError(f"{name} should be a float, got {type(value).__name__}")
    if order not in (1, 2, math.inf):
        raise RuntimeError(f"order should be 1, 2 or inf, got {order:g}")
    if not 1 <= eta < math.inf:
        raise RuntimeError(f"eta should be at least 1 and finite, got {eta:g}")
    if not 0 <= alpha_max <= 1:
        raise RuntimeError(f"alpha_max should be at least 0 and at most 1, got {alpha_max:g}")


def check_random_start(
    x0: Tensor, eps: Number, sample_ids: Tensor, lo: Number | None, hi: Number | None, *, look: bool
) -> None:
    """Checks the arguments of a random start, apart from the seed; see :func:`check_seed`.

    Args:
        x0: as for :func:`advfeat.ops.random_start_l2`.
        eps: as for :func:`advfeat.ops.random_start_l2`.
        sample_ids: as for :func:`advfeat.ops.random_start_l2`.
        lo: as for :func:`advfeat.ops.random_start_l2`.
        hi: as for :func:`advfeat.ops.random_start_l2`.
        look: as for :func:`check_step`.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _check_batch("x0", x0)
    if sample_ids.dtype != torch.int64 or sample_ids.shape != x0.shape[:1]:
        raise RuntimeError(
            f"sample_ids should be an int64 tensor [B] = ({x0.shape[0]},), got {_name(sample_ids)} of shape "
            f"{tuple(sample_ids.shape)}"
        )
    _check_device("sample_ids", sample_ids, "x0", x0)
    _check_ball_and_box(x0, eps, lo, hi, look)
    _check_by_row("eps", eps, x0, "finite for a random start", lambda v: abs(v) < math.inf, look)


def check_seed(seed: int, sample_ids: Tensor) -> None:
    """Checks the seed and ids of a random start, also where a kernel is used.

    The operator's own binding rejects a seed that is not a 64-bit integer, and ids that are not a tensor, with messages
    that do not say why.

    Args:
        seed: a 64-bit integer.
        sample_ids: int64 [B].

    Raises:
        RuntimeError: an argument is invalid.
    """
    _check_tensor("sample_ids", sample_ids)
    if isinstance(seed, int) and -(2**63) <= seed < 2**63:
        return
    if not hasattr(type(seed), "__index__") or isinstance(seed, (int, Tensor)):
        raise RuntimeError(f"seed should be an integer of 64 bits, got {seed!r}")


def check_copy_rows(dst: Tensor, src: Tensor, mask: Tensor) -> None:
    """Checks the arguments of :func:`advfeat.ops.copy_rows_`.

    Args:
        dst: as for :func:`advfeat.ops.copy_rows_`.
        src: as for :func:`advfeat.ops.copy_rows_`.
        mask: as for :func:`advfeat.ops.copy_rows_`.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _check_tensor("dst", dst)
    if dst.dim() < 1:
        raise RuntimeError("dst should be a batch [B, ...], got a tensor without dimensions")
    _check_like("src", src, "dst", dst)
    if src.dtype != dst.dtype:
        raise RuntimeError(f"src should have the dtype of dst, {_name(dst)}, got {_name(src)}")
    _check_tensor("mask", mask)
    if mask.dtype != torch.bool or mask.shape != dst.shape[:1]:
        raise RuntimeError(
            f"mask should be a bool tensor [B] = ({dst.shape[0]},), got {_name(mask)} of shape {tuple(mask.shape)}"
        )
    _check_device("mask", mask, "dst", dst)


def check_hash_rows(x: Tensor) -> None:
    """Checks the argument of :func:`advfeat.ops.hash_rows`.

    Args:
        x: as for :func:`advfeat.ops.hash_rows`.

    Raises:
        RuntimeError: the argument is invalid.
    """
    _check_batch("x", x)


def check_update(best_x: Tensor, best_value: Tensor, x: Tensor, value: Tensor) -> None:
    """Checks the arguments of :func:`advfeat.ops.update_best_`.

    Args:
        best_x: as for :func:`advfeat.ops.update_best_`.
        best_value: as for :func:`advfeat.ops.update_best_`.
        x: as for :func:`advfeat.ops.update_best_`.
        value: as for :func:`advfeat.ops.update_best_`.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _check_tensor("x", x)
    if x.dim() < 1:
        raise RuntimeError("x should be a batch [B, ...], got a tensor without dimensions")
    _check_like("best_x", best_x, "x", x)
    if best_x.dtype != x.dtype:
        raise RuntimeError(f"best_x should have the dtype of x, {_name(x)}, got {_name(best_x)}")
    for name, given in (("best_value", best_value), ("value", value)):
        _check_tensor(name, given)
        if given.shape != x.shape[:1]:
            raise RuntimeError(f"{name} should be a tensor [B] = ({x.shape[0]},), got shape {tuple(given.shape)}")
        if given.dtype not in (torch.float32, torch.float64):
            raise RuntimeError(f"{name} should be float32 or float64, got {_name(given)}")
        _check_device(name, given, "x", x)
    if best_value.dtype != value.dtype:
        raise RuntimeError(f"best_value should have the dtype of value, {_name(value)}, got {_name(best_value)}")


def no_tensor(name: str, given: object) -> RuntimeError:
    """The error for a value that is not a tensor.

    Args:
        name: the name of the argument.
        given: the value.

    Returns:
        The error, to be raised by the caller.
    """
    return RuntimeError(
        f"{name} should be a torch tensor, got {type(given).__name__}: torch.as_tensor() makes one of arrays and lists"
    )


def _check_tensor(name: str, given: object) -> Tensor:
    """The value, which is a tensor."""
    if not isinstance(given, Tensor):
        raise no_tensor(name, given)
    return given


def _check_floating(name: str, t: Tensor) -> None:
    if t.dtype not in _FLOATING:
        raise RuntimeError(f"{name} should be float32, float64, float16 or bfloat16, got {_name(t)}")


def _check_batch(name: str, x: Tensor) -> None:
    _check_tensor(name, x)
    if x.dim() < 1:
        raise RuntimeError(f"{name} should be a batch [B, ...], got a tensor without dimensions")
    _check_floating(name, x)


def _check_device(name: str, t: Tensor, of: str, x: Tensor) -> None:
    if t.device != x.device:
        raise RuntimeError(f"{name} should be on the device of {of}, {x.device}, got {t.device}")


def _check_like(name: str, given: object, of: str, x: Tensor) -> Tensor:
    """The value, which is a tensor of the shape and on the device of x."""
    t = _check_tensor(name, given)
    if t.shape != x.shape:
        raise RuntimeError(f"{name} should have the shape of {of} {tuple(x.shape)}, got {tuple(t.shape)}")
    _check_device(name, t, of, x)
    return t


def _check_grad(grad: object, of: str, x: Tensor) -> None:
    t = _check_like("grad", grad, of, x)
    _check_floating("grad", t)
    if t.dtype != x.dtype and not (x.dtype == torch.float32 and t.dtype in _HALF):
        raise RuntimeError(
            f"grad should have the dtype of {of}, or be float16 or bfloat16 when {of} is float32; {of} is "
            f"{_name(x)} and grad {_name(t)}"
        )


def _check_grad_status(grad_status: Tensor | None, of: str, x: Tensor) -> None:
    if grad_status is None:
        return
    _check_tensor("grad_status", grad_status)
    if grad_status.dtype != torch.int32 or tuple(grad_status.shape) != (x.shape[0], 2):
        raise RuntimeError(
            f"grad_status should be a contiguous int32 tensor [B, 2] = ({x.shape[0]}, 2), got "
            f"{_name(grad_status)} of shape {tuple(grad_status.shape)}"
        )
    _check_device("grad_status", grad_status, of, x)


def _check_ball_and_box(x: Tensor, eps: Number, lo: Number | None, hi: Number | None, look: bool) -> None:
    _check_by_row("eps", eps, x, "at least 0", lambda v: v >= 0, look)
    bounds: dict[str, Number] = {"lo": -math.inf if lo is None else lo, "hi": math.inf if hi is None else hi}
    for name, bound in bounds.items():
        _check_number(name, bound, "C")
        if not isinstance(bound, Tensor):
            continue
        _check_floating(name, bound)
        if bound.dim() == 0:
            continue
        if x.dim() < 2:
            raise RuntimeError(f"lo and hi by channel need a batch [B, C, ...], got shape {tuple(x.shape)}")
        if bound.numel() != x.shape[1]:
            raise RuntimeError(
                f"{name} should be a float or a tensor [C] = ({x.shape[1]},), got shape {tuple(bound.shape)}"
            )
    low, high = bounds.values()
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        if not low <= high:
            raise RuntimeError(f"lo should be at most hi, got lo={low:g} and hi={high:g}")
    elif look and all(_can_be_seen(bound) for bound in (low, high)):
        low, high = (torch.as_tensor(bound, dtype=torch.float64, device="cpu").reshape(-1) for bound in (low, high))
        low, high = torch.broadcast_tensors(low.detach(), high.detach())
        wrong = (~(low <= high)).nonzero()
        if len(wrong):
            channel = int(wrong[0])
            raise RuntimeError(
                f"lo should be at most hi, got lo={float(low[channel]):g} and hi={float(high[channel]):g} for channel "
                f"{channel}"
            )


def _check_number(name: str, value: object, letter: str) -> None:
    if not isinstance(value, (Tensor, Real)):
        raise RuntimeError(f"{name} should be a float or a tensor [{letter}], got {type(value).__name__}")


def _check_by_row(name: str, value: Number, x: Tensor, expected: str, good: Callable[[Any], Any], look: bool) -> None:
    """``good`` gives a bool for a float, and a bool tensor for a tensor."""
    _check_number(name, value, "B")
    if not isinstance(value, Tensor):
        if not good(value):
            raise RuntimeError(f"{name} should be {expected}, got {value:g}")
        return
    if value.dim() > 0 and value.shape != x.shape[:1]:
        raise RuntimeError(
            f"{name} should be a float or a tensor [B] = ({x.shape[0]},), got shape {tuple(value.shape)}"
        )
    _check_floating(name, value)
    if value.dim() > 0:
        _check_device(name, value, "x", x)
    if look and _can_be_seen(value):
        values = value.detach().reshape(-1)
        wrong = (~good(values)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise RuntimeError(f"{name} should be {expected}, got {float(values[row]):g} at index {row}")


def _can_be_seen(value: Number) -> bool:
    """Whether reading values does not wait for a device; a subclass of Tensor may hold none."""
    return not isinstance(value, Tensor) or (type(value) in (Tensor, torch.nn.Parameter) and value.is_cpu)


# The names that the kernels use.
_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
}


def _name(t: Tensor) -> str:
    return _NAMES.get(t.dtype, str(t.dtype).removeprefix("torch."))
