"""The operators of :mod:`advfeat.ops` in plain torch: the oracle of the tests, and the fallback without a kernel.

With float64 tensors this is the ground truth for every kernel. It is written for readability: no fusion, and every
operator out of place. Half types compute in float32. Shapes are those of :mod:`advfeat.ops`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advfeat._hyperplane import shortest_way
from advfeat.random import normals, uniform_numbers, uniforms

Number = float | Tensor


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _rows(value: Number, x: Tensor) -> Number:
    """A per-sample number [B], reshaped to [B, 1, ...]."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(_arithmetic(x)).expand(x.shape[0]) if value.dim() == 0 else value.to(_arithmetic(x))
    return value.reshape(-1, *[1] * (x.dim() - 1))


def _channels(value: Number | None, x: Tensor, unbounded: float) -> Tensor:
    """A per-channel bound [C], reshaped to [1, C, 1, ...]; a number as a zero-dimensional tensor."""
    value = unbounded if value is None else value
    bound = _constant(value, x, _arithmetic(x))
    return bound if bound.dim() == 0 else bound.reshape(1, -1, *[1] * (x.dim() - 2))


def _constant(value: Number, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A number as a tensor on the device of x, without a copy from the host, which a CUDA graph cannot capture."""
    if isinstance(value, Tensor):
        return value.to(x.device, dtype)
    return torch.full((), value, dtype=dtype, device=x.device)


def _clip(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    # where, not clamp: a NaN value stays NaN, and a NaN bound does not bind, as in the kernels.
    x = torch.where(x < lo, lo, x)
    return torch.where(x > hi, hi, x)


def _norm(x: Tensor) -> Tensor:
    """The L2 norm of each sample, [B, 1, ...], at any scale: the largest magnitude is factored out before squaring."""
    if x.numel() == 0:
        return x.new_zeros([x.shape[0]] + [1] * (x.dim() - 1))
    dims = list(range(1, x.dim()))
    largest = x.abs().amax(dim=dims, keepdim=True) if dims else x.abs()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = x / scale
    if not dims:
        return scaled.abs() * scale
    squares = (scaled * scaled).sum(dim=dims, keepdim=True)
    # The derivative of the square root at 0 is infinite: a norm of 0 is not differentiated.
    return torch.where(squares > 0, torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt(), squares) * scale


def _direction(grad: Tensor, order: int = 2) -> Tensor:
    """The direction grad / ||grad||_order, of order 1 or 2, of each sample; zero for a zero or non-finite gradient."""
    if grad.numel() == 0:
        return grad
    dims = list(range(1, grad.dim()))
    largest = grad.abs().amax(dim=dims, keepdim=True) if dims else grad.abs()
    usable = (largest > 0) & torch.isfinite(largest)
    scaled = torch.where(usable, grad, torch.zeros_like(grad)) / torch.where(usable, largest, torch.ones_like(largest))
    if not dims:
        norm = scaled.abs()
    elif order == 1:
        norm = scaled.abs().sum(dim=dims, keepdim=True)
    else:
        norm = (scaled * scaled).sum(dim=dims, keepdim=True).sqrt()
    return scaled / torch.where(usable, norm, torch.ones_like(norm))


def _count(grad: Tensor, grad_status: Tensor | None) -> None:
    if grad_status is None:
        return
    flat = _flat(grad)
    if flat.shape[1] == 0:
        return
    grad_status[:, 0] += (flat == 0).all(dim=1)
    grad_status[:, 1] += (~torch.isfinite(flat)).any(dim=1)


def _extrapolated(x: Tensor, velocity: Tensor | None, momentum: float) -> Tensor:
    """The point from which a step starts, in the arithmetic type."""
    a = _arithmetic(x)
    return x.to(a) if velocity is None else x.to(a) + momentum * velocity.to(a)


def _with_velocity(moved: Tensor, x: Tensor, velocity: Tensor | None) -> Tensor:
    """``moved``; sets the velocity, if there is one, to the way from x to it."""
    if velocity is not None:
        velocity.copy_(moved.to(_arithmetic(x)) - x.to(_arithmetic(x)))
    return moved


def project_linf(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """See :func:`advfeat.ops.project_linf`."""
    a = _arithmetic(x)
    y, centre, eps = x.to(a), x0.to(a), _rows(eps, x)
    y = _clip(y, centre - eps, centre + eps)
    return _clip(y, _channels(lo, x, -math.inf), _channels(hi, x, math.inf)).to(x.dtype)


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
    """See :func:`advfeat.ops.linf_step`."""
    a = _arithmetic(x)
    y, centre, size, eps = _extrapolated(x, velocity, momentum), x0.to(a), _rows(step_size, x), _rows(eps, x)
    _count(grad, grad_status)
    y = torch.where(grad > 0, y + size, torch.where(grad < 0, y - size, y))
    y = _clip(y, centre - eps, centre + eps)
    y = _clip(y, _channels(lo, x, -math.inf), _channels(hi, x, math.inf)).to(x.dtype)
    return _with_velocity(y, x, velocity)


def _l2_ball(y: Tensor, centre: Tensor, eps: Number) -> Tensor:
    d = y - centre
    norm = _norm(d)
    outside = ~(norm <= eps) | (torch.as_tensor(eps) <= 0)
    shrink = torch.where(outside, eps / torch.where(outside, norm, torch.ones_like(norm)), torch.ones_like(norm))
    if isinstance(eps, Tensor):
        shrink = torch.where(eps <= 0, torch.zeros_like(shrink), shrink)
    elif eps <= 0:
        shrink = torch.zeros_like(shrink)
    return torch.where(outside, centre + shrink * d, y)


def project_l2(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """See :func:`advfeat.ops.project_l2`; differentiable almost everywhere."""
    a = _arithmetic(x)
    y = _l2_ball(x.to(a), x0.to(a), _rows(eps, x))
    return _clip(y, _channels(lo, x, -math.inf), _channels(hi, x, math.inf)).to(x.dtype)


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
    """See :func:`advfeat.ops.l2_step`."""
    a = _arithmetic(x)
    _count(grad, grad_status)
    y = _extrapolated(x, velocity, momentum) + _rows(step_size, x) * _direction(grad.to(a))
    y = _l2_ball(y, x0.to(a), _rows(eps, x))
    y = _clip(y, _channels(lo, x, -math.inf), _channels(hi, x, math.inf)).to(x.dtype)
    return _with_velocity(y, x, velocity)


def _l1_multiplier(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The multiplier l >= 0 at which ``sum min(max(size - l, 0), room)`` is eps; 0 where the sum is no more at l = 0.

    The sum is linear between its kinks, size (below which a value has a part in it) and size - room (below which the
    part no longer grows), so it is solved exactly in the segment between two kinks that holds eps.

    Args:
        size: float64 [B, D], at least 0.
        room: float64 [B, D], at least 0; may be infinite.
        eps: float64 [B, 1], above 0.

    Returns:
        float64 [B, 1].
    """
    kinks, order = torch.cat([size, (size - room).clamp(min=0)], dim=1).sort(dim=1, descending=True)
    change = torch.where(order < size.shape[1], 1.0, -1.0).to(kinks)
    total, slopes = (change * kinks).cumsum(dim=1), change.cumsum(dim=1)
    at_kinks = total - slopes * kinks
    last = ((at_kinks < eps).sum(dim=1, keepdim=True) - 1).clamp(min=0)  # the last kink at which the sum is below eps
    # Between that kink and the next, or 0 after the last one: rounding must not take it out of its segment, whose slope
    # is 0 only where rounding alone brought the sum above eps.
    next_kinks = torch.cat([kinks[:, 1:], torch.zeros_like(kinks[:, :1])], dim=1)
    above, below, slope = kinks.gather(1, last), next_kinks.gather(1, last), slopes.gather(1, last)
    multiplier = (total.gather(1, last) - eps) / torch.where(slope > 0, slope, torch.ones_like(slope))
    multiplier = torch.where(slope > 0, torch.minimum(torch.maximum(multiplier, below), above), below)
    inside = (torch.minimum(size, room).sum(dim=1, keepdim=True) <= eps) | torch.isinf(eps)
    return torch.where(inside, torch.zeros_like(multiplier), multiplier)


def _l1_ball(y: Tensor, centre: Tensor, eps: Number, lo: Tensor, hi: Tensor) -> Tensor:
    """The nearest point to y, in L2, of the L1 ball around centre intersected with the box."""
    if y.numel() == 0:
        return y
    inside_box = _clip(y, lo, hi)
    d = _flat(y - centre).to(torch.float64)
    room = torch.where(d > 0, _flat(hi - centre), _flat(centre - lo)).to(torch.float64).clamp(min=0)
    radius = _constant(eps, y, torch.float64).reshape(-1, 1).expand(y.shape[0], 1)
    multiplier = _l1_multiplier(d.abs(), room, torch.where(radius > 0, radius, torch.ones_like(radius)))
    part = torch.minimum((d.abs() - multiplier).clamp(min=0), room)
    part = torch.where(radius > 0, d.sign() * part, torch.zeros_like(part))
    moved = _clip(centre + part.to(y.dtype).reshape(y.shape), lo, hi)
    keeps = ((multiplier == 0) & (radius > 0)).reshape(-1, *[1] * (y.dim() - 1))
    return torch.where(keeps, inside_box, moved)


def project_l1(x: Tensor, x0: Tensor, eps: Number, lo: Number = 0.0, hi: Number = 1.0) -> Tensor:
    """See :func:`advfeat.ops.project_l1`; differentiable almost everywhere."""
    a = _arithmetic(x)
    bounds = _channels(lo, x, -math.inf), _channels(hi, x, math.inf)
    return _l1_ball(x.to(a), x0.to(a), _rows(eps, x), *bounds).to(x.dtype)


def _sparse_signs(grad: Tensor, share: Number) -> Tensor:
    """The signs of the largest magnitudes of each sample, a share of them and no fewer than one, of L1 norm 1.

    Zero for a gradient that is zero or not finite. Among equal magnitudes at the threshold all are kept.
    """
    g = _flat(grad)
    if g.numel() == 0:
        return grad
    usable = torch.isfinite(g).all(dim=1, keepdim=True)
    size = torch.where(usable, g, torch.zeros_like(g)).abs()
    share = _constant(share, g, torch.float64).reshape(-1, 1).expand(len(g), 1)
    below = ((1 - share) * g.shape[1]).long().clamp(0, g.shape[1] - 1)  # so many magnitudes are left out
    threshold = size.sort(dim=1).values.gather(1, below)
    signs = torch.where((size >= threshold) & usable, g.sign(), torch.zeros_like(g))
    kept = signs.abs().sum(dim=1, keepdim=True)
    return (signs / kept.clamp(min=1)).reshape(grad.shape)


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
    """See :func:`advfeat.ops.l1_step`."""
    a = _arithmetic(x)
    _count(grad, grad_status)
    y = _extrapolated(x, velocity, momentum) + _rows(step_size, x) * _sparse_signs(grad.to(a), share)
    bounds = _channels(lo, x, -math.inf), _channels(hi, x, math.inf)
    y = _l1_ball(y, x0.to(a), _rows(eps, x), *bounds).to(x.dtype)
    return _with_velocity(y, x, velocity)


def accumulate_gradient(total: Tensor, grad: Tensor, decay: float, *, grad_status: Tensor | None = None) -> Tensor:
    """The out-of-place form of :func:`advfeat.ops.accumulate_gradient_`.

    Args:
        total: [B, ...].
        grad: like total, or of a half type.
        decay: the share of the total that is kept.
        grad_status: int32 [B, 2] counters, updated in place; None for none.

    Returns:
        The new total.
    """
    a = _arithmetic(total)
    _count(grad, grad_status)
    return (decay * total.to(a) + _direction(grad.to(a), order=1)).to(total.dtype)


# Shorter ways weigh as much as this in a FAB step (the authors' code, Croce and Hein 2020).
_SHORTEST = 1e-8


def fab_step(
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
    """The out-of-place form of :func:`advfeat.ops.fab_step_`, computed in float64 for every dtype."""
    if x.numel() == 0:
        return x.clone()
    _count(grad, grad_status)
    w, gap = _flat(grad).double(), gap.to(torch.float64)
    usable = w.isfinite().all(dim=1) & gap.isfinite()
    w = torch.where(usable[:, None], w, 0.0)
    largest = w.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    w, gap = w / scale, torch.where(usable, gap, 0.0) / scale[:, 0]
    at, centre = _flat(x).double(), _flat(x0).double()
    low, high = (
        _flat(bound.double().expand(x.shape)) for bound in (_channels(lo, x, -math.inf), _channels(hi, x, math.inf))
    )
    d = shortest_way(at, w, gap, low, high, order)
    # The same hyperplane from x0: <grad, x0> is as far from it as <grad, x0 - x> brings it.
    d0 = shortest_way(centre, w, gap + (w * (centre - at)).sum(dim=1), low, high, order)
    length, length0 = (
        torch.linalg.vector_norm(way, order, dim=1, keepdim=True).clamp(min=_SHORTEST) for way in (d, d0)
    )
    share = torch.where(length == length0, 0.5, length / (length + length0)).clamp(max=alpha_max)
    moved = (1 - share) * (at + eta * d) + share * (centre + eta * d0)
    return _clip(moved, low, high).to(x.dtype).reshape(x.shape)


def random_start_linf(
    x0: Tensor, eps: Number, seed: int, sample_ids: Tensor, lo: Number = 0.0, hi: Number = 1.0
) -> Tensor:
    """See :func:`advfeat.ops.random_start_linf`."""
    dim = math.prod(x0.shape[1:])
    offset = (2 * uniforms(x0, seed, sample_ids)[:, :dim] - 1).reshape(x0.shape) * _rows(eps, x0)
    y = x0.to(_arithmetic(x0)) + offset.to(_arithmetic(x0))
    return _clip(y, _channels(lo, x0, -math.inf), _channels(hi, x0, math.inf)).to(x0.dtype)


def random_start_l2(
    x0: Tensor, eps: Number, seed: int, sample_ids: Tensor, lo: Number = 0.0, hi: Number = 1.0
) -> Tensor:
    """See :func:`advfeat.ops.random_start_l2`."""
    dim = math.prod(x0.shape[1:])
    if x0.numel() == 0:
        return x0.clone()
    normal = normals(x0, seed, sample_ids)
    u = uniform_numbers(seed, sample_ids, stream=1)[:, None]
    unit = normal / normal.norm(dim=1, keepdim=True)
    offset = (unit * u ** (1 / dim)).reshape(x0.shape) * _rows(eps, x0)
    y = x0.to(_arithmetic(x0)) + offset.to(_arithmetic(x0))
    return _clip(y, _channels(lo, x0, -math.inf), _channels(hi, x0, math.inf)).to(x0.dtype)


def random_start_l1(
    x0: Tensor, eps: Number, seed: int, sample_ids: Tensor, lo: Number = 0.0, hi: Number = 1.0
) -> Tensor:
    """See :func:`advfeat.ops.random_start_l1`."""
    dim = math.prod(x0.shape[1:])
    if x0.numel() == 0:
        return x0.clone()
    # Exponential variables over their sum and one more are uniform in the simplex: Barthe et al. 2005, Theorem 1.
    signed = 2 * uniforms(x0, seed, sample_ids)[:, :dim] - 1  # never 0
    sizes = -signed.abs().log()
    one_more = -uniform_numbers(seed, sample_ids, stream=1)[:, None].log()
    unit = signed.sign() * sizes / (sizes.sum(dim=1, keepdim=True) + one_more)
    y = x0.to(_arithmetic(x0)) + (unit.reshape(x0.shape) * _rows(eps, x0)).to(_arithmetic(x0))
    return _clip(y, _channels(lo, x0, -math.inf), _channels(hi, x0, math.inf)).to(x0.dtype)


def copy_rows(dst: Tensor, src: Tensor, mask: Tensor) -> Tensor:
    """The out-of-place form of :func:`advfeat.ops.copy_rows_`.

    Args:
        dst: [B, ...].
        src: like dst.
        mask: bool [B].

    Returns:
        The new dst.
    """
    return torch.where(mask.reshape(-1, *[1] * (dst.dim() - 1)), src, dst)


# Of the hash, as signed numbers: 2^64 over the golden ratio, and the factors of SplitMix64's finalizer.
_POSITION, *_FACTORS = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right, of int64."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def hash_rows(x: Tensor) -> Tensor:
    """See :func:`advfeat.ops.hash_rows`."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    z = _flat(x.view(words)).to(torch.int64)
    if words != torch.int64:
        z = z & ((1 << 8 * x.element_size()) - 1)  # the bits above are zeros, not those of the sign
    z = z + _POSITION * torch.arange(1, z.shape[1] + 1, device=x.device)  # int64 wraps around
    for factor, shift in zip(_FACTORS, (30, 27), strict=True):
        z = (z ^ _shifted(z, shift)) * factor
    return (z ^ _shifted(z, 31)).sum(dim=1)
