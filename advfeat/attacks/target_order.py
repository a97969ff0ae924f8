"""In which order a targeted attack takes the other classes of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from advfeat.attacks.context import Run

TargetOrder = Literal["logits", "malt"]
TARGET_ORDERS = ("logits", "malt")
# MALT looks at so many classes: those with the largest logits at x (Melamed et al. 2024, Section 3).
CANDIDATES = 100


def check_target_order(target_order: str) -> None:
    """Checks the name of an order.

    Args:
        target_order: "logits" or "malt".

    Raises:
        ValueError: it is another.
    """
    if target_order not in TARGET_ORDERS:
        raise ValueError(f'target_order should be "logits" or "malt", got {target_order!r}')


def ranks_at_once(first: int, last: int, room: int, left: Callable[[], int]) -> Iterator[range]:
    """Which target classes are attacked in one batch, in order of their ranks.

    The first class of all goes alone, since it breaks the most. Of those that follow, which break few, as many as find
    room: the batch of the few samples that are left is then as large as the first one was.

    Args:
        first: the first rank, 0 for the class that is attacked first.
        last: the rank after the last.
        room: how many samples a pass may hold.
        left: tells how many samples are left.

    Yields:
        The ranks of a batch.
    """
    while first < last:
        count = 1 if first == 0 else max(room // max(left(), 1), 1)
        yield range(first, min(first + count, last))
        first += count


def other_classes(run: Run, logits: Tensor, target_order: TargetOrder, wanted: int) -> tuple[Tensor, Tensor, int, int]:
    """The other classes of each sample, in the order in which they are attacked.

    "logits" is the order of AutoAttack: the largest logit at x first. "malt" is that of MALT (Melamed, Yehudai and
    Shamir 2024): the class first whose boundary is the nearest if the model were linear, by (z_y - z_c) / ||grad(z_c -
    z_y)||_*, with the dual norm of the threat model, among the 100 classes with the largest logits. That costs a
    backward pass for each of these classes; where all other classes are wanted anyway, the order is that of the logits.

    Args:
        run: the samples and their labels.
        logits: [n, classes], those at x.
        target_order: "logits" or "malt".
        wanted: so many classes will be attacked.

    Returns:
        Class indices int64 [n, at most classes - 1]; which of them there are (the logit of a class that is excluded is
        -inf), bool of the same shape; and the forward and backward passes.
    """
    others = logits.scatter(1, run.target[:, None], float("-inf"))
    values, order = others.sort(dim=1, descending=True)
    values, order = values[:, :-1], order[:, :-1]  # the last is the label itself, or as impossible
    if target_order == "logits" or order.shape[1] <= wanted or not len(run):
        return order, values > float("-inf"), 0, 0
    order = order[:, :CANDIDATES]
    point = run.x0.detach().requires_grad_()
    run.model.look_at(point)
    with torch.enable_grad():
        found = run.model(point).float()
    own = found.gather(1, run.target[:, None])
    unit = torch.as_tensor(run.threat.unit, dtype=torch.float64, device=point.device)
    unit = unit.reshape(1, -1, *[1] * max(point.dim() - 2, 0)) if unit.numel() > 1 else unit
    distance = torch.full(order.shape, float("inf"), dtype=torch.float64, device=point.device)
    for k in range(order.shape[1]):
        gap = (own - found.gather(1, order[:, k, None]))[:, 0]
        (slope,) = torch.autograd.grad(gap.sum(), point, retain_graph=k + 1 < order.shape[1])
        length = torch.linalg.vector_norm((slope.double() * unit).flatten(1), run.threat.dual_order, dim=1)
        exists = (found.gather(1, order[:, k, None])[:, 0] > float("-inf")) & (length > 0) & length.isfinite()
        distance[:, k] = torch.where(exists, gap.detach().double() / torch.where(exists, length, 1.0), float("inf"))
    nearest = distance.argsort(dim=1, stable=True)
    known = values[:, : order.shape[1]] > float("-inf")
    return order.gather(1, nearest), known.gather(1, nearest), len(run), len(run) * order.shape[1]
