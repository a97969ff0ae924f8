"""The paper's network families from torchvision's blocks: any width, and a stem for images as small as CIFAR's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

_IMAGENET = 96  # pixels; from this size on a network keeps the ImageNet stem

Body = tuple[nn.Sequential, int]  # a body and its number of features


def resnet(arch: str, block: str, blocks: Sequence[int], input_shape: Sequence[int], width: int) -> Body:
    """A ResNet: four groups of blocks, with one, two, four and eight times ``width`` planes.

    Args:
        arch: torchvision's name, such as "resnet50".
        block: the name of torchvision's block class.
        blocks: the number of blocks of each group.
        input_shape: (C, H, W).
        width: planes of the first group.

    Returns:
        The body and its number of features.

    Raises:
        ImportError: torchvision does not import.
    """
    module = _torchvision(arch).resnet
    ResNet: Any = module.ResNet  # torchvision declares no types

    class Scaled(ResNet):
        def _make_layer(self, block, planes: int, *arguments, **options) -> nn.Sequential:
            if planes == 64:
                self.inplanes = width  # the output of the stem
            return super()._make_layer(block, planes * width // 64, *arguments, **options)

    # torchvision's own constructor, including the unused last layer: every random number that it draws affects the
    # weights of a seed, and saved fingerprints depend on them. For the same reason a first layer that fits is kept.
    net = Scaled(getattr(module, block), list(blocks))
    small = _small(input_shape)
    if small or input_shape[0] != 3 or width != 64:
        net.conv1 = _first(input_shape, width)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    stem = [net.conv1, nn.BatchNorm2d(width), net.relu] + ([] if small else [net.maxpool])
    return nn.Sequential(*stem, net.layer1, net.layer2, net.layer3, net.layer4), net.fc.in_features * width // 64


def vgg16(input_shape: Sequence[int], width: int) -> Body:
    """VGG-16: 13 convolutions with BatchNorm, without the 4096-unit classifier.

    Of the five max-pools it keeps those that leave at least one pixel.

    Args:
        input_shape: (C, H, W).
        width: channels of the first layer.

    Returns:
        The body and its number of features.

    Raises:
        ImportError: torchvision does not import.
    """
    vgg = _torchvision("vgg16").vgg
    side, layers = min(input_shape[1:]), []
    for layer in vgg.cfgs["D"]:
        if layer != "M":
            layers.append(layer * width // 64)
        elif side > 1:
            layers.append("M")
            side //= 2
    body = vgg.make_layers(layers, batch_norm=True)
    body[0] = nn.Conv2d(input_shape[0], width, 3, padding=1)
    _initialise(body)
    return body, 8 * width


def inception_v3(input_shape: Sequence[int], width: int) -> Body:
    """Inception v3 up to Mixed_7c, without the auxiliary head; channel counts are torchvision's times ``width`` / 32.

    For small images the stem's convolutions have stride 1 and padding, and its pools are left out.

    Args:
        input_shape: (C, H, W).
        width: channels of the first layer.

    Returns:
        The body and its number of features.

    Raises:
        ImportError: torchvision does not import.
    """
    inception = _torchvision("inception_v3").inception

    def conv(before: int, after: int, **options) -> nn.Module:
        before = input_shape[0] if before == 3 else before * width // 32  # 3 is the image; no layer has so few channels
        return inception.BasicConv2d(before, after * width // 32, **options)

    mixed = [partial(getattr(inception, f"Inception{letter}"), conv_block=conv) for letter in "ABCDE"]
    blocks = [conv, *mixed, inception.InceptionAux]
    # torchvision's initial weights have a standard deviation of 0.1 in every layer, and older versions need scipy.
    net = inception.Inception3(2, aux_logits=False, inception_blocks=blocks, init_weights=False)
    del net.avgpool, net.dropout, net.fc
    if _small(input_shape):
        net.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, padding=1)
        net.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3, padding=1)
        net.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3, padding=1)
        del net.maxpool1, net.maxpool2
    body = nn.Sequential(OrderedDict(net.named_children()))
    _initialise(body)
    return body, 64 * width


def densenet121(input_shape: Sequence[int], width: int) -> Body:
    """DenseNet-121 with growth rate ``width`` / 2.

    The last BatchNorm and its ReLU belong to the body: the representation comes after them.

    Args:
        input_shape: (C, H, W).
        width: channels of the first layer.

    Returns:
        The body and its number of features.

    Raises:
        ImportError: torchvision does not import.
    """
    net = _torchvision("densenet121").densenet.DenseNet(width // 2, (6, 12, 24, 16), width, num_classes=2)
    body = net.features
    body.conv0 = _first(input_shape, width)
    nn.init.kaiming_normal_(body.conv0.weight)
    if _small(input_shape):
        del body.pool0
    body.add_module("relu5", nn.ReLU(inplace=True))
    return body, 16 * width


def _torchvision(arch: str) -> ModuleType:
    try:
        from torchvision import models
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError, not ImportError
        raise ImportError(f"arch {arch!r} needs torchvision, which did not import: {error}") from error
    return models


def _small(input_shape: Sequence[int]) -> bool:
    return min(input_shape[1:]) < _IMAGENET


def _first(input_shape: Sequence[int], width: int) -> nn.Conv2d:
    """The first layer of a ResNet or a DenseNet."""
    kernel, stride, padding = (3, 1, 1) if _small(input_shape) else (7, 2, 3)
    return nn.Conv2d(input_shape[0], width, kernel, stride, padding, bias=False)


def _initialise(body: nn.Module) -> None:
    """Initialises weights as torchvision's VGG and ResNet do; BatchNorm starts as the identity anyway."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
