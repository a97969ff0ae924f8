"""A faster copy of any module, for attacks that read nothing but its logits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advfeat.models.attack_copy import attack_copy
from advfeat.models.folding import folded, same_function
from advfeat.models.model import Classifier


def logits_copy(model: Callable, x: Tensor) -> Callable:
    """A copy of a module that computes the same logits faster, or the model itself where there is none.

    BatchNorm is folded into the convolutions before it, in those parts that torch.fx can trace; on the CPU weights are
    laid out as channels_last. The copy is used only if it gives the same logits and gradients for x, up to rounding.
    There is no copy of functions, and of modules in train mode, with hooks, compiled, or spread over devices. Later
    changes of the model do not affect the copy: whoever attacks it asks the model itself about each success.

    Args:
        model: the model, a module or function from images to logits.
        x: some images [B, C, H, W], on the model's device.

    Returns:
        The copy or the model.
    """
    if not isinstance(model, nn.Module) or not len(x) or not _is_plain(model):
        return model
    if isinstance(model, Classifier):
        return attack_copy(model)
    try:
        with torch.inference_mode(False):
            for twin in (_fold(copy.deepcopy(model)), copy.deepcopy(model)):
                if same_function(model, twin, x):
                    return _prepared(twin, x.device)
    except Exception:  # a user's module may raise anything
        return model
    return model


def _is_plain(model: nn.Module) -> bool:
    """Whether the modules are all that is called, in eval mode, on one device."""
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        other = isinstance(module, (nn.DataParallel, torch.jit.ScriptModule)) or hasattr(module, "_orig_mod")
        if module.training or other or any(hooks):
            return False
    return len({tensor.device for tensor in (*model.parameters(), *model.buffers())}) <= 1


def _fold(module: nn.Module) -> nn.Module:
    """The module with BatchNorm folded, where torch.fx can trace it; otherwise the same of its children, in place."""
    if not any(isinstance(part, _BatchNorm) for part in module.modules()):
        return module
    try:
        return folded(module)
    except Exception:  # fx raises errors of many kinds
        for name, child in module.named_children():
            setattr(module, name, _fold(child))
        return module


def _prepared(twin: nn.Module, device: torch.device) -> nn.Module:
    for module in twin.modules():
        module.training = False
        if isinstance(module, nn.Conv2d) and device.type == "cpu":
            module.to(memory_format=torch.channels_last)
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin
