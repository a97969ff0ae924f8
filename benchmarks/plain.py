"""The attack steps as one writes them in torch: what the operators are compared with, eager and compiled.

tests/package/test_benchmarks.py holds them to the operators' results, so that both sides of a ratio do the same work.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linf_step(x: Tensor, grad: Tensor, x0: Tensor, step_size: float, eps: float) -> Tensor:
    """Sign step, ball, box [0, 1]."""
    moved = x + step_size * grad.sign()
    return torch.min(torch.max(moved, x0 - eps), x0 + eps).clamp(0, 1)


def l2_step(x: Tensor, grad: Tensor, x0: Tensor, step_size: float, eps: float) -> Tensor:
    """Normalised step, ball, box [0, 1]; with the additive 1e-12 that keeps a zero gradient from NaN."""
    rows = tuple(range(1, x.dim()))
    length = torch.linalg.vector_norm(grad, dim=rows, keepdim=True)
    d = x + step_size * grad / (length + 1e-12) - x0
    distance = torch.linalg.vector_norm(d, dim=rows, keepdim=True)
    return (x0 + d * (eps / (distance + 1e-12)).clamp(max=1)).clamp(0, 1)
