"""Functions and torch losses as objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from advfeat._names import function_name, parameters_for
from advfeat.objectives.base import Objective
from advfeat.objectives.torch_losses import TorchLoss, is_torch_loss


@dataclass(frozen=True)
class Function(Objective):
    """A plain function ``(model, x, target) -> [B]`` as an objective.

    Args:
        function: the function.
    """

    function: Callable[[Callable, Tensor, Tensor], Tensor]

    def value(self, model, x, target):
        """See :meth:`Objective.value`."""
        return self.function(model, x, target)

    @property
    def name(self) -> str:
        """The name of the function."""
        return function_name(self.function)


def as_objective(objective: Objective | Callable) -> Objective:
    """Converts a function or a torch loss to an objective.

    Args:
        objective: an objective, which is returned as it is; a torch loss; or a function ``(model, x, target) -> [B]``.

    Returns:
        The objective.

    Raises:
        TypeError: it is none of these, or takes other arguments.
    """
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
