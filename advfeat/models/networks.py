"""The networks by name: a small convolutional network for CPUs, and ResNets with a CIFAR stem."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from advfeat.models.model import Classifier

_LARGE = 24  # pixels; from here on the stem halves the image
_IMAGENET = 96  # pixels; from here on a ResNet keeps the ImageNet stem


def create(
    arch: str,
    num_classes: int,
    input_shape: Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    width: int | None = None,
    seed: int = 0,
) -> Classifier:
    """A freshly initialised classifier, in train mode.

    arch: "small-convnet", "resnet18" or "resnet50" (the paper's, Appendix C.2).
    num_classes, input_shape: as :class:`Classifier` has them; any side from 4 pixels, any number of channels.
    mean, std: normalisation inside the model, per channel in pixel scale; None for none.
    width: channels of the small-convnet's first layer (default 32; the representation has 4 * width); None elsewhere.
    seed: of the initial weights; the global random state is left as it was.
    Errors: ValueError for an unknown arch or a width that it does not take; ImportError where a ResNet is asked for and
    torchvision is missing.
    """
    if arch not in _ARCHS:
        raise ValueError(f"arch should be one of {', '.join(archs())}, got {arch!r}")
    make, takes_width = _ARCHS[arch]
    if width is not None and (not takes_width or not isinstance(width, int) or width < 1):
        expected = "an integer, at least 1" if takes_width else "None"
        raise ValueError(f"width should be {expected} for {arch}, got {width!r}")
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ValueError(f"input_shape should be (channels, height, width) of at least 4x4, got {tuple(input_shape)}")
    # Not torch.manual_seed: that would also reseed the generators of every GPU, which fork_rng([]) does not put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        body, features = make(input_shape, width) if takes_width else make(input_shape)
        model = Classifier(body, nn.Linear(features, num_classes), num_classes, input_shape, mean, std)
    model.arch = arch
    model.arch_arguments = {
        "num_classes": num_classes,
        "input_shape": list(model.input_shape),
        "mean": model.mean.tolist() if model.normalises else None,
        "std": model.std.tolist() if model.normalises else None,
        "width": width,
    }
    return model


def archs() -> tuple[str, ...]:
    """The names that :func:`create` takes."""
    return tuple(_ARCHS)


def _small_convnet(input_shape: Sequence[int], width: int | None) -> tuple[nn.Sequential, int]:
    """Four convolutions with BatchNorm and ReLU, the last two at 8x8 and 4x4, whatever the size of the image.

    12 million multiply-adds for a 32x32 image at width 32: from 24 pixels on the stem halves the image, since at full
    size its activations cost more time than they bring accuracy. A plain Sequential, so that BatchNorm folds easily.
    """
    channels, width = input_shape[0], width or 32
    large = min(input_shape[1:]) >= _LARGE
    side = min(input_shape[1:]) // (2 if large else 1)
    stem = nn.Conv2d(channels, width, 4, 2, 1, bias=False) if large else nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    for before, after in ((width, 2 * width), (2 * width, 4 * width), (4 * width, 4 * width)):
        if len(layers) > 3 and side > 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        layers += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers), 4 * width


def _resnet(name: str) -> Callable[[Sequence[int]], tuple[nn.Sequential, int]]:
    def make(input_shape: Sequence[int]) -> tuple[nn.Sequential, int]:
        try:
            from torchvision.models import resnet
        except Exception as error:  # torchvision beside another torch fails with RuntimeError, not ImportError
            raise ImportError(f"arch {name!r} needs torchvision, which did not import: {error}") from error
        net = getattr(resnet, name)(weights=None)
        small = min(input_shape[1:]) < _IMAGENET
        if small:
            net.conv1 = nn.Conv2d(input_shape[0], 64, 3, 1, 1, bias=False)
        elif input_shape[0] != 3:
            net.conv1 = nn.Conv2d(input_shape[0], 64, 7, 2, 3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        stem = [net.conv1, net.bn1, net.relu] + ([] if small else [net.maxpool])
        return nn.Sequential(*stem, net.layer1, net.layer2, net.layer3, net.layer4), net.fc.in_features

    return make


_ARCHS: dict[str, tuple[Callable, bool]] = {
    "small-convnet": (_small_convnet, True),
    "resnet18": (_resnet("resnet18"), False),
    "resnet50": (_resnet("resnet50"), False),
}
