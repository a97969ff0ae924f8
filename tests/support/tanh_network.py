"""A small smooth network in float64 with random images, on which attacks have something to do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tanh_network(n: int, classes: int = 5, scale: float = 1.0, wrong: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, images [n, 3, 4] in [0, 1] and labels [n].

    scale: of the logits. wrong: so many samples, the first ones, have another label than the prediction.
    """
    g = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, classes)).to(torch.float64)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.6
    net[3].weight.data *= scale
    net[3].bias.data *= scale
    x = torch.rand(n, 3, 4, generator=g, dtype=torch.float64)
    y = net(x).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % classes
    return net, x, y
