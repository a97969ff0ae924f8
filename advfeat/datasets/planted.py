"""Images with known features: a large, slow pattern that mostly tells the class, a faint, fast one that always does.

The oracle of the whole pipeline: what a model uses and what a constructed set holds can be measured, by projecting
images on the patterns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat._arguments import image_shape, number, whole_number
from advfeat.datasets.base import ArraySource, Indices, as_indices, keyed_order
from advfeat.random import generator

_SAMPLES = {"train": 2000, "test": 500}
# Cycles over the image, (down, across): four orientations.
_SLOW = ((0, 2), (2, 0), (2, 2), (2, -2))
_PHASE = math.pi / 4
# Alternating from pixel to pixel across, down or both, in colours without brightness.
_FAST = ((0, 1), (1, 0), (1, 1), (1, 1))
_COLOURS = ((1.0, -1.0, 0.0),) * 3 + ((1.0, 1.0, -2.0),)


@dataclass(frozen=True)
class PlantedConfig:
    """How the images are made.

    Args:
        shape: (C, H, W), C 1 or 3, sides even and at least 8.
        classes: 2 .. 4, 2 .. 3 for C = 1.
        slow_norm: L2 norm, in pixel scale [0, 1], of the slow pattern that tells the class.
        fast_norm: That of the fast one.
        slow_base: L2 norm with which every class's slow pattern is in every image.
        fast_base: The same of the fast ones.
        p_robust: The share of samples whose slow pattern is that of their class, in (0, 1].
        noise: Standard deviation of a value's noise, in pixel scale.

    Raises:
        ValueError: For a number out of range.
        TypeError: For what is no number.
    """

    shape: tuple[int, int, int] = (3, 16, 16)
    classes: int = 4
    slow_norm: float = 2.0
    fast_norm: float = 0.25
    slow_base: float = 0.5
    fast_base: float = 0.5
    p_robust: float = 0.9
    noise: float = 0.03

    def __post_init__(self) -> None:
        channels, height, width = image_shape("shape", self.shape)
        whole_number("classes", self.classes, None)
        if channels not in (1, 3) or height % 2 or width % 2 or min(height, width) < 8:
            raise ValueError(f"shape should be 1 or 3 channels and even sides from 8 on, got {tuple(self.shape)}")
        most = 3 if channels == 1 else 4
        if not 2 <= self.classes <= most:
            raise ValueError(f"classes should be in 2 .. {most} for {channels} channel(s), got {self.classes}")
        for name in ("slow_norm", "fast_norm", "slow_base", "fast_base", "p_robust", "noise"):
            if not math.isfinite(number(name, getattr(self, name))):
                raise ValueError(f"{name} should be finite, got {getattr(self, name)}")
        if not 0 < self.p_robust <= 1:
            raise ValueError(f"p_robust should be in (0, 1], got {self.p_robust}")
        for name in ("slow_norm", "fast_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} should be above 0, got {getattr(self, name)}")
        for name in ("slow_base", "fast_base", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} should be at least 0, got {getattr(self, name)}")


class Planted(ArraySource):
    """x = 1/2 + sum_k base patterns + slow pattern + fast pattern + noise, float32 [n, C, H, W].

    With unit-norm, orthogonal patterns S_k and F_k of class k, label y and slow label s:
    x = 1/2 + sum_k (slow_base + slow_norm [k = s]) S_k + sum_k (fast_base + fast_norm [k = y]) F_k + noise.
    The fast pattern always is that of the label. ``slow_label`` [n] is the label for exactly ``round(p_robust * n)``
    samples and another class, drawn evenly, for the rest. The noise is orthogonal to all patterns, so both features are
    equally strong in every image. Nothing is clipped. Images of other splits or seeds differ in noise and draws, never
    in the patterns.

    Why every image holds all patterns a little: to a network with pooling a pattern is the same when it is shifted or
    turned into its negative. An attack on it would plant all of these, here and there in the image, and the projection
    on the pattern would show little. With the pattern already there, the direction that makes it stronger is the
    pattern itself (measured: without ``fast_base`` D_det holds its target's pattern in 40 % of the images, with it in
    all).

    What to expect of the small convnet (width 8, 1000 images, batch 64, lr 0.05; five seeds):

    * standard training, 6 epochs: accuracy 100 %, and 0 to 1 % at eps 0.2, between half of ``nonrobust_radius`` (0.35)
      and the whole: it follows the fast pattern wherever the two disagree;
    * adversarial training at eps 1.0, 12 epochs, weight decay 0.01: ``p_robust`` accuracy, clean and at eps 1.0: it
      knows the slow pattern alone;
    * D_det and D_rand at eps 0.36 (just beyond ``nonrobust_radius``): the fast pattern is the target's in at least 99 %
      of the images, the slow one is untouched; a model trained 12 epochs on them is right for at least 98 % of the true
      test set. More eps plants more than was there: at 0.5 and 6 epochs it can be as few as 61 %;
    * D_R, 50 steps of 0.1 from another image: the slow pattern is that of the image that gives the label, the fast one
      that of the start; a model trained 4 epochs on it has ``p_robust`` accuracy and keeps it to ``nonrobust_radius``
      (88 to 90 % at eps 0.35). Longer training makes any model on such data less robust, for want of a reason not to
      be, also where the fast patterns are just shuffled: the 10 % that the slow pattern gets wrong pull the weights up;
    * D_NR, the same with the standard model: the fast pattern follows the label, the slow one does not.

    Args:
        split: "train" or "test".
        n: How many samples; None for 2000 of train, 500 of test.
        seed: Of labels and noise.
        config: How the images are made; None for the defaults.

    Attributes:
        slow_label: The class whose slow pattern an image holds, int64 [n].
        config: As given.

    Raises:
        ValueError: For n < 1 or an unknown split, and for settings whose images leave [0, 1].
        TypeError: For a config of another kind.
    """

    def __init__(
        self, split: str = "train", n: int | None = None, seed: int = 0, config: PlantedConfig | None = None
    ) -> None:
        config = config or PlantedConfig()
        if split not in _SAMPLES:
            raise ValueError(f"split should be train or test, got {split!r}")
        n = _SAMPLES[split] if n is None else whole_number("n", n)
        seed = whole_number("seed", seed, None)
        if not isinstance(config, PlantedConfig):
            raise TypeError(f"config should be a PlantedConfig, got {type(config).__name__}")
        labels = keyed_order(n, seed, "planted label", split) % config.classes
        slow_label = labels.clone()
        astray = keyed_order(n, seed, "planted slow", split)[round(config.p_robust * n) :]
        slow_label[astray] += 1 + torch.arange(len(astray), device="cpu") % (config.classes - 1)
        slow_label %= config.classes
        self.config, self.slow_label = config, slow_label
        slow, fast = _slow_basis(config), _fast_basis(config)
        random = generator(seed, "planted noise", split)
        noise = torch.randn(n, math.prod(config.shape), dtype=torch.float64, generator=random, device="cpu")
        images = 0.5 + config.slow_base * slow.sum(0) + config.fast_base * fast.sum(0)
        images = images + config.slow_norm * slow[slow_label] + config.fast_norm * fast[labels]
        images = images + config.noise * _without(noise, torch.cat([slow, fast]))
        low, high = images.aminmax()
        if low < 0 or high > 1:
            raise ValueError(
                f"planted images should lie in [0, 1], got {low:.2f} to {high:.2f}: lower the norms, bases or noise"
            )
        super().__init__(images.float(), labels, tuple("abcd"[: config.classes]), "planted", split)

    def patterns(self) -> tuple[Tensor, Tensor]:
        """The patterns that tell the class, as strong as planted.

        Returns:
            (slow, fast), float64 [classes, C, H, W] each.
        """
        return self.config.slow_norm * _slow_basis(self.config), self.config.fast_norm * _fast_basis(self.config)

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """How much of each class's pattern images hold.

        The projection on the pattern, less what every image holds, over what was planted: 1 for the planted class and 0
        for the others in an image of this set.

        Args:
            images: [n, C, H, W] in [0, 1].

        Returns:
            (slow, fast), float64 [n, classes] each.
        """
        config = self.config
        flat = (images.detach().cpu().double() - 0.5).flatten(1)
        slow = flat @ _slow_basis(config).flatten(1).T - config.slow_base
        fast = flat @ _fast_basis(config).flatten(1).T - config.fast_base
        return slow / config.slow_norm, fast / config.fast_norm

    @property
    def nonrobust_radius(self) -> float:
        """||fast_i - fast_j||: the L2 distance at which the label's fast pattern is exchanged for another's."""
        return math.sqrt(2) * self.config.fast_norm

    @property
    def robust_radius(self) -> float:
        """||slow_i - slow_j||: the L2 distance at which the slow pattern is exchanged for another's."""
        return math.sqrt(2) * self.config.slow_norm

    def subset(self, indices: Indices) -> Planted:
        """See :meth:`advfeat.datasets.Source.subset`."""
        index = as_indices(indices, len(self), self.name)
        part = object.__new__(Planted)
        ArraySource.__init__(part, self._images[index], self.labels[index], self.classes, self.name, self.split)
        part.config, part.slow_label = self.config, self.slow_label[index]
        return part


