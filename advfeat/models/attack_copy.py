"""A model's copy for attacks: the same function, faster to differentiate by its input."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advfeat._arguments import check_autocast, flag
from advfeat.models.model import Classifier

# Of the largest feature: what rounding may change. Another function is off by much more.
_SAME = 1e-2


def attack_copy(model: nn.Module, *, autocast: torch.dtype | None = None, compile: bool = False) -> nn.Module:
    """A copy of ``model`` in eval mode that computes the same function faster: the same logits but for rounding.

    In eval mode BatchNorm is a fixed scale and shift by channel, which torch's own fusion puts into the weights of the
    convolution or linear layer before it, so that neither pass runs it. Weights are laid out as channels_last on the
    CPU and, with ``autocast`` to a half type, on CUDA: attacks then keep their images in that layout too.

    Only a :class:`Classifier`'s body is changed: a trace of another module would lose methods and hooks that a
    representation or an objective may need. Such a module, and a Classifier that cannot be copied, comes back as it is:
    itself, not a copy; BatchNorm stays in a body that torch.fx cannot trace (control flow on values), or whose traced
    form gives other features for two images of noise (layers called twice, hooks). Parameters of the copy need no
    gradient. What is done to the model later is not seen by the copy.

    autocast: the attack's. compile: torch.compile the body of a Classifier, or another module as a whole.
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model should be a torch.nn.Module, got {model!r}")
    check_autocast(autocast)
    compile = flag("compile", compile)
    if not isinstance(model, Classifier):
        return torch.compile(model) if compile else model
    try:
        with torch.inference_mode(False):  # else the copy's weights could take no part in a gradient
            twin = copy.deepcopy(model)
    except Exception:  # a body of the user's own may raise any
        return model
    for module in twin.modules():
        module.training = False  # as no_trace does: train() may be overridden
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode(False), torch.no_grad():
        if any(isinstance(m, _BatchNorm) for m in twin.body.modules()):
            twin.body = _fused(twin)
        if twin.mean.device.type == "cpu" or autocast in (torch.bfloat16, torch.float16):
            for convolution in (m for m in twin.modules() if isinstance(m, nn.Conv2d)):
                convolution.to(memory_format=torch.channels_last)
    if compile:
        twin.body = torch.compile(twin.body)
    return twin


def _fused(model: Classifier) -> nn.Module:
    """The body without BatchNorm, or as it is where that cannot be had."""
    from torch.fx.experimental import optimization

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fused = optimization.fuse(copy.deepcopy(model.body), inplace=True)
        # A layer that is called twice, or has a hook, is folded into another function: so both are asked. In float64,
        # because TensorFloat-32, torch's setting for convolutions on GPUs, makes a deep network differ by more than
        # another function might.
        x = model.normalise(_probe(model)).double()
        expected, got = (copy.deepcopy(body).double()(x) for body in (model.body, fused))
    except Exception:  # fx raises errors of many kinds
        return model.body
    if not bool((got - expected).abs().max() <= _SAME * expected.abs().max()):
        return model.body
    for parameter in fused.parameters():  # fusing makes new ones
        parameter.requires_grad_(False)
    return fused


def _probe(model: Classifier) -> Tensor:
    """Two images of noise, the same ones every time."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(2, *model.input_shape, generator=g, device="cpu").to(model.mean)
