"""Rounding of images to storage types, such that they stay in the ball around their original."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advfeat._checks import check_images
from advfeat.threat import Threat

DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
# In pixel scale. Constraints hold up to this tolerance: images and centres are float32, in which k/255 is itself
# rounded by up to 3e-8.
TOLERANCE = 1e-6
_SHRINK_STEPS = 20


def quantise(images: Tensor, x0: Tensor, threat: Threat, dtype: str | torch.dtype = "uint8") -> Tensor:
    """Rounds images to uint8 (k = 255 x) or float16 such that they stay in the box and in the ball around x0.

    For L-inf, each value is rounded to the nearest representable number in [x0 - eps, x0 + eps] and the box. For other
    norms, each value is rounded to the nearest representable number. If a row then lies outside the ball, values that
    were rounded away from x0 are rounded the other way instead, in increasing order of the error this adds, and no more
    of them than necessary. (Rounding all of them towards x0 would shorten an eps = 0.5 perturbation of a CIFAR-10 image
    by about a fifth; without any correction, an L-inf attack of 8/255 saved as uint8 becomes one of 9/255.) A value
    moves by less than one level.

    If x0 is itself representable, as any 8-bit image is, this always succeeds. Otherwise there may be no representable
    image close enough: a row that no choice of neighbours brings into the ball is moved towards x0 until it is inside.
    The ball holds up to 1e-6.

    Args:
        images: Float [B, ...] in [0, 1].
        x0: The centres of the balls, of the same shape.
        threat: A threat model of any norm in :data:`advfeat.threat.NORMS`, in pixel scale; no ball for eps = inf.
        dtype: "uint8", "float16" or "float32".

    Returns:
        The images in this dtype; float32 images are not rounded.

    Raises:
        ValueError: If a row cannot be brought into the ball (the message names the first), an image is not finite or
            outside [0, 1], or the dtype is unknown.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype should be one of {', '.join(DTYPES)}, got {dtype!r}")
    if threat.has_unit:
        raise ValueError("threat should be in pixel scale, as the images that are stored are, got one with a unit")
    if images.shape != x0.shape:
        raise ValueError(f"x0 should have the shape of images {tuple(images.shape)}, got {tuple(x0.shape)}")
    if name == "float32":
        return images.float()
    if images.numel() == 0:
        return images.to(DTYPES[name])
    check_images(images, torch.arange(len(images), device="cpu"), "images")
    x, centre = images.double(), x0.double()
    eps = _column(threat.eps, x, 0)
    down, up = _neighbours(x, name)
    lo, hi = _column(threat.lo, x, 1).clamp(min=0), _column(threat.hi, x, 1).clamp(max=1)
    # The box first: a neighbour outside it is replaced by the other one.
    down, up = torch.where(down < lo - TOLERANCE, up, down), torch.where(up > hi + TOLERANCE, down, up)
    if math.isinf(threat.order):
        chosen = _nearest_in_reach(x, centre, down, up, eps)
    else:
        chosen = _nearest_in_ball(threat, x, centre, down, up, eps)
        outside = _is_outside(threat, chosen, centre, eps)
        if bool(outside.any()):
            chosen[outside] = _shrunk(threat, x[outside], centre[outside], _rows(eps, outside), name)
    _check_inside(threat, chosen, centre, eps, name)
    return (chosen * 255).round().to(torch.uint8) if name == "uint8" else chosen.half()


