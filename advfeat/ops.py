"""Projected gradient steps, projections and random starts as single passes over the data, in C++ and CUDA.

    x = x0.clone()
    for _ in range(steps):
        grad = ...                                                   # of the loss at x, [B, ...]
        advfeat.ops.l2_step_(x, grad, x0, step_size=0.1, eps=0.5)    # one pass: step, ball, box; in place

A batch ``[B, ...]`` is B samples. Steps and projections exist out of place and, with a trailing ``_``, in place on
their first argument; random starts and hashes only out of place, copies only in place. They have in common:

* ``x``, ``x0``: float32, float64, float16 or bfloat16, with equal shape, dtype and device; ``grad`` like ``x``, or
  float16 or bfloat16 with a float32 ``x``. Arithmetic is in float32 (float64 for float64); norms are accumulated in
  float64. Contiguous and channels_last tensors are used without a copy; any other layout works, at the cost of a copy.
* ``step_size``, ``eps``: a float, or a tensor [B]. ``lo``, ``hi``: a float, or a tensor [C] with one bound per channel
  (dimension 1), so that normalised inputs work; ``-math.inf`` and ``math.inf`` for no bound.
* The ball comes first, then the box (as in torchattacks, foolbox, MadryLab/robustness and AutoAttack); L1 projects onto
  both at once (as AutoAttack does).
* The ball and the box are enforced in the arithmetic type. A float16 or bfloat16 result is then rounded to nearest, and
  can lie outside by half a unit in the last place: for values in [0, 1] by at most 2^-12 (float16) or 2^-9 (bfloat16,
  where an L-inf radius of 8/255 is 2^-5), in the L2 norm by at most that times sqrt(D). Keep ``x`` in float32, with a
  half-precision ``grad``, where the ball has to hold exactly.
* No additive epsilon: the direction of any finite non-zero gradient is correct, from 1e-38 to 1e38. A gradient that is
  zero, or for an L2 step not finite, does not move the sample (which is still projected). Pass ``grad_status``, int32
  [B, 2], to count such gradients per sample without a synchronisation: column 0 counts zero gradients, column 1
  gradients with NaN or inf.
* Momentum: a step with a ``velocity`` like ``x``, zeros before the first step, starts from
  ``x + momentum * velocity`` instead of ``x``, and sets the velocity to the way from ``x`` to the result, projection
  included. This is the heavy ball of Polyak (1964), ``x_{k+1} = P(x_k + a u_k + momentum (x_k - x_{k-1}))``, with the
  sign or the L2 direction of the gradient for u. The other form, MI-FGSM's, is a plain step along what
  :func:`accumulate_gradient_` makes of the gradients.
* Only the projections have a gradient. They are differentiable in forward and reverse mode, also to higher order, and
  are then computed in plain torch. A step raises an error if a derivative with respect to one of its tensors is being
  taken, also by :mod:`torch.func` and in forward mode. Under ``vmap`` all operators work, in plain torch.
* Without the compiled extension, and on devices other than CPU and CUDA, :mod:`advfeat.reference` is used, with a
  single notice. :func:`random_start_l1` has no kernel, and uses it everywhere.

Errors are RuntimeErrors that name the argument, what was expected and what was given.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from advfeat import _operands, reference

try:
    from advfeat import _C
except ImportError as error:  # not built, or built for another torch: fall back to plain torch
    _C, _missing = None, error

Number = float | Tensor

__all__ = [
    "accumulate_gradient_",
    "copy_rows_",
    "fab_step_",
    "hash_rows",
    "l1_step",
    "l1_step_",
    "l2_step",
    "l2_step_",
    "linf_step",
    "linf_step_",
    "project_l1",
    "project_l1_",
    "project_l2",
    "project_l2_",
    "project_linf",
    "project_linf_",
    "random_start_l1",
    "random_start_l2",
    "random_start_linf",
    "update_best_",
]

_kernel_devices: frozenset[str] = frozenset()
if _C is not None:
    _kernel_devices = frozenset({"cpu", "cuda", "meta"} if _C.build_config()["cuda"] else {"cpu", "meta"})


def _operator(name: str, result: Callable[[Tensor], Tensor] = torch.empty_like) -> Any:
    """A compiled operator; also registers what its result is like, given the first argument, for torch.compile.

    None without the extension, which is never called: every call then goes to plain torch.

    In-place operators return nothing. If one of several tensors is on the meta device, the dispatcher also calls the
    registered function; the result would be uninitialised memory, so that is rejected here.
    """
    if _C is None:
        return None
    operator = getattr(torch.ops.advfeat, name).default
    schema = operator._schema
    names = [argument.name.removesuffix("_rows").removesuffix("_channels") for argument in schema.arguments]

    def fake(*arguments: Any) -> Tensor | None:
        _check_devices(dict(zip(names, arguments, strict=True)))
        return result(arguments[0]) if schema.returns else None

    torch.library.register_fake(f"advfeat::{name}", fake)
    # Kernels take any strides. Without this tag torch.compile copies an input that it has not computed yet once for
    # each operator that reads it, the second time after the first operator has changed x in place: wrong values.
    # The stable C++ interface has no tags in a definition.
    operator._tags = [*operator.tags, torch.Tag.flexible_layout]
    return operator


_said: set[str] = set()


def _check_devices(arguments: dict[str, Any]) -> None:
    """Raises RuntimeError naming the tensor that is not on the device of the first argument."""
    first_name, first = next(iter(arguments.items()))
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.device != first.device:
            raise RuntimeError(f"{name} should be on the device of {first_name}, {first.device}, got {value.device}")


def _has_kernel(x: Tensor, name: str = "x") -> bool:
    if _transformed():  # plain torch supports all transforms
        return False
    on_cpu = getattr(x, "is_cpu", None)
    if on_cpu and _C is not None:  # the common case first: these lines run at every call
        return True
    if on_cpu is None:
        raise _operands.no_tensor(name, x)
    device = x.device.type
    if device in _kernel_devices:
        return True
    if device not in _said:
        _said.add(device)
        why = f"the compiled extension is missing ({_missing})" if _C is None else f"it has no kernels for {device}"
        warnings.warn(f"advfeat.ops runs in plain torch on {device}: {why}", RuntimeWarning, stacklevel=4)
    return False


def _numbers(
    x: Tensor, step_size: Number, eps: Number, lo: Number | None, hi: Number | None
) -> tuple[float, float, float, float, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """step_size, eps, lo and hi as the operators take them: four floats, and the tensors that replace them."""
    if type(step_size) is type(eps) is type(lo) is type(hi) is float:
        return step_size, eps, lo, hi, None, None, None, None
    a, a_rows = _by_row(step_size, x)
    e, e_rows = _by_row(eps, x)
    lo, lo_channels = _by_channel(lo, x, -math.inf)
    hi, hi_channels = _by_channel(hi, x, math.inf)
    return a, e, lo, hi, a_rows, e_rows, lo_channels, hi_channels


def _by_row(value: Number, x: Tensor) -> tuple[float, Tensor | None]:
    """A number as the operators take it: a float, and the tensor [B] that replaces it."""
    if not isinstance(value, Tensor):
        return value, None
    return 0.0, value.expand(x.shape[0]) if value.dim() == 0 else value


def _by_channel(value: Number | None, x: Tensor, unbounded: float) -> tuple[float, Tensor | None]:
    """A bound as the operators take it: a float, and the tensor [C] that replaces it."""
    if not isinstance(value, Tensor):
        return (unbounded if value is None else value), None
    if value.dim() == 0:
        return (0.0, value.expand(x.shape[1])) if x.dim() > 1 else (value.item(), None)
    return 0.0, value.reshape(-1) if x.dim() > 1 and value.numel() == x.shape[1] else value


def _wants_grad(*arguments: Number | None) -> bool:
    if torch.is_grad_enabled():
        for a in arguments:  # float first: isinstance with Tensor is four times as slow
            if type(a) is not float and isinstance(a, Tensor) and a.requires_grad:
                return True
    return False


def _transforms() -> str:
    """The active transforms of torch.func, such as "Grad,Vmap", outermost first; "" for none."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return ",".join(interpreter.key().name for interpreter in stack)


