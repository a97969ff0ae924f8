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
    spent = weights * caps  # at the caps, which may be infinite: sums below never subtract one of them again
    before = torch.cat([torch.zeros_like(gap), spent[:, :-1].cumsum(dim=1)], dim=1)
    left = weights.flip(1).cumsum(dim=1).flip(1)  # of this cap and those after it
    at_caps = before + torch.where(left > 0, caps * left, 0.0)
    first = (at_caps < gap).sum(dim=1, keepdim=True)  # the first cap that suffices
    falls_short = first == caps.shape[1]
    first = first.clamp(max=caps.shape[1] - 1)
    slope = left.gather(1, first)
    solved = (gap - before.gather(1, first)) / torch.where(slope > 0, slope, torch.ones_like(slope))
    largest = caps[:, -1:]
    return torch.where(falls_short | (slope <= 0), largest, torch.minimum(solved, largest))


def _largest_first(size: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """In L1: values go to their bounds in the order of their weights, those of the last weight as far as is needed.

    Values of equal weight share what is left in proportion to their rooms, or evenly among those without a bound.
    """
    sizes, order = size.sort(dim=1, descending=True)
    closed = (sizes * room.gather(1, order)).cumsum(dim=1)
    last = (closed < gap).sum(dim=1, keepdim=True)
    falls_short = last == size.shape[1]
    threshold = sizes.gather(1, last.clamp(max=size.shape[1] - 1))
    gain = size * room
    at, above = size == threshold, size > threshold
    bounded = room.isfinite()
    left = (gap - torch.where(above, gain, 0.0).sum(dim=1, keepdim=True)).clamp(min=0)
    at_bounded = torch.where(at & bounded, gain, 0.0).sum(dim=1, keepdim=True)
    unbounded = (at & ~bounded).sum(dim=1, keepdim=True)
    share = torch.where(unbounded > 0, 0.0, (left / torch.where(at_bounded > 0, at_bounded, 1.0)).clamp(max=1))
    even = left / torch.where(threshold * unbounded > 0, threshold * unbounded, 1.0)
    moved = torch.where(above, room, 0.0)
    moved = torch.where(at, torch.where(bounded, share * torch.where(bounded, room, 0.0), even), moved)
    return torch.where(falls_short, room, moved)
