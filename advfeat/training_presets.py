"""Trainings by name: the paper's, and small ones for a CPU."""

from __future__ import annotations

from typing import Any

from advfeat.attacks import PGD
from advfeat.threat import L2, Linf
from advfeat.training import TrainConfig


def paper_attack(eps: float = 0.5, norm: str = "l2", steps: int = 7) -> PGD:
    """The attack of the paper's adversarial training: 7 normalised steps of eps / 5 from the image itself.

    eps: 0.5 for CIFAR-10, 3 for Restricted ImageNet (Table 4, Appendix C.3). Errors: ValueError for an unknown norm.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f'norm should be "l2" or "linf", got {norm!r}')
    return PGD(L2(float(eps)) if norm == "l2" else Linf(float(eps)), steps=steps, step_size=eps / 5)


def paper_cifar10(**changes: Any) -> TrainConfig:
    """ResNet-50 on CIFAR-10: batch 128, lr 0.1, momentum 0.9, weight decay 5e-4 (Table 3), standard training.

    Epochs, drops and plain momentum are not in the paper, but defaults of the authors' library: 150 epochs and a factor
    0.1 after 50 and 100. ``attack=paper_attack()`` makes it adversarial; D_rand was trained with lr 0.01, D_det
    with augment="none" (Table 3).
    """
    return TrainConfig(
        arch="resnet50",
        epochs=150,
        schedule="step",
        milestones=(50, 100),
        nesterov=False,
        augment="crop-flip",
        amp="bf16",
    ).replace(**changes)
