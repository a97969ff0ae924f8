"""Images with known features: a strong, slow pattern that usually shows the class; a faint, fast one that always does.

The ground truth for tests of the whole pipeline: projecting images onto the patterns measures which features a model
uses and which a constructed set holds.
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
    """Settings of :class:`Planted`.

    Args:
        shape: (C, H, W) with C 1 or 3 and even sides of at least 8.
        classes: 2 to 4, or 2 to 3 for C = 1.
        slow_norm: L2 norm, in pixel scale [0, 1], of the slow pattern that shows the class.
        fast_norm: The same for the fast pattern.
        slow_base: L2 norm with which the slow pattern of every class is added to every image.
        fast_base: The same for the fast patterns.
        p_robust: Share of samples whose slow pattern is that of their class, in (0, 1].
        noise: Standard deviation of the noise of a value, in pixel scale.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If an argument is not a number.
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
    The fast pattern is always that of the label. ``slow_label`` [n] is the label for exactly ``round(p_robust * n)``
    samples, and another class, evenly distributed, for the rest. The noise is orthogonal to all patterns, so each
    feature is equally strong in every image. Nothing is clipped. Images of other splits or seeds differ in labels and
    noise, never in the patterns.

    Every image holds all patterns weakly, for this reason: a network with pooling does not distinguish a pattern from
    its shifts and its negative. An attack on it would plant all of these, in different parts of the image, and the
    projection onto the pattern would show little. If the pattern is already present, the direction that strengthens it
    is the pattern itself (measured: D_det holds the pattern of its target in 40 % of the images without ``fast_base``,
    and in all images with it).

    What to expect of the small convnet (width 8, 1000 images, batch 64, lr 0.05; five seeds):

    * Standard training, 6 epochs: accuracy 100 %, but 0 to 1 % at eps 0.2, between half of ``nonrobust_radius`` (0.35)
      and the whole. The model follows the fast pattern wherever the two disagree.
    * Adversarial training at eps 1.0, 12 epochs, weight decay 0.01: accuracy ``p_robust``, clean and at eps 1.0. The
      model uses only the slow pattern.
    * D_det and D_rand at eps 0.36 (just beyond ``nonrobust_radius``): the fast pattern is the target's in at least 99 %
      of the images, and the slow one is unchanged. A model trained on them for 12 epochs classifies at least 98 % of
      the original test set correctly. A larger eps makes the pattern stronger than in the original images: at 0.5 and
      6 epochs, accuracy can be as low as 61 %.
    * D_R, 50 steps of 0.1 from another image: the slow pattern is that of the image that gives the label, the fast one
      that of the start. A model trained on it for 4 epochs has accuracy ``p_robust`` and keeps it up to
      ``nonrobust_radius`` (88 to 90 % at eps 0.35). Longer training makes any model on such data less robust, even if
      the fast patterns are only shuffled, since nothing in the data rewards robustness: the 10 % of samples that the
      slow pattern gets wrong make the weights grow.
    * D_NR, the same with the standard model: the fast pattern follows the label, the slow one does not.

    Args:
        split: "train" or "test".
        n: Number of samples; None for 2000 (train) or 500 (test).
        seed: Seed of labels and noise.
        config: The settings; None for the defaults.

    Attributes:
        slow_label: The class whose slow pattern an image holds, int64 [n].
        config: The settings.

    Raises:
        ValueError: If ``n`` is below 1, the split is unknown, or images would leave [0, 1].
        TypeError: If ``config`` is not a :class:`PlantedConfig`.
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
        """The patterns that show the class, at the strength at which they are planted.

        Returns:
            (slow, fast), float64 [classes, C, H, W] each.
        """
        return self.config.slow_norm * _slow_basis(self.config), self.config.fast_norm * _fast_basis(self.config)

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The strength of each class's pattern in images.

        This is the projection onto the pattern, minus the strength that every image has, divided by the planted
        strength: 1 for the planted class and 0 for the others in an image of this set.

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
        """||fast_i - fast_j||: the L2 norm of the change that replaces the label's fast pattern by another class's."""
        return math.sqrt(2) * self.config.fast_norm

    @property
    def robust_radius(self) -> float:
        """||slow_i - slow_j||: the L2 norm of the change that replaces the slow pattern by another class's."""
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
