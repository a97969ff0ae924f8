"""Training settings, and those of the paper."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from advfeat._arguments import flag, meant, number, numbers, whole_number
from advfeat.attacks import PGD
from advfeat.objectives import Margin
from advfeat.settings import as_json
from advfeat.threat import Threat, check_norm
from advfeat.training.augment import AUGMENTATIONS
from advfeat.training.schedules import SCHEDULES


@dataclass(frozen=True)
class TrainConfig:
    """All settings on which the result of training depends, apart from the data.

    Every stream of random numbers is derived from ``seed``; the global random state has no effect.

    Attributes:
        arch: Name of the network, see :func:`advfeat.models.create`.
        epochs: Passes over the training data.
        batch_size: Images per step. The paper uses 128 (Table 3).
        lr: Learning rate of SGD, the highest of the schedule. The paper uses 0.1 or 0.01 (Table 3).
        momentum: Momentum of SGD. The paper uses 0.9.
        nesterov: Use Nesterov momentum.
        weight_decay: Weight decay of SGD. The paper uses 5e-4.
        schedule: Learning rate schedule, see :func:`advfeat.training.schedules.learning_rate`.
        milestones: Epochs at which "step" lowers the learning rate.
        gamma: Factor by which "step" lowers it.
        peak: Share of the training at which "cyclic" peaks.
        augment: "none", "shift" or "crop-flip", see :class:`advfeat.training.augment.Augmentation`.
        allow_flip: Accept "crop-flip" for digits, for which it is otherwise refused.
        label_smoothing: Share of the label that is spread over all classes.
        attack: Attack for adversarial training, which replaces each batch by adversarial examples computed in eval mode
            (Madry et al. 2018), see :func:`paper_attack`. Random starts differ between epochs. None for standard
            training.
        amp: "bf16" runs forward passes, including the attack's, under bfloat16 autocast; weights and updates stay
            float32.
        channels_last: Use the channels_last memory format for images and weights; it is faster and rounds differently.
        width: Channels of the first layer, see :func:`advfeat.models.create`.
        mean: Normalisation inside the model, per channel in pixel scale; None takes the mean of the training images.
        std: Normalisation inside the model, per channel in pixel scale; None takes the standard deviation of the
            training images.
        eval_every: Epochs between tests; 0 tests after the last epoch only.
        eval_attack: Attack for robust accuracy at these tests; None skips it.
        eval_limit: Number of samples for robust accuracy; None takes all.
        checkpoint_every: Epochs between checkpoints; 0 writes only one, after the last epoch.
        seed: Seed of the weights, the order and the augmentation, each with its own stream.

    Raises:
        TypeError: Naming a field of the wrong type.
        ValueError: Naming a field that is out of range.
    """

    arch: str = "small-convnet"
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cosine", "step", "cyclic"] = "cyclic"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    peak: float = 4 / 15
    augment: Literal["none", "shift", "crop-flip"] = "none"
    allow_flip: bool = False
    label_smoothing: float = 0.0
    attack: PGD | None = None
    amp: Literal["none", "bf16"] = "none"
    channels_last: bool = True
    width: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    eval_every: int = 1
    eval_attack: PGD | None = None
    eval_limit: int | None = None
    checkpoint_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("eval_every", 0), ("checkpoint_every", 0), ("seed", 0)):
            self._set(name, whole_number(name, getattr(self, name), least))
        for name in ("width", "eval_limit"):
            if getattr(self, name) is not None:
                self._set(name, whole_number(name, getattr(self, name)))
        for name in ("nesterov", "allow_flip", "channels_last"):
            self._set(name, flag(name, getattr(self, name)))
        for name in ("lr", "momentum", "weight_decay", "gamma", "peak", "label_smoothing"):
            self._set(name, number(name, getattr(self, name)))
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
            ("gamma", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name} should be in [{low:g}, {high:g}), got {getattr(self, name)!r}")
        if not isinstance(self.arch, str):
            raise TypeError(f"arch should be a name, see advfeat.models.archs(), got {self.arch!r}")
        self._set("milestones", _epochs("milestones", self.milestones))
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                self._set(name, numbers(name, getattr(self, name)))
        for name, options in (("schedule", SCHEDULES), ("augment", AUGMENTATIONS), ("amp", ("none", "bf16"))):
            given = getattr(self, name)
            if given not in options:
                raise ValueError(f"{name} should be one of {', '.join(options)}, got {given!r}{meant(given, options)}")
        if not 0 < self.peak < 1:
            raise ValueError(f"peak should lie between 0 and 1, got {self.peak!r}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0, got momentum=0.0")
        for name in ("attack", "eval_attack"):
            attack = getattr(self, name)
            if attack is not None and not isinstance(attack, PGD):
                raise TypeError(f"{name} should be an advfeat.PGD or None, got {type(attack).__name__}")
            if attack is not None and attack.targeted:
                raise ValueError(f"{name} should not be targeted: its target is the label to get away from")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def replace(self, **changes: Any) -> TrainConfig:
        """Return a copy with some settings changed.

        Args:
            **changes: Fields and their new values.
        """
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """Return the settings as JSON values."""
        return {f.name: as_json(getattr(self, f.name)) for f in dataclasses.fields(self)}


def _epochs(name: str, given: Any) -> tuple[int, ...]:
    if isinstance(given, str) or not hasattr(given, "__iter__"):
        raise TypeError(f"{name} should be a list of epochs, as in (50, 100), got {given!r}")
    return tuple(whole_number(f"{name}[{i}]", epoch, 0) for i, epoch in enumerate(given))


def paper_attack(eps: float = 0.5, norm: str = "l2", steps: int = 7) -> PGD:
    """Return the attack of the paper's adversarial training: 7 normalised steps of eps / 5, started at the image.

    Args:
        eps: Radius in pixel scale; 0.5 for CIFAR-10, 3 for Restricted ImageNet (Table 4, Appendix C.3).
        norm: Norm of the threat model.
        steps: Number of steps.

    Returns:
        The attack.

    Raises:
        ValueError: If the norm is unknown.
    """
    check_norm(norm)
    eps = float(number("eps", eps))
    return PGD(
        Threat.of(norm, eps), steps=steps, step_size=eps / 5, objective=Margin(1.0)
    )  # the direction of cross-entropy


def fast_attack(eps: float = 0.5, norm: str = "l2", steps: int = 3) -> PGD:
    """Return an attack for adversarial training in fewer passes: 3 steps of 2.5 eps / 3, started at the image.

    On digits these three steps reach the same robust accuracy as the paper's seven of eps / 5; three steps of eps / 5
    would end inside the ball and reach 21 points less (docs/performance.md, "Fewer passes for the same images").

    Args:
        eps: As for :func:`paper_attack`.
        norm: As for :func:`paper_attack`.
        steps: Number of steps, each of 2.5 eps / steps.

    Returns:
        The attack.

    Raises:
        ValueError: If the norm is unknown.
    """
    return paper_attack(eps, norm, steps).replace(step_size=None)  # None is 2.5 eps / steps


def paper_cifar10(**changes: Any) -> TrainConfig:
    """Return the paper's standard training of ResNet-50 on CIFAR-10 (Table 3).

    Batch size 128, learning rate 0.1, momentum 0.9 and weight decay 5e-4. The paper does not state epochs, learning
    rate drops and the kind of momentum; they are defaults of the authors' library: 150 epochs, a factor 0.1 after
    epochs 50 and 100, and plain momentum. ``attack=paper_attack()`` makes the training adversarial; D_rand was trained
    with learning rate 0.01, D_det with ``augment="none"`` (Table 3).

    Args:
        **changes: Fields of :class:`TrainConfig` to change.

    Returns:
        The config.
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
