"""A random model as the mean of several passes, for predictions and for gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from advfeat._arguments import whole_number
from advfeat.forward import logits_of


class Averaged(nn.Module):
    """See :func:`averaged`."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        return _mean(lambda x: logits_of(self.model(x)), x, self.draws)

    def representation(self, x: Tensor) -> Tensor:
        return _mean(self.model.representation, x, self.draws)


def averaged(model: Callable, draws: int) -> Callable:
    """The mean logits, and the mean representation, of ``draws`` passes of a model that is random in eval mode.

    An attack on it follows the gradient of that mean, as expectation over transformation does (Athalye et al. 2018):
    of a single pass it would follow the noise. A pass costs ``draws`` of the model, and so does its memory where a
    gradient is taken. The model is used, not copied; of a function comes a function.
    Errors: ValueError for draws that are not an integer, at least 1; TypeError for what is no model.
    """
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model should be a module or a function that gives logits, got {model!r}")
    draws = whole_number("draws", draws)
    if draws == 1:
        return model
    if isinstance(model, nn.Module):
        return Averaged(model, draws)
    return lambda x: _mean(lambda x: logits_of(model(x)), x, draws)


def _mean(call: Callable[[Tensor], Tensor], x: Tensor, draws: int) -> Tensor:
    total = call(x)
    for _ in range(draws - 1):
        total = total + call(x)
    return total / draws