def _slow_basis(config: PlantedConfig) -> Tensor:
    """Unit-norm gratings cos(2 pi (f_y y / H + f_x x / W) + pi / 4), the same in every channel, [classes, C, H, W]."""
    _, height, width = config.shape
    y, x = _grid(height, width)
    waves = [torch.cos(2 * math.pi * (fy * y / height + fx * x / width) + _PHASE) for fy, fx in _SLOW[: config.classes]]
    return _unit(torch.stack(waves).unsqueeze(1).expand(-1, *config.shape))


def _fast_basis(config: PlantedConfig) -> Tensor:
    """Unit-norm patterns (-1)^(f_y y + f_x x) times a colour, [classes, C, H, W]."""
    channels, height, width = config.shape
    y, x = _grid(height, width)
    patterns = []
    for (fy, fx), rgb in zip(_FAST, _COLOURS, strict=True):
        colour = torch.tensor(rgb if channels == 3 else (1.0,), dtype=torch.float64, device="cpu")
        patterns.append(colour[:, None, None] * (1 - 2 * ((fy * y + fx * x) % 2)))
    return _unit(torch.stack(patterns[: config.classes]))


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device="cpu"),
        torch.arange(width, dtype=torch.float64, device="cpu"),
        indexing="ij",
    )
    return y, x


def _unit(patterns: Tensor) -> Tensor:
    return patterns / patterns.flatten(1).norm(dim=1)[:, None, None, None]


def _without(flat: Tensor, patterns: Tensor) -> Tensor:
    """The part of [n, D] that is orthogonal to orthonormal patterns [k, C, H, W], as [n, C, H, W]."""
    basis = patterns.flatten(1)
    return (flat - (flat @ basis.T) @ basis).unflatten(1, patterns.shape[1:])
