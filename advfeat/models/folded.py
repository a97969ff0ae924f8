"""A model's copy for attacks: BatchNorm folded into the convolution before it, so that neither pass runs it."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from advfeat.models.model import Adapted, Classifier


def folded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode that computes the same function faster: the same logits but for rounding.

    In eval mode BatchNorm is a fixed scale and shift by channel, which torch's own fusion puts into the weights of the
    convolution or linear layer before it. A model that torch.fx cannot trace (control flow on values), that cannot be
    copied, or that is an adapted one (its representation is found by a submodule's name) comes back as it is: itself,
    not a copy. Parameters of the copy need no gradient. What is done to the model later is not seen by the copy.
    """
    if isinstance(model, Adapted) or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return model
    try:
        with torch.inference_mode(False):  # else the copy's weights could take no part in a gradient
            twin = copy.deepcopy(model)
            for module in twin.modules():
                module.training = False  # as no_trace does: train() may be overridden
            if isinstance(twin, Classifier):
                twin.body = _fused(twin.body)
            else:
                twin = _fused(twin)
    except Exception:  # fx raises errors of many kinds, and a model of the user's own may raise any
        return model
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def _fused(module: nn.Module) -> nn.Module:
    from torch.fx.experimental import optimization

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return optimization.fuse(module, inplace=True)
