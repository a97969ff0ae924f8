"""A stochastic model averaged over several passes, for predictions and for gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from advfeat._arguments import whole_number
from advfeat.forward import logits_of


class Averaged(nn.Module):
    """A module whose outputs are means over several passes; see :func:`averaged`.

    Args:
        model: a module that is random in eval mode.
        draws: the number of passes.
    """

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """The mean logits [B, classes] for images [B, C, H, W] in [0, 1].

        Args:
            x: images [B, C, H, W].

        Returns:
            The mean logits [B, classes].
        """
        return _mean(lambda x: logits_of(self.model(x)), x, self.draws)

    def representation(self, x: Tensor) -> Tensor:
        """The mean representation of the model.

        Args:
            x: images [B, C, H, W].

        Returns:
            The mean features [B, k].
        """
        of_model = cast("Callable[[Tensor], Tensor]", self.model.representation)  # a module's attribute of any type
        return _mean(of_model, x, self.draws)


def averaged(model: Callable, draws: int) -> Callable:
    """The mean logits, and the mean representation, of several passes of a model that is random in eval mode.

    An attack on it follows the gradient of that mean, as in expectation over transformation (Athalye et al. 2018); on a
    single pass it would follow the noise. A pass costs ``draws`` passes of the model, and as much memory where a
    gradient is taken. The model is used, not copied.

    Args:
        model: a module, or a function from images to logits.
        draws: the number of passes, at least 1.

    Returns:
        A module for a module, a function for a function.

    Raises:
        ValueError: ``draws`` is not an integer of at least 1.
        TypeError: ``model`` is not a model.
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
