"""Networks by name: a small convolutional network for CPUs, and the families of the paper's Figure 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from advfeat._arguments import image_shape, meant, whole_number
from advfeat._torch_defaults import Float32OnCPU
from advfeat.models import families
from advfeat.models.model import Classifier, Model

_LARGE = 24  # pixels; from this size on the stem halves the image


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

    Args:
        arch: "small-convnet"; "resnet50", which the paper trains (Appendix C.2); or "resnet18", "vgg16" (with
            BatchNorm), "inception_v3" or "densenet121", the other networks of its transfer experiment (Figure 3). All
            but small-convnet have torchvision's stem for images of at least 96 pixels; smaller images get the stem of
            the usual CIFAR networks, without strides and pools.
        num_classes: as for :class:`Classifier`.
        input_shape: (C, H, W), with any number of channels and any side from 4 pixels (inception_v3: 7, densenet121:
            8).
        mean: normalisation inside the model, per channel in pixel scale [0, 1]; None for none.
        std: like ``mean``.
        width: channels of the first layer, to which all others are proportional; it must be an even number for
            inception_v3 and densenet121. None for the full size: 32 for small-convnet and inception_v3, 64 elsewhere.
            The number of features is ``width`` times 4 for small-convnet, 8 for resnet18 and vgg16, 16 for densenet121,
            32 for resnet50 and 64 for inception_v3.
        seed: of the initial weights; the global random state is unchanged.

    Returns:
        The classifier, on the CPU in float32.

    Raises:
        ValueError: ``arch`` is unknown, does not support ``width``, or needs a larger image.
        ImportError: torchvision is missing, for all but small-convnet.
    """
    seed = whole_number("seed", seed, None)
    # Not torch.manual_seed: that would also reseed the generators of every GPU, which fork_rng([]) does not restore.
    with torch.random.fork_rng(devices=[]), Float32OnCPU():
        torch.default_generator.manual_seed(seed)
        return _made(arch, num_classes, input_shape, mean, std, width)


def outline(arch: str, arguments: Mapping[str, Any]) -> Classifier:
    """The network that :func:`create` builds, on the "meta" device: everything but values, at no memory cost.

    ``load_state_dict(..., assign=True)`` gives it values.

    Args:
        arch: as for :func:`create`.
        arguments: a model's ``arch_arguments``.

    Returns:
        The network.

    Raises:
        ValueError: as for :func:`create`.
        ImportError: as for :func:`create`.
    """
    with torch.random.fork_rng(devices=[]), Float32OnCPU(), torch.device("meta"):
        return _made(arch, **arguments)


def is_as_created(model: Model) -> bool:
    """Whether a model from :func:`create` still has its original layers, whatever their weights.

    Args:
        model: the model.

    Returns:
        False if layers were changed, or if the model has no name.
    """
    if model.arch is None or model.arch_arguments is None:
        return False
    return _layers(model) == _layers(outline(model.arch, model.arch_arguments))


def _layers(model: Model) -> tuple[list, list]:
    """The layers and tensor shapes: with equal weights, two networks that agree in these compute the same function."""
    layers = [
        # A forward method set on the instance, which overrides that of its class.
        (name, type(module), module.extra_repr(), vars(module).get("forward"))
        for name, module in model.named_modules()
    ]
    tensors = [(name, getattr(value, "shape", None)) for name, value in model.state_dict().items()]
    return layers, tensors


def _made(
    arch: str,
    num_classes: int,
    input_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    width: int | None = None,
) -> Classifier:
    if not isinstance(arch, str) or arch not in _ARCHS:
        raise ValueError(f"arch should be one of {', '.join(archs())}, got {arch!r}{meant(arch, archs())}")
    num_classes, input_shape = whole_number("num_classes", num_classes, 2), image_shape("input_shape", input_shape)
    make, full_width, step, smallest = _ARCHS[arch]
    if width is not None and (not isinstance(width, int) or isinstance(width, bool) or width < 1 or width % step):
        kind = "an integer" if step == 1 else "an even integer"
        raise ValueError(f"width should be {kind}, at least {step}, for {arch}, got {width!r}")
    if min(input_shape[1:]) < smallest:
        expected = f"(channels, height, width) of at least {smallest}x{smallest} for {arch}"
        raise ValueError(f"input_shape should be {expected}, got {tuple(input_shape)}")
    body, features = make(input_shape, full_width if width is None else width)
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
    """The names that :func:`create` accepts.

    Returns:
        The names.
    """
    return tuple(_ARCHS)


def _small_convnet(input_shape: Sequence[int], width: int) -> tuple[nn.Sequential, int]:
    """Four convolutions with BatchNorm and ReLU, the last two at 8x8 and 4x4, whatever the image size.

    12 million multiply-adds for a 32x32 image at width 32: from 24 pixels on the stem halves the image, since the
    activations at full size cost more time than the accuracy they gain is worth. A plain Sequential, so that BatchNorm
    folds easily.
    """
    channels = input_shape[0]
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


class _Arch(NamedTuple):
    make: Callable[[Sequence[int], int], tuple[nn.Module, int]]  # input shape and width to body and features
    full_width: int
    step: int = 1  # widths must be multiples of this
    smallest: int = 4  # side of an image, in pixels


_ARCHS: dict[str, _Arch] = {
    "small-convnet": _Arch(_small_convnet, 32),
    "resnet18": _Arch(partial(families.resnet, "resnet18", "BasicBlock", (2, 2, 2, 2)), 64),
    "resnet50": _Arch(partial(families.resnet, "resnet50", "Bottleneck", (3, 4, 6, 3)), 64),
    "vgg16": _Arch(families.vgg16, 64),
    # Two stride-2 convolutions without padding reduce 7 pixels to 1; three halvings reduce 8 to 1.
    "inception_v3": _Arch(families.inception_v3, 32, step=2, smallest=7),
    "densenet121": _Arch(families.densenet121, 64, step=2, smallest=8),
}
