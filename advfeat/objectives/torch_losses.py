"""torch losses as objectives: ``nn.CrossEntropyLoss()``, ``F.cross_entropy`` and the like."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from advfeat._names import function_name, parameters_for
from advfeat.forward import class_logits
from advfeat.objectives.base import Objective, wide

# These take labels or a target like the logits, and check it themselves.
_OF_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
_FUNCTIONS = (F.cross_entropy, F.nll_loss, F.multi_margin_loss, F.binary_cross_entropy_with_logits)


def is_torch_loss(loss: object) -> bool:
    """Whether an object is a torch loss of (logits, target).

    Args:
        loss: a module or function of ``torch.nn``, or such a function with keyword arguments bound by
            functools.partial.

    Returns:
        True for a loss that :class:`TorchLoss` can wrap.
    """
    if isinstance(loss, functools.partial):
        return not loss.args and is_torch_loss(loss.func) and not isinstance(loss.func, nn.Module)
    return isinstance(loss, _Loss) or any(loss is function for function in _FUNCTIONS)


@dataclass(frozen=True)
class TorchLoss(Objective):
    """A torch loss on the logits, per sample whatever its ``reduction``; several values per sample are averaged.

    Labels for a loss on one logit (``BCEWithLogitsLoss``) are 0 and 1; any other loss sees a single logit as two. A
    loss that compares elementwise (``MSELoss``) takes a target like the logits.

    Args:
        loss: the loss, a module or a function of (logits, target).

    Raises:
        TypeError: the loss takes more than logits and target.
    """

    loss: Callable[..., Tensor]

    def __post_init__(self) -> None:
        parameters = parameters_for(getattr(self.loss, "forward", self.loss), 2)
        if parameters is not None:
            raise TypeError(
                f"objective should be a loss of (logits, target), got {self.name}, which takes {parameters}"
            )

    def value(self, model, x, target):
        """See :meth:`Objective.value`.

        Args:
            model: returns logits [B, classes].
            x: images [B, ...].
            target: labels [B], or values like the logits.

        Returns:
            The values [B].

        Raises:
            ValueError: the loss would broadcast ``target``, or does not give a value for each sample.
        """
        logits = wide(model(x))
        function = getattr(self.loss, "func", self.loss)
        if isinstance(self.loss, nn.BCEWithLogitsLoss) or function is F.binary_cross_entropy_with_logits:
            if logits.shape[1] == 1 and target.dim() == 1:
                logits = logits[:, 0]
            target = target.to(logits.dtype)
        else:
            logits = class_logits(logits)
        if target.shape != logits.shape and not self._takes_labels:
            raise ValueError(
                f"target should be like the logits, {tuple(logits.shape)}, for {self.name}, got {tuple(target.shape)}: "
                "labels are for losses such as torch.nn.CrossEntropyLoss"
            )
        values = self._each(logits, target)
        if values.dim() == 0 or values.shape[0] != x.shape[0]:
            raise ValueError(f"{self.name} should give a value for each of {x.shape[0]} samples, got {values.shape}")
        return values if values.dim() == 1 else values.flatten(1).mean(dim=1)

    @property
    def _takes_labels(self) -> bool:
        if isinstance(self.loss, nn.Module):
            return isinstance(self.loss, _OF_LABELS)
        return getattr(self.loss, "func", self.loss) is not F.binary_cross_entropy_with_logits

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        if not isinstance(self.loss, nn.Module):
            return self.loss(logits, target, reduction="none")
        loss = cast("_Loss", copy.copy(self.loss))  # the caller's loss stays unchanged
        loss.reduction = "none"
        return loss(logits, target)

    @property
    def name(self) -> str:
        """The name of the loss with its parameters, by which results are looked up."""
        if not isinstance(self.loss, nn.Module):
            return f"torch {function_name(self.loss) if hasattr(self.loss, 'func') else self.loss.__name__}"
        parts = [
            f"{key}={value:g}" for key in ("label_smoothing", "p", "margin") if (value := getattr(self.loss, key, 0))
        ]
        # Class weights as a hash, so that losses with different weights have different names.
        for key, value in self.loss.state_dict().items():
            digest = hashlib.sha256(value.detach().cpu().double().numpy().tobytes()).hexdigest()[:8]
            parts.append(f"{key}={digest}")
        return f"{type(self.loss).__name__}({', '.join(parts)})"
