"""A linear model of two classes and images whose distance to its boundary is known."""

from __future__ import annotations

import torch
from torch import nn

from support.tensor_source import TensorSource


class Halfspace(nn.Module):
    """Logits (w . x + b, -(w . x + b)): the robust accuracy in an L2 ball is known where the box does not bind."""

    def __init__(self, w: torch.Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x):
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([score, -score], dim=1)


def halfspace_data(n=200, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = 0.4 + 0.2 * torch.rand(n, 1, 4, 4, generator=random)
    w = torch.randn(16, generator=random)
    model = Halfspace(w, float(-0.5 * w.sum()))
    score = images.flatten(1) @ w + model.b
    wrong = torch.rand(n, generator=random) < 0.1
    labels = ((score < 0) ^ wrong).long()
    source = TensorSource(images, labels, ("yes", "no"), "linear")
    distance = (score.abs() / w.norm()).detach()  # to the boundary
    return model, source, distance, ~wrong
