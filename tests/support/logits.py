"""Random logits, and the model that has them."""

from __future__ import annotations

import torch

from support.strategies import F64


def identity(x):
    return x


def logits_and_labels(seed, classes=6, scale=1.0, n=5):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, classes, generator=g, dtype=F64), torch.randint(classes, (n,), generator=g)
