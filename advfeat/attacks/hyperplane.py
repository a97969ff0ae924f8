"""The shortest way from a point of a box to a hyperplane, within the box, in L-inf, L2 and L1.

Croce and Hein 2020 (FAB), Equation 6 and Appendix B. Along the way every value goes towards the hyperplane, up to its
bound; how far depends on one multiplier, in which the gap that is closed is piecewise linear, so that sorting finds it
exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shortest_way(x: Tensor, w: Tensor, gap: Tensor, lo: Tensor, hi: Tensor, order: float) -> Tensor:
    """The shortest d in the L_order norm with ``<w, x + d> = <w, x> - gap`` and ``lo <= x + d <= hi``.

    Where the box ends before that, all values with a w go to their bounds. The scale of w and gap does not matter:
    values with w = 0 stay, all others count.

    Args:
        x: points of the box [B, D].
        w: normals of the hyperplanes [B, D], finite; zeros for no way at all.
        gap: how far ``<w, x>`` has to fall, or rise where it is negative, [B].
        lo: the lower bounds, broadcastable to x.
        hi: the upper bounds, like lo.
        order: that of the norm: inf, 2 or 1.

    Returns:
        d, in float64 [B, D].
    """
    x, w, gap = x.to(torch.float64), w.to(torch.float64), gap.to(torch.float64)[:, None]
    largest = w.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    w, gap = w / scale, gap / scale
    direction = -(w.sign() * gap.sign())
    room = torch.where(direction > 0, hi.to(torch.float64) - x, x - lo.to(torch.float64)).clamp(min=0)
    size, gap = w.abs(), gap.abs()
    room = torch.where(size > 0, room, torch.zeros_like(room))
    if order == 1:
        length = _largest_first(size, room, gap)
    elif order == 2:
        safe = torch.where(size > 0, size, torch.ones_like(size))
        length = torch.minimum(size * _multiplier(size.square(), room / safe, gap), room)
    else:
        length = torch.minimum(_multiplier(size, room, gap), room)
    return direction * length


def _multiplier(weight: Tensor, cap: Tensor, gap: Tensor) -> Tensor:
    """The l with ``sum weight min(l, cap) = gap``, or the largest cap where all of them fall short; [B, 1]."""
    caps, order = cap.sort(dim=1)
    weights = weight.gather(1, order)
    spent = (weights * caps).cumsum(dim=1)
    left = weights.flip(1).cumsum(dim=1).flip(1)  # of this cap and those after it
    at_caps = spent + caps * (left - weights)
    first = (at_caps < gap).sum(dim=1, keepdim=True)  # the first cap that suffices
    falls_short = first == caps.shape[1]
    first = first.clamp(max=caps.shape[1] - 1)
    before = (spent - weights * caps).gather(1, first)
    slope = left.gather(1, first)
    solved = (gap - before) / torch.where(slope > 0, slope, torch.ones_like(slope))
    largest = caps[:, -1:]
    return torch.where(falls_short | (slope <= 0), largest, torch.minimum(solved, largest))


def _largest_first(size: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """In L1: values go to their bounds in the order of their weights, the last one as far as is needed."""
    sizes, order = size.sort(dim=1, descending=True)
    rooms = room.gather(1, order)
    gains = sizes * rooms
    before = gains.cumsum(dim=1) - gains
    safe = torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    moved = torch.minimum(((gap - before) / safe).clamp(min=0), rooms)
    return torch.zeros_like(room).scatter(1, order, moved)
