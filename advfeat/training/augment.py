"""Label-preserving random translations and flips, per sample."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advfeat.random import generator

AUGMENTATIONS = ("none", "shift", "crop-flip")


class Augmentation:
    """Random translation and flip of each sample: "none", "shift" or "crop-flip".

    "shift" translates by up to ``pixels`` in each direction and fills with zeros (black): the random crop of a
    zero-padded image. "crop-flip" does the same, then flips horizontally with probability 1/2.

    The transformation of a sample is a function of (seed, epoch, sample id) and the image size alone; it depends
    neither on the batch nor on the global random state. Images of another size than ``size`` are moved by up to an
    eighth of their own sides.

    Args:
        name: "none", "shift" or "crop-flip".
        size: (height, width) of the images, or the side of square ones.
        samples: Size of the data set; sample ids are in 0 .. samples - 1.
        seed: Seed of the transformations.
        pixels: Largest translation in pixels. None takes an eighth of the side: 1 for 8x8, 3 for 28x28, 4 for 32x32
            (the default of the paper authors' library, Appendix C.2). For images that are not square it is an eighth of
            the height vertically and of the width horizontally, so that the same share of the image remains.

    Attributes:
        pixels: The largest translations (down, right).

    Raises:
        ValueError: If the name is unknown, or ``pixels`` is so large that nothing of an image might remain.
    """

    def __init__(
        self, name: str, size: int | tuple[int, int], samples: int, seed: int, pixels: int | None = None
    ) -> None:
        if name not in AUGMENTATIONS:
            raise ValueError(f"augment should be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
        self.name, self.samples, self.seed, self._pixels = name, samples, seed, pixels
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.pixels = self._most(self.size)
        self._made_for: tuple[int, tuple[int, int]] | None = None
        self._moves = torch.empty(0, dtype=torch.float32, device="cpu")

    def _most(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the largest translations (down, right)."""
        if self._pixels is None:
            down, right = (min(max(1, side // 8), side - 1) for side in size)  # an image of one row stays where it is
        elif 0 <= self._pixels < min(size):
            down = right = self._pixels
        else:
            raise ValueError(f"pixels should be in 0 .. {min(size) - 1} for {size} images, got {self._pixels}")
        return down, right

    def moves(self, epoch: int, device: torch.device | str = "cpu", size: tuple[int, int] | None = None) -> Tensor:
        """Return the transformations of all samples in an epoch.

        They are the same on every device.

        Args:
            epoch: Epoch, from 0.
            device: Device of the result.
            size: (height, width) of the images; None takes the size given at construction.

        Returns:
            int64 [samples, 3] of (down, right, flip); translations are in -pixels .. pixels, flip is 0 or 1.
        """
        down, right = most = self.pixels if size is None or size == self.size else self._most(size)
        if (epoch, most) != self._made_for:
            random = generator(self.seed, "augment", epoch)
            moves = torch.randint(-right, right + 1, (self.samples, 3), generator=random, device="cpu")
            moves[:, 2] = torch.randint(0, 2, (self.samples,), generator=random, device="cpu")
            if down != right:  # a separate stream, so that the draws for square images stay as they were
                random = generator(self.seed, "augment down", epoch)
                moves[:, 0] = torch.randint(-down, down + 1, (self.samples,), generator=random, device="cpu")
            if self.name == "shift":
                moves[:, 2] = 0
            self._made_for, self._moves = (epoch, most), moves
        self._moves = self._moves.to(device)  # once per epoch: a copy at each step would synchronise
        return self._moves

    def __call__(self, images: Tensor, epoch: int, sample_ids: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: Floating point [B, C, H, W].
            epoch: Epoch, from 0.
            sample_ids: int64 [B] on the device of the images.

        Returns:
            The augmented images [B, C, H, W].
        """
        if self.name == "none":
            return images
        size = (images.shape[2], images.shape[3])
        moves = self.moves(epoch, images.device, size)[sample_ids]
        return flip(translate(images, moves[:, 0], moves[:, 1], self._most(size)), moves[:, 2].bool())


def translate(images: Tensor, down: Tensor, right: Tensor, pixels: int | tuple[int, int]) -> Tensor:
    """Translate each image by its own number of pixels, filling with zeros.

    It is one gather from the view of all windows of the padded images, without a loop over samples.

    Args:
        images: [B, C, H, W].
        down: int64 [B], each in -pixels .. pixels.
        right: int64 [B], each in -pixels .. pixels.
        pixels: Largest translation, or a pair (down, right).

    Returns:
        The translated images [B, C, H, W].
    """
    height, width = images.shape[2:]
    most_down, most_right = (pixels, pixels) if isinstance(pixels, int) else pixels
    padded = F.pad(images, (most_right, most_right, most_down, most_down))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, most_down - down, most_right - right]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Flip selected images horizontally.

    Args:
        images: [B, C, H, W].
        which: bool [B], true for the images to flip.

    Returns:
        The images [B, C, H, W].
    """
    return torch.where(which[:, None, None, None], images.flip(3), images)


def check_label_safe(augment: str, data: str, classes: Sequence[str], allow_flip: bool) -> None:
    """Check that flips do not change the class of images, as they do for digits.

    A mirrored 2 is not a 2. A data set counts as digits by the names of its classes ("2", or torchvision's "2 - two"),
    so that the check also covers the sets constructed from digits.

    Args:
        augment: Name of the augmentation.
        data: Description of the data set, for the message.
        classes: Names of the classes.
        allow_flip: Accept flips of digits.

    Raises:
        ValueError: If digits would be flipped and ``allow_flip`` is false.
    """
    digits = len(classes) > 0 and all(re.fullmatch(r"\s*\d(\s*-.*)?\s*", name) for name in classes)
    if augment == "crop-flip" and digits and not allow_flip:
        raise ValueError(
            f'augment="crop-flip" mirrors digits, which changes what they show, and {data} has the classes '
            f'{", ".join(classes[:3])}, ...: take augment="shift", or allow_flip=True if mirrored is still the class'
        )