# torch.compile calls it while tracing, when its own transforms are on the same stack, and treats the answer as a
# constant. This is torch.compiler.assume_constant_result without importing the compiler, which takes a second.
vars(_transforms)["_dynamo_marked_constant"] = True


def _transformed() -> bool:
    """Whether forward-mode differentiation or a transform of torch.func is active, which kernels do not support."""
    if torch.compiler.is_compiling():
        return _transforms() != "" or forward_ad._current_level >= 0
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _differentiated(argument: Number | None) -> bool:
    """Whether a derivative by the argument is being taken, at any level of torch.func's transforms."""
    functorch = torch._C._functorch
    if torch.compiler.is_compiling():
        # Tangents and the contents of a vmap cannot be inspected while compiling, so any argument may be affected. The
        # compiler loses whether an argument of a transform requires a gradient, but not whether a view of it does.
        transforms = _transforms()
        unseen = "Jvp" in transforms or ("Grad" in transforms and transforms.endswith("Vmap"))
        unseen = unseen or forward_ad._current_level >= 0
        return isinstance(argument, Tensor) and (unseen or argument.view_as(argument).requires_grad)
    while isinstance(argument, Tensor):
        if argument.requires_grad and torch.is_grad_enabled():
            return True
        # Batched dual tensors have their tangents one level down.
        if not functorch.is_batchedtensor(argument) and forward_ad.unpack_dual(argument).tangent is not None:
            return True
        wrapped = functorch.is_functorch_wrapped_tensor(argument)
        argument = functorch.get_unwrapped(argument) if wrapped else None
    return False


