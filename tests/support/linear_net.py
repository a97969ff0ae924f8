"""A linear network with random images that it labels itself, so that it is right about all of them."""

from __future__ import annotations

import torch
from torch import nn

from support.tensor_source import TensorSource

NAMES = tuple("abcdefghij")


def linear_net(inputs: int = 48, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def random_images(n: int = 40, shape: tuple[int, ...] = (3, 4, 4)) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(1)) / 255


def labelled_by(model, x, classes: int = 10) -> TensorSource:
    with torch.no_grad():
        labels = model(x).argmax(1)
    return TensorSource(x, labels, NAMES[:classes])


class Then(nn.Module):
    """A model whose logits are changed by a function of images and logits."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        return self.change(x, self.net(x))


def labelled_images(n: int = 200):
    net, images = linear_net(192), random_images(n, (3, 8, 8))
    return net, labelled_by(net, images)
