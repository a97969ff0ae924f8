"""Random translations and flips of a batch, per sample, that do not change what an image shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advfeat.random import generator

AUGMENTATIONS = ("none", "shift", "crop-flip")


class Augmentation:
    """One of "none", "shift" and "crop-flip".

    "shift": a translation by up to ``pixels`` in each direction, zeros (black) moving in: the random crop of an image
    padded with zeros. ``pixels`` is an eighth of the side by default: 1 for 8x8, 3 for 28x28, 4 for 32x32 (the paper's
    library, Appendix C.2). Of wide and tall images it is the eighth of the height down and of the width across, so
    that as much of them stays.
    "crop-flip": the same, then a horizontal flip with probability 1/2.

    size: (height, width) of the images, or the side of square ones. Images of another size are moved by an eighth of
    their own sides. What a sample gets is a function of (seed, epoch, its id) and the image size alone: not of the
    batch it is in, nor of the global random state. ``samples`` is the size of the data set that the ids count.
    Errors: ValueError for an unknown name, or so many pixels that nothing of an image might stay.
    """

    def __init__(
        self, name: str, size: int | tuple[int, int], samples: int, seed: int, pixels: int | None = None
    ) -> None:
        if name not in AUGMENTATIONS:
            raise ValueError(f"augment should be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
        self.name, self.samples, self.seed, self._pixels = name, samples, seed, pixels
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.pixels = self._most(self.size)
        self._made_for: tuple[int, tuple[int, int]] | None = None
        self._moves = torch.empty(0, dtype=torch.float32, device="cpu")

    def _most(self, size: tuple[int, int]) -> tuple[int, int]:
        """The largest move down and to the right."""
        if self._pixels is None:
            down, right = (min(max(1, side // 8), side - 1) for side in size)  # an image of one row stays where it is
        elif 0 <= self._pixels < min(size):
            down = right = self._pixels
        else:
            raise ValueError(f"pixels should be in 0 .. {min(size) - 1} for {size} images, got {self._pixels}")
        return down, right

    def moves(self, epoch: int, device: torch.device | str = "cpu", size: tuple[int, int] | None = None) -> Tensor:
        """What every sample gets in an epoch, the same on every device: int64 [samples, 3] of (down, right, flip),
        moves in -pixels .. pixels."""
        down, right = most = self.pixels if size is None or size == self.size else self._most(size)
        if (epoch, most) != self._made_for:
            random = generator(self.seed, "augment", epoch)
            moves = torch.randint(-right, right + 1, (self.samples, 3), generator=random, device="cpu")
            moves[:, 2] = torch.randint(0, 2, (self.samples,), generator=random, device="cpu")
            if down != right:  # of their own: square images keep the draws that they have always had
                random = generator(self.seed, "augment down", epoch)
                moves[:, 0] = torch.randint(-down, down + 1, (self.samples,), generator=random, device="cpu")
            if self.name == "shift":
                moves[:, 2] = 0
            self._made_for, self._moves = (epoch, most), moves
        self._moves = self._moves.to(device)  # once an epoch: at each step the device would be waited for
        return self._moves

    def __call__(self, images: Tensor, epoch: int, sample_ids: Tensor) -> Tensor:
        """The augmented images [B, C, H, W]; sample_ids: int64 [B], where the images are."""
        if self.name == "none":
            return images
        size = tuple(images.shape[2:])
        moves = self.moves(epoch, images.device, size)[sample_ids]
        return flip(translate(images, moves[:, 0], moves[:, 1], self._most(size)), moves[:, 2].bool())


def translate(images: Tensor, down: Tensor, right: Tensor, pixels: int | tuple[int, int]) -> Tensor:
    """Each image moved by its own number of pixels, with zeros moving in.

    images [B, C, H, W]; down, right: int64 [B], each in -pixels .. pixels, which may be two numbers, (down, right). One
    gather from the view of all windows of the padded images; no loop over samples.
    """
    height, width = images.shape[2:]
    most_down, most_right = (pixels, pixels) if isinstance(pixels, int) else pixels
    padded = F.pad(images, (most_right, most_right, most_down, most_down))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, most_down - down, most_right - right]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """The images [B, C, H, W] mirrored left to right where ``which`` (bool [B]) is true."""
    return torch.where(which[:, None, None, None], images.flip(3), images)


def check_label_safe(augment: str, data: str, classes: Sequence[str], allow_flip: bool) -> None:
    """Raises ValueError where flips could turn an image into one of another class: the data set's classes are digits.

    A mirrored 2 is no 2. Data sets count as digits by the names of their classes ("2", or torchvision's "2 - two"), so
    that the sets constructed from them do too.
    """
    digits = len(classes) > 0 and all(re.fullmatch(r"\s*\d(\s*-.*)?\s*", name) for name in classes)
    if augment == "crop-flip" and digits and not allow_flip:
        raise ValueError(
            f'augment="crop-flip" mirrors digits, which changes what they show, and {data} has the classes '
            f'{", ".join(classes[:3])}, ...: take augment="shift", or allow_flip=True if mirrored is still the class'
        )
