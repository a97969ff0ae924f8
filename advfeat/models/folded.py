"""A model's copy for attacks: BatchNorm folded into the convolution before it, so that neither pass runs it."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from advfeat.models.model import Classifier


def folded(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode that computes the same function faster: the same logits but for rounding.

    In eval mode BatchNorm is a fixed scale and shift by channel, which torch's own fusion puts into the weights of the
    convolution or linear layer before it. Only a :class:`Classifier`'s body is folded: a trace of another module would
    lose methods and hooks that a representation or an objective may need. Such a module, and a Classifier whose
    body torch.fx cannot trace (control flow on values) or that cannot be copied, comes back as it is: itself, not a
    copy. Parameters of the copy need no gradient. What is done to the model later is not seen by the copy.
    """
    if not isinstance(model, Classifier) or not any(isinstance(m, _BatchNorm) for m in model.body.modules()):
        return model
    try:
        with torch.inference_mode(False):  # else the copy's weights could take no part in a gradient
            twin = copy.deepcopy(model)
            for module in twin.modules():
                module.training = False  # as no_trace does: train() may be overridden
            twin.body = _fused(twin.body)
    except Exception:  # fx raises errors of many kinds, and a body of the user's own may raise any
        return model
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def _fused(module: nn.Module) -> nn.Module:
    from torch.fx.experimental import optimization

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return optimization.fuse(module, inplace=True)
