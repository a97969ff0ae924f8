"""Functions and losses of torch as objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from advfeat._names import function_name, parameters_for
from advfeat.objectives.base import Objective
from advfeat.objectives.torch_losses import TorchLoss, is_torch_loss


@dataclass(frozen=True)
class Function(Objective):
    """A plain function ``(model, x, target) -> [B]`` as an objective."""

    function: Callable[[Callable, Tensor, Tensor], Tensor]

    def value(self, model, x, target):
        return self.function(model, x, target)

    @property
    def name(self) -> str:
        return function_name(self.function)


def as_objective(objective: Objective | Callable) -> Objective:
    """An objective as it is; a function, or a loss of torch, wrapped."""
    if isinstance(objective, Objective):
        return objective
    if is_torch_loss(objective):
        return TorchLoss(objective)
    if callable(objective) and not isinstance(objective, type):
        parameters = parameters_for(objective, 3)
        if parameters is not None:
            raise TypeError(
                f"objective should take (model, x, target), got {function_name(objective)}, which takes {parameters}: "
                "a loss of logits and labels becomes one as lambda model, x, target: loss(model(x), target)"
            )
        return Function(objective)
    what = f"the class {objective.__name__}: give an instance" if isinstance(objective, type) else repr(objective)
    raise TypeError(
        f"objective should be an Objective, a loss of torch or a function (model, x, target) -> [B], got {what}"
    )
