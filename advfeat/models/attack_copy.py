"""A copy of a model for attacks: the same function, faster to differentiate by its input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advfeat._arguments import check_autocast, flag
from advfeat.models.folding import folded, same_function
from advfeat.models.model import Classifier


@overload
def attack_copy(model: nn.Module, *, autocast: torch.dtype | None = None, compile: bool = False) -> nn.Module: ...
@overload
def attack_copy(model: Callable, *, autocast: torch.dtype | None = None, compile: bool = False) -> Callable: ...
def attack_copy(model: Callable, *, autocast: torch.dtype | None = None, compile: bool = False) -> Callable:
    """A copy of a model in eval mode that computes the same function faster: the same logits up to rounding.

    In eval mode BatchNorm is a fixed per-channel scale and shift, which torch's own fusion folds into the weights of
    the convolution or linear layer before it, so that neither pass runs it. Weights are laid out as channels_last on
    the CPU and, with ``autocast`` to a half type, on CUDA; attacks then keep their images in that layout too.

    Only the body of a :class:`Classifier` is changed: a trace of another module would lose methods and hooks that a
    representation or an objective may need. Any other module, and a Classifier that cannot be copied, is returned as it
    is, without a copy. BatchNorm stays in a body that torch.fx cannot trace (control flow on values), or whose traced
    form gives other features or gradients for two noise images (layers called twice, hooks, parts that run without
    gradients). Parameters of the copy need no gradient. Later changes to the model do not affect the copy.

    Args:
        model: the model.
        autocast: the autocast dtype of the attack; None for none.
        compile: apply torch.compile to the body of a Classifier, or to any other module as a whole.

    Returns:
        The copy, or the model itself where there is none.

    Raises:
        TypeError: ``model`` is not callable, or is a class.
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model should be a torch.nn.Module, got {model!r}")
    check_autocast(autocast)
    compile = flag("compile", compile)
    if not isinstance(model, Classifier):
        return _compiled(model) if compile else model
    try:
        with torch.inference_mode(False):  # otherwise the copy's weights could not take part in autograd
            twin = copy.deepcopy(model)
    except Exception:  # a user's body may raise anything
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
        twin.body = _compiled(twin.body)
    return twin


@overload
def _compiled(model: nn.Module) -> nn.Module: ...
@overload
def _compiled(model: Callable) -> Callable: ...
def _compiled(model: Callable) -> Callable:
    return torch.compile(model)  # declared for functions: of a module it makes a module


def _fused(model: Classifier) -> nn.Module:
    """The body with BatchNorm folded, or unchanged where that is impossible."""
    try:
        fused = folded(model.body)
        same = same_function(model.body, fused, model.normalise(_probe(model)))
    except Exception:  # fx raises errors of many kinds
        return model.body
    if not same:
        return model.body
    for parameter in fused.parameters():  # fusing creates new parameters
        parameter.requires_grad_(False)
    return fused


def _probe(model: Classifier) -> Tensor:
    """Two noise images, always the same."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(2, *model.input_shape, generator=g, device="cpu").to(model.mean)
