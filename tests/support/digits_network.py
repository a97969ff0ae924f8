"""A small convnet trained on digits, standard or adversarially: once a process for all tests that attack it."""

from __future__ import annotations

import copy
import functools

from torch import nn

from advfeat.datasets import load
from advfeat.training import TrainConfig, fast_attack, train


@functools.cache
def _trained(adversarial: bool) -> nn.Module:
    attack = fast_attack(0.5) if adversarial else None
    config = TrainConfig(epochs=8, lr=0.1, batch_size=32, width=8, attack=attack)
    return train(config, load("digits"), device="cpu").model


def digits_network(adversarial: bool) -> nn.Module:
    """In eval mode, and a copy that a test may change."""
    return copy.deepcopy(_trained(adversarial)).eval()
