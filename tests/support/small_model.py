"""A small network of the library, and a module as a user may have."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from advfeat import models


def small(classes: int = 4, shape: tuple[int, int, int] = (1, 8, 8), **settings) -> models.Classifier:
    return models.create("small-convnet", classes, shape, width=settings.pop("width", 4), **settings)


class Own(nn.Module):
    """Returns an output object, as Hugging Face models do; an auxiliary linear layer has other sizes."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.neck = nn.Linear(6, 5)
        self.out = nn.Linear(5, 4)
        self.wrapped = wrapped

    def forward(self, x):
        logits = self.out(self.neck(self.features(x).mean((2, 3))).tanh())
        return SimpleNamespace(logits=logits) if self.wrapped else logits