def _neighbours(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The representable numbers next below and above x (x itself where it is one), float64."""
    if name == "uint8":
        level = x * 255
        near = level.round()
        on = (level - near).abs() < 255 * 1e-7  # float32 rounds k/255 by up to 3e-8
        return torch.where(on, near, level.floor()) / 255, torch.where(on, near, level.ceil()) / 255
    half = (x + 0).half()  # + 0 turns -0 into 0: the bits of -0 are the smallest int16
    back = half.double()
    # The bits of non-negative floats, read as integers, increase with the value.
    bits = half.view(torch.int16)
    below = (bits - 1).clamp(min=0).view(torch.float16).double()
    above = (bits + 1).view(torch.float16).double()
    return torch.where(back > x, below, back), torch.where(back < x, above, back)


def _nearest(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return torch.where(up - x < x - down, up, down)


def _nearest_in_reach(x: Tensor, x0: Tensor, down: Tensor, up: Tensor, eps: Tensor) -> Tensor:
    reach = eps + TOLERANCE / 2
    nearest = _nearest(x, down, up)
    other = torch.where(nearest == down, up, down)
    return torch.where(((nearest - x0).abs() > reach) & ((other - x0).abs() <= reach), other, nearest)


def _nearest_in_ball(threat: Threat, x: Tensor, x0: Tensor, down: Tensor, up: Tensor, eps: Tensor) -> Tensor:
    """Rounds to the nearest image in the ball of a norm whose p-th power is a sum over the values."""
    nearest = _nearest(x, down, up)
    rows = _is_outside(threat, nearest, x0, eps)
    if not bool(rows.any()):
        return nearest
    x, x0, down, up, near = (t[rows].flatten(1) for t in (x, x0, down, up, nearest))
    other = torch.where(near == down, up, down)
    power = _power(near - x0, threat.order)
    gain = power - _power(other - x0, threat.order)  # decrease of the p-th power with the other neighbour
    cost = torch.where(gain > 0, (other - x).abs() - (near - x).abs(), math.inf)
    order = cost.argsort(dim=1, stable=True)
    excess = power.sum(1, keepdim=True) - _power(_rows(eps, rows).flatten(1), threat.order)
    before = gain.clamp(min=0).gather(1, order)
    before = before.cumsum(1) - before  # decrease from values with a smaller cost
    flip = torch.zeros_like(near, dtype=torch.bool).scatter_(1, order, before < excess) & (gain > 0)
    nearest[rows] = torch.where(flip, other, near).view(-1, *nearest.shape[1:])
    return nearest


def _power(distance: Tensor, order: float) -> Tensor:
    return distance.square() if order == 2 else distance.abs().pow(order)


def _shrunk(threat: Threat, x: Tensor, x0: Tensor, eps: Tensor, name: str) -> Tensor:
    """Rounds x0 + t (x - x0) with the largest t, by bisection, that ends inside the ball; t = 0 if none does."""
    shape = (len(x),) + (1,) * (x.dim() - 1)
    low, high = (
        torch.zeros(shape, dtype=torch.float64, device="cpu"),
        torch.ones(shape, dtype=torch.float64, device="cpu"),
    )
    best = _nearest(x0, *_neighbours(x0, name))
    for _ in range(_SHRINK_STEPS):
        t = (low + high) / 2
        moved = x0 + t * (x - x0)
        tried = _nearest(moved, *_neighbours(moved, name))
        inside = ~_is_outside(threat, tried, x0, eps).view(shape)
        best = torch.where(inside, tried, best)
        low, high = torch.where(inside, t, low), torch.where(inside, high, t)
    return best


def _is_outside(threat: Threat, x: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    return threat.length((x - x0).flatten(1)) > eps.flatten() + TOLERANCE / 2


def _check_inside(threat: Threat, x: Tensor, x0: Tensor, eps: Tensor, name: str) -> None:
    distance = threat.length((x - x0).flatten(1))
    outside = (distance > eps.flatten() + TOLERANCE).nonzero()
    if len(outside):
        row = int(outside[0])
        radius = float(eps.flatten().expand(len(x))[row])
        raise ValueError(
            f"no {name} image was found within {threat.norm} {radius:g} of x0 in row {row}, the nearest lies at "
            f"{distance[row]:.3g}: store the set as float32"
        )


def _column(value: float | Tensor, x: Tensor, dim: int) -> Tensor:
    """A number, or one per row (dim 0) or channel (dim 1), in float64 and in a shape that broadcasts with x."""
    value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    if value.dim() == 0:
        value = value.expand(len(x) if dim == 0 else 1)
    shape = [1] * x.dim()
    if dim < x.dim():
        shape[dim] = len(value)
    return value.view(shape)


def _rows(eps: Tensor, rows: Tensor) -> Tensor:
    return eps[rows]