def _refuse_autograd(name: str, *arguments: Number | None) -> None:
    if _wants_grad(*arguments) or (_transformed() and any(map(_differentiated, arguments))):
        raise RuntimeError(f"{name} has no gradient: call it under torch.no_grad(), or detach its arguments")


def _can_look() -> bool:
    """Whether the values of tensors can be read."""
    return not _transformed() and not torch.compiler.is_compiling()


def _written(x: Tensor) -> Tensor:
    # An in-place change must be visible to autograd, which may have saved x for a backward pass.
    if not torch.compiler.is_compiling() and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return x


_linf_step = _operator("linf_step")


def linf_step(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    step_size: Number,
    eps: Number,
    lo: Number = 0.0,
    hi: Number = 1.0,
    *,
    grad_status: Tensor | None = None,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """One L-inf step, ``clip(x0 + clip(x + step_size * sign(grad) - x0, -eps, eps), lo, hi)``.

    The step ascends for step_size > 0. The result lies in [x0 - eps, x0 + eps] and in [lo, hi] as numbers of the
    arithmetic type; a value that needs no clipping is bitwise ``x + step_size * sign(grad)``. A NaN in the gradient
    leaves its own value unmoved; an inf moves it by its sign. Goodfellow et al. 2015; Madry et al. 2018, Section 2.1.

    Args:
        x: the iterate [B, ...].
        grad: the gradient [B, ...].
        x0: the centres of the balls [B, ...].
        step_size: float or [B], in the units of x.
        eps: the radius, float or [B], at least 0, in the units of x.
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].
        grad_status: int32 [B, 2] counters, see the module; None for none.
        velocity: like x, updated in place; see the module. None for no momentum.
        momentum: the share of the last movement that is added, at least 0 and below 1; needs a ``velocity``.

    Returns:
        The new iterate, like x.

    Raises:
        RuntimeError: an argument is invalid, or a derivative with respect to one is being taken.
    """
    _refuse_autograd("linf_step", x, grad, x0, step_size, eps, lo, hi, velocity)
    if not _has_kernel(x):
        _operands.check_step(
            x, x0, eps, lo, hi, grad, step_size, grad_status, velocity, momentum, steps=True, look=_can_look()
        )
        return reference.linf_step(
            x, grad, x0, step_size, eps, lo, hi, grad_status=grad_status, velocity=velocity, momentum=momentum
        )
    if grad_status is not None or velocity is not None or momentum:
        return linf_step_(
            x.clone(), grad, x0, step_size, eps, lo, hi, grad_status=grad_status, velocity=velocity, momentum=momentum
        )
    return _linf_step(x, grad, x0, *_numbers(x, step_size, eps, lo, hi))


_linf_step_ = _operator("linf_step_")


def linf_step_(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    step_size: Number,
    eps: Number,
    lo: Number = 0.0,
    hi: Number = 1.0,
    *,
    grad_status: Tensor | None = None,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """:func:`linf_step` in place on ``x``.

    Args:
        x: the iterate [B, ...], updated in place; it must not share memory with ``x0`` or ``grad``.
        grad: as for :func:`linf_step`.
        x0: as for :func:`linf_step`.
        step_size: as for :func:`linf_step`.
        eps: as for :func:`linf_step`.
        lo: as for :func:`linf_step`.
        hi: as for :func:`linf_step`.
        grad_status: as for :func:`linf_step`.
        velocity: as for :func:`linf_step`; it must not share memory with the others.
        momentum: as for :func:`linf_step`.

    Returns:
        ``x``.

    Raises:
        RuntimeError: as for :func:`linf_step`.
    """
    _refuse_autograd("linf_step_", x, grad, x0, step_size, eps, lo, hi, velocity)
    if not _has_kernel(x):
        _operands.check_step(
            x, x0, eps, lo, hi, grad, step_size, grad_status, velocity, momentum, steps=True, look=_can_look()
        )
        return x.copy_(
            reference.linf_step(
                x, grad, x0, step_size, eps, lo, hi, grad_status=grad_status, velocity=velocity, momentum=momentum
            )
        )
    if velocity is None and momentum:
        raise _operands.no_velocity(momentum)
    _linf_step_(x, grad, x0, *_numbers(x, step_size, eps, lo, hi), grad_status, velocity, momentum)
    if velocity is not None:
        _written(velocity)
    return _written(x)


_l2_step = _operator("l2_step")


def l2_step(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    step_size: Number,
    eps: Number,
    lo: Number = 0.0,
    hi: Number = 1.0,
    *,
    grad_status: Tensor | None = None,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """One L2 step: ``d = x + step_size * grad/||grad|| - x0``, then ``clip(x0 + d * min(1, eps/||d||), lo, hi)``.

    A sample whose moved point lies in the ball is ``x + step_size * grad/||grad||``, clipped to the box, without
    further rounding; ``eps=math.inf`` means no ball. The result lies in the ball up to the rounding of its own values.
    A NaN in ``x`` or ``x0`` stays in its sample. This is the normalised step of the paper's Appendix C (C.3-C.5).

    Args:
        x: the iterate [B, ...].
        grad: the gradient [B, ...].
        x0: the centres of the balls [B, ...].
        step_size: float or [B], in the units of x.
        eps: the radius, float or [B], at least 0, in the units of x.
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].
        grad_status: int32 [B, 2] counters, see the module; None for none.
        velocity: like x, updated in place; see the module. None for no momentum.
        momentum: the share of the last movement that is added, at least 0 and below 1; needs a ``velocity``.

    Returns:
        The new iterate, like x.

    Raises:
        RuntimeError: an argument is invalid, or a derivative with respect to one is being taken.
    """
    _refuse_autograd("l2_step", x, grad, x0, step_size, eps, lo, hi, velocity)
    if not _has_kernel(x):
        _operands.check_step(
            x, x0, eps, lo, hi, grad, step_size, grad_status, velocity, momentum, steps=True, look=_can_look()
        )
        return reference.l2_step(
            x, grad, x0, step_size, eps, lo, hi, grad_status=grad_status, velocity=velocity, momentum=momentum
        )
    if grad_status is not None or velocity is not None or momentum:
        return l2_step_(
            x.clone(), grad, x0, step_size, eps, lo, hi, grad_status=grad_status, velocity=velocity, momentum=momentum
        )
    return _l2_step(x, grad, x0, *_numbers(x, step_size, eps, lo, hi))


_l2_step_ = _operator("l2_step_")


def l2_step_(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    step_size: Number,
    eps: Number,
    lo: Number = 0.0,
    hi: Number = 1.0,
    *,
    grad_status: Tensor | None = None,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """:func:`l2_step` in place on ``x``.

    Args:
        x: the iterate [B, ...], updated in place; it must not share memory with ``x0`` or ``grad``.
        grad: as for :func:`l2_step`.
        x0: as for :func:`l2_step`.
        step_size: as for :func:`l2_step`.
        eps: as for :func:`l2_step`.
        lo: as for :func:`l2_step`.
        hi: as for :func:`l2_step`.
        grad_status: as for :func:`l2_step`.
        velocity: as for :func:`l2_step`; it must not share memory with the others.
        momentum: as for :func:`l2_step`.

    Returns:
        ``x``.

    Raises:
        RuntimeError: as for :func:`l2_step`.
    """
    _refuse_autograd("l2_step_", x, grad, x0, step_size, eps, lo, hi, velocity)
    if not _has_kernel(x):
        _operands.check_step(
            x, x0, eps, lo, hi, grad, step_size, grad_status, velocity, momentum, steps=True, look=_can_look()
        )
        return x.copy_(
            reference.l2_step(
                x, grad, x0, step_size, eps, lo, hi, grad_status=grad_status, velocity=velocity, momentum=momentum
            )
        )
    if velocity is None and momentum:
        raise _operands.no_velocity(momentum)
    _l2_step_(x, grad, x0, *_numbers(x, step_size, eps, lo, hi), grad_status, velocity, momentum)
    if velocity is not None:
        _written(velocity)
    return _written(x)


_accumulate_gradient_ = _operator("accumulate_gradient_")


def accumulate_gradient_(total: Tensor, grad: Tensor, decay: float, *, grad_status: Tensor | None = None) -> Tensor:
    """Adds a gradient of L1 norm 1 to a decaying total, by sample and in place: ``decay total + grad/||grad||_1``.

    This is the momentum of MI-FGSM (Dong et al. 2018, Algorithm 1). From zeros at first, a step along it is

        accumulate_gradient_(total, grad, decay=1.0)
        linf_step_(x, total, x0, step_size, eps)                     # or l2_step_

    The scale of a gradient makes no difference, from 1e-38 to 1e38 (float64: any). A gradient that is zero or not
    finite adds nothing. A float16 total loses a value's share of a gradient below 3e-8: keep it, and with it the
    images, in float32 where samples have many values.

    Args:
        total: [B, ...] in the dtype of the images, updated in place; it must not share a part of its memory with
            ``grad``.
        grad: the gradient, like total, or float16 or bfloat16 with a float32 total.
        decay: the share of the total that is kept, at least 0 and at most 1.
        grad_status: int32 [B, 2] counters of the gradients that add nothing, see the module; None for none.

    Returns:
        ``total``.

    Raises:
        RuntimeError: an argument is invalid, or a derivative with respect to one is being taken.
    """
    _refuse_autograd("accumulate_gradient_", total, grad)
    if not _has_kernel(total, "total"):
        _operands.check_accumulate(total, grad, decay, grad_status)
        return total.copy_(reference.accumulate_gradient(total, grad, decay, grad_status=grad_status))
    _accumulate_gradient_(total, grad, decay, grad_status)
    return _written(total)


_fab_step_ = _operator("fab_step_")


def fab_step_(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    gap: Tensor,
    order: float,
    *,
    eta: float = 1.05,
    alpha_max: float = 0.1,
    lo: Number = 0.0,
    hi: Number = 1.0,
    grad_status: Tensor | None = None,
) -> Tensor:
    """A step of FAB, in place: takes x and x0 to a hyperplane by the shortest way, and x to a point between the two.

    The hyperplane is the set of z with ``<grad, z> = <grad, x> - gap``. With d and d_0 the shortest displacements
    within the box that take x and x0 onto it, in the norm of this order (Croce and Hein 2020, Equation 6), x becomes

        clip((1 - a) (x + eta d) + a (x0 + eta d_0), lo, hi),   a = min(||d|| / (||d|| + ||d_0||), alpha_max)

    (Equations 8 and 9; lengths below 1e-8 count as 1e-8). If the box ends before the hyperplane, all values with a
    non-zero gradient go to their bounds. Scaling ``grad`` and ``gap`` by the same factor makes no difference, from
    1e-38 to 1e38 (float64: any). If the gradient is zero or not finite, or the gap is not finite, d = d_0 = 0. In L1,
    values go to their bounds in the order of their gradients; values tied for the last place share what is left in
    proportion to their distance from the bound. All arithmetic is in float64, without a sort; x is rounded once.

    Args:
        x: the iterate [B, ...] in the box, updated in place.
        grad: the normals of the hyperplanes, like x, or float16 or bfloat16 with a float32 x.
        x0: the images, like x, in the box.
        gap: [B], how far ``<grad, x>`` has to fall to reach the hyperplane, or rise where it is negative.
        order: that of the norm: 1, 2 or inf.
        eta: the factor by which d and d_0 overshoot the hyperplane, at least 1; with 1 they end on it.
        alpha_max: the largest weight a of x0, at least 0 and at most 1.
        lo: the lower bound of the box, see the module.
        hi: the upper bound of the box.
        grad_status: int32 [B, 2] counters of gradients that are zero or not finite, see the module; None for none.

    Returns:
        ``x``.

    Raises:
        RuntimeError: an argument is invalid, or a derivative with respect to one is being taken.
    """
    _refuse_autograd("fab_step_", x, grad, x0, gap, lo, hi)
    more: dict[str, Any] = {"eta": eta, "alpha_max": alpha_max, "lo": lo, "hi": hi, "grad_status": grad_status}
    if not _has_kernel(x):
        _operands.check_fab(x, grad, x0, gap, order, **more, look=_can_look())
        return x.copy_(reference.fab_step(x, grad, x0, gap, order, **more))
    low, low_channels = _by_channel(lo, x, -math.inf)
    high, high_channels = _by_channel(hi, x, math.inf)
    _fab_step_(x, grad, x0, gap, order, eta, alpha_max, low, high, low_channels, high_channels, grad_status)
    return _written(x)


_project_linf = _operator("project_linf")


def project_linf(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """The nearest point of the L-inf ball and the box: ``clip(clip(x, x0 - eps, x0 + eps), lo, hi)``.

    It is bitwise idempotent, and differentiable in x, x0 and tensors eps, lo, hi (then in plain torch).

    Args:
        x: the points [B, ...].
        x0: the centres of the balls [B, ...].
        eps: the radius, float or [B], at least 0, in the units of x.
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].

    Returns:
        The projection, like x.

    Raises:
        RuntimeError: an argument is invalid.
    """
    if _wants_grad(x, x0, eps, lo, hi) or not _has_kernel(x):
        _operands.check_step(x, x0, eps, lo, hi, steps=False, look=_can_look())
        return reference.project_linf(x, x0, eps, lo, hi)
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x, 0.0, eps, lo, hi)
    return _project_linf(x, x0, e, lo, hi, e_rows, lo_channels, hi_channels)


_project_linf_ = _operator("project_linf_")


def project_linf_(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """:func:`project_linf` in place on ``x``.

    Args:
        x: the points [B, ...], updated in place.
        x0: as for :func:`project_linf`.
        eps: as for :func:`project_linf`.
        lo: as for :func:`project_linf`.
        hi: as for :func:`project_linf`.

    Returns:
        ``x``.

    Raises:
        RuntimeError: an argument is invalid, or a derivative with respect to one is being taken.
    """
    _refuse_autograd("project_linf_", x, x0, eps, lo, hi)
    if not _has_kernel(x):
        _operands.check_step(x, x0, eps, lo, hi, steps=False, look=_can_look())
        return x.copy_(reference.project_linf(x, x0, eps, lo, hi))
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x, 0.0, eps, lo, hi)
    _project_linf_(x, x0, e, lo, hi, e_rows, lo_channels, hi_channels)
    return _written(x)


_project_l2 = _operator("project_l2")


def project_l2(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """Projects onto the L2 ball, then the box: ``clip(x0 + d min(1, eps/||d||), lo, hi)`` with ``d = x - x0``.

    With x0 in the box the result lies in both (clipping only brings a value nearer to x0), but is not always the
    nearest such point. A sample inside the ball is clipped to the box and otherwise unchanged. Differentiable in x, x0
    and tensors eps, lo, hi (then in plain torch).

    Args:
        x: the points [B, ...].
        x0: the centres of the balls [B, ...].
        eps: the radius, float or [B], at least 0, in the units of x.
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].

    Returns:
        The projection, like x.

    Raises:
        RuntimeError: an argument is invalid.
    """
    if _wants_grad(x, x0, eps, lo, hi) or not _has_kernel(x):
        _operands.check_step(x, x0, eps, lo, hi, steps=False, look=_can_look())
        return reference.project_l2(x, x0, eps, lo, hi)
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x, 0.0, eps, lo, hi)
    return _project_l2(x, x0, e, lo, hi, e_rows, lo_channels, hi_channels)


_project_l2_ = _operator("project_l2_")


def project_l2_(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """:func:`project_l2` in place on ``x``.

    Args:
        x: the points [B, ...], updated in place.
        x0: as for :func:`project_l2`.
        eps: as for :func:`project_l2`.
        lo: as for :func:`project_l2`.
        hi: as for :func:`project_l2`.

    Returns:
        ``x``.

    Raises:
        RuntimeError: an argument is invalid, or a derivative with respect to one is being taken.
    """
    _refuse_autograd("project_l2_", x, x0, eps, lo, hi)
    if not _has_kernel(x):
        _operands.check_step(x, x0, eps, lo, hi, steps=False, look=_can_look())
        return x.copy_(reference.project_l2(x, x0, eps, lo, hi))
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x, 0.0, eps, lo, hi)
    _project_l2_(x, x0, e, lo, hi, e_rows, lo_channels, hi_channels)
    return _written(x)


_random_start_linf = _operator("random_start_linf")


def random_start_linf(
    x0: Tensor, eps: Number, seed: int, sample_ids: Tensor, lo: Number = 0.0, hi: Number = 1.0
) -> Tensor:
    """A uniform point of the L-inf ball of finite radius eps around each x0, clipped to the box.

    The numbers depend only on (seed, sample id, position of the value in its sample) (Philox4x32-10): they are the same
    for any batch size, order, memory layout and device.

    Args:
        x0: the centres of the balls [B, ...].
        eps: the radius, float or [B], finite, in the units of x0.
        seed: a 64-bit integer.
        sample_ids: int64 [B].
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].

    Returns:
        The points, like x0.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _operands.check_seed(seed, sample_ids)
    if not _has_kernel(x0, "x0"):
        _operands.check_random_start(x0, eps, sample_ids, lo, hi, look=_can_look())
        return reference.random_start_linf(x0.detach(), eps, seed, sample_ids, lo, hi)
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x0, 0.0, eps, lo, hi)
    return _random_start_linf(x0.detach(), e, seed, sample_ids, lo, hi, e_rows, lo_channels, hi_channels)


_random_start_l2 = _operator("random_start_l2")


def random_start_l2(
    x0: Tensor, eps: Number, seed: int, sample_ids: Tensor, lo: Number = 0.0, hi: Number = 1.0
) -> Tensor:
    """A uniform point of the L2 ball (not of the sphere) of finite radius eps around each x0, clipped to the box.

    ``x0 + eps * u^(1/D) * n/||n||`` with u uniform and n normal; random numbers as in :func:`random_start_linf`.

    Args:
        x0: the centres of the balls [B, ...].
        eps: the radius, float or [B], finite, in the units of x0.
        seed: a 64-bit integer.
        sample_ids: int64 [B].
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].

    Returns:
        The points, like x0.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _operands.check_seed(seed, sample_ids)
    if not _has_kernel(x0, "x0"):
        _operands.check_random_start(x0, eps, sample_ids, lo, hi, look=_can_look())
        return reference.random_start_l2(x0.detach(), eps, seed, sample_ids, lo, hi)
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x0, 0.0, eps, lo, hi)
    return _random_start_l2(x0.detach(), e, seed, sample_ids, lo, hi, e_rows, lo_channels, hi_channels)


_l1_step = _operator("l1_step")


def _l1_numbers(x: Tensor, step_size: Number, eps: Number, lo: Number, hi: Number, share: Number) -> tuple[Any, ...]:
    """As :func:`_numbers`, with the share after the floats and after the tensors."""
    numbers = _numbers(x, step_size, eps, lo, hi)
    of_all, of_rows = _by_row(share, x)
    return *numbers[:4], of_all, *numbers[4:], of_rows


def l1_step(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    step_size: Number,
    eps: Number,
    lo: Number = 0.0,
    hi: Number = 1.0,
    *,
    share: Number = 0.05,
    grad_status: Tensor | None = None,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """One L1 step: ``x + step_size * s / ||s||_1``, then :func:`project_l1`, with s the signs of grad's largest values.

    s is the sign of grad where grad is largest in magnitude, and zero elsewhere. The non-zero values are the given
    share of all values, but at least one, and include all ties with the smallest of them. The steepest ascent in L1
    moves a single value; steps that move several values get further in fewer steps (Tramèr and Boneh 2019, SLIDE; Croce
    and Hein 2021, Section 4.1).

    Args:
        x: the iterate [B, ...].
        grad: the gradient [B, ...].
        x0: the centres of the balls [B, ...], in the box.
        step_size: float or [B], the L1 length of the step, in the units of x.
        eps: the radius, float or [B], at least 0, in the units of x.
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].
        share: the share of the values that move, float or [B], above 0 and at most 1.
        grad_status: int32 [B, 2] counters, see the module; None for none.
        velocity: like x, updated in place; see the module. None for no momentum.
        momentum: the share of the last movement that is added, at least 0 and below 1; needs a ``velocity``.

    Returns:
        The new iterate, like x.

    Raises:
        RuntimeError: an argument is invalid, or a derivative with respect to one is being taken.
    """
    _refuse_autograd("l1_step", x, grad, x0, step_size, eps, lo, hi, share, velocity)
    if not _has_kernel(x):
        _operands.check_step(
            x, x0, eps, lo, hi, grad, step_size, grad_status, velocity, momentum, steps=True, look=_can_look()
        )
        _operands.check_share(share, x, look=_can_look())
        state: dict[str, Any] = {"grad_status": grad_status, "velocity": velocity, "momentum": momentum}
        return reference.l1_step(x, grad, x0, step_size, eps, lo, hi, share=share, **state)
    if grad_status is not None or velocity is not None or momentum:
        state = {"grad_status": grad_status, "velocity": velocity, "momentum": momentum}
        return l1_step_(x.clone(), grad, x0, step_size, eps, lo, hi, share=share, **state)
    return _l1_step(x, grad, x0, *_l1_numbers(x, step_size, eps, lo, hi, share))


_l1_step_ = _operator("l1_step_")


def l1_step_(
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    step_size: Number,
    eps: Number,
    lo: Number = 0.0,
    hi: Number = 1.0,
    *,
    share: Number = 0.05,
    grad_status: Tensor | None = None,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """:func:`l1_step` in place on ``x``.

    Args:
        x: the iterate [B, ...], updated in place.
        grad: as for :func:`l1_step`.
        x0: as for :func:`l1_step`.
        step_size: as for :func:`l1_step`.
        eps: as for :func:`l1_step`.
        lo: as for :func:`l1_step`.
        hi: as for :func:`l1_step`.
        share: as for :func:`l1_step`.
        grad_status: as for :func:`l1_step`.
        velocity: as for :func:`l1_step`.
        momentum: as for :func:`l1_step`.

    Returns:
        ``x``.

    Raises:
        RuntimeError: as for :func:`l1_step`.
    """
    _refuse_autograd("l1_step_", x, grad, x0, step_size, eps, lo, hi, share, velocity)
    if not _has_kernel(x):
        state: dict[str, Any] = {"grad_status": grad_status, "velocity": velocity, "momentum": momentum}
        return x.copy_(l1_step(x, grad, x0, step_size, eps, lo, hi, share=share, **state))
    if velocity is None and momentum:
        raise _operands.no_velocity(momentum)
    _l1_step_(x, grad, x0, *_l1_numbers(x, step_size, eps, lo, hi, share), grad_status, velocity, momentum)
    if velocity is not None:
        _written(velocity)
    return _written(x)


_project_l1 = _operator("project_l1")


def project_l1(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """Projects onto the intersection of the L1 ball and the box: the nearest point of both, in L2.

    ``clip(x0 + sign(d) max(|d| - l, 0), lo, hi)`` with ``d = x - x0``, and l the number at which its L1 distance from
    x0 is eps, or 0 where clipping alone brings x within eps (Croce and Hein 2021, Proposition 2.1). Clipping after a
    projection onto the ball alone would leave a part of eps unused. A sample inside the ball is clipped to the box and
    otherwise unchanged; the distance of any other is eps up to the rounding of its values. Differentiable almost
    everywhere.

    Args:
        x: the points [B, ...].
        x0: the centres of the balls [B, ...], in the box.
        eps: the radius, float or [B], at least 0, in the units of x.
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].

    Returns:
        The projection, like x.

    Raises:
        RuntimeError: an argument is invalid.
    """
    if _wants_grad(x, x0, eps, lo, hi) or not _has_kernel(x):
        _operands.check_step(x, x0, eps, lo, hi, steps=False, look=_can_look())
        return reference.project_l1(x, x0, eps, lo, hi)
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x, 0.0, eps, lo, hi)
    return _project_l1(x, x0, e, lo, hi, e_rows, lo_channels, hi_channels)


_project_l1_ = _operator("project_l1_")


def project_l1_(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """:func:`project_l1` in place on ``x``.

    Args:
        x: the points [B, ...], updated in place.
        x0: as for :func:`project_l1`.
        eps: as for :func:`project_l1`.
        lo: as for :func:`project_l1`.
        hi: as for :func:`project_l1`.

    Returns:
        ``x``.

    Raises:
        RuntimeError: as for :func:`project_l1`, or a derivative is being taken.
    """
    _refuse_autograd("project_l1_", x, x0, eps, lo, hi)
    if not _has_kernel(x):
        return x.copy_(project_l1(x, x0, eps, lo, hi))
    _, e, lo, hi, _, e_rows, lo_channels, hi_channels = _numbers(x, 0.0, eps, lo, hi)
    _project_l1_(x, x0, e, lo, hi, e_rows, lo_channels, hi_channels)
    return _written(x)


def random_start_l1(
    x0: Tensor, eps: Number, seed: int, sample_ids: Tensor, lo: Number = 0.0, hi: Number = 1.0
) -> Tensor:
    """A uniform point of the L1 ball of finite radius eps around each x0, clipped to the box.

    ``x0 + eps * s e / (sum(e) + e')`` with signs s and exponential variables e, one of each per value, and e' (Barthe,
    Guédon, Mendelson and Naor 2005); random numbers as in :func:`random_start_linf`.

    Args:
        x0: the centres of the balls [B, ...].
        eps: the radius, float or [B], finite, in the units of x0.
        seed: a 64-bit integer.
        sample_ids: int64 [B].
        lo: the lower bound of the box, float or [C].
        hi: the upper bound of the box, float or [C].

    Returns:
        The points, like x0.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _operands.check_seed(seed, sample_ids)
    _operands.check_random_start(x0, eps, sample_ids, lo, hi, look=_can_look())
    return reference.random_start_l1(x0.detach(), eps, seed, sample_ids, lo, hi)


_copy_rows_ = _operator("copy_rows_")


def copy_rows_(dst: Tensor, src: Tensor, mask: Tensor) -> Tensor:
    """Copies the samples of ``src`` where ``mask`` is true into ``dst``, bitwise, and leaves the others.

    It does what ``dst[mask] = src[mask]`` does, in one pass and without its synchronisation on CUDA; attacks use it to
    keep the better iterate of each sample.

    Args:
        dst: [B, ...] of any dtype, updated in place.
        src: like dst.
        mask: bool [B].

    Returns:
        ``dst``.

    Raises:
        RuntimeError: an argument is invalid.
    """
    _refuse_autograd("copy_rows_", dst, src)
    if not _has_kernel(dst, "dst"):
        _operands.check_copy_rows(dst, src, mask)
        return dst.copy_(reference.copy_rows(dst, src, mask))
    _copy_rows_(dst, src, mask)
    return _written(dst)


_hash_rows = _operator("hash_rows", lambda x: x.new_empty(x.shape[:1], dtype=torch.int64))


def hash_rows(x: Tensor) -> Tensor:
    """A 64-bit hash of each sample, by which one that has been seen before is recognised without keeping it.

    ``sum_i mix(bits of value i + (i + 1) * c)`` modulo 2^64, over the values in the order of their indices, with c the
    golden ratio's 2^64 / phi and mix the finalizer of SplitMix64 (Steele, Lea and Flood 2014). A sum of integers, so
    that the bits are the same for every batch, memory layout, number of threads and device. Bit patterns are hashed:
    0.0 and -0.0 differ, as do two NaNs of other bits; the same number in another dtype has another hash. Two given
    samples that differ have one hash with a probability of about 2^-64; it is no defence against samples made to
    collide.

    Args:
        x: [B, ...]. It needs no gradient, and the hash has none.

    Returns:
        int64 [B]; 0 for samples without values.

    Raises:
        RuntimeError: an argument is invalid.
    """
    if not _has_kernel(x):
        _operands.check_hash_rows(x)
        return reference.hash_rows(x.detach())
    return _hash_rows(x.detach())


def update_best_(best_x: Tensor, best_value: Tensor, x: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Deprecated, to be removed after this release: use :func:`copy_rows_` with a mask of the better rows.

    Where ``value > best_value``, ``best_x`` and ``best_value`` become ``x`` and ``value``. A NaN value is never better;
    any number is better than a NaN.

    Args:
        best_x: [B, ...], updated in place.
        best_value: [B], float32 or float64, updated in place.
        x: like best_x.
        value: like best_value.

    Returns:
        (best_x, best_value).

    Raises:
        RuntimeError: an argument is invalid.
    """
    if not torch.compiler.is_compiling():
        warnings.warn(
            "update_best_ will be removed: use copy_rows_(best_x, x, value > best_value)", FutureWarning, stacklevel=2
        )
    _refuse_autograd("update_best_", best_x, best_value, x, value)
    _operands.check_update(best_x, best_value, x, value)
    better = (value > best_value) | (best_value.isnan() & ~value.isnan())
    kept = torch.where(better, value, best_value)
    copy_rows_(best_x, x, better)
    return best_x, best_value.copy_(kept)
