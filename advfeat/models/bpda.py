"""BPDA (Athalye et al. 2018): a part of a model with its own forward pass and another one's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class BPDA(nn.Module):
    """A module or function whose gradient is that of another; see :func:`bpda`.

    Args:
        module: computes the output.
        backward: gives the gradient; None for the identity.
    """

    def __init__(self, module: Callable, backward: Callable | None = None) -> None:
        super().__init__()
        self.module, self.approximation = module, backward
        # Checkpoints of the unwrapped model load, and what is saved loads into it.
        self._register_state_dict_hook(_take_prefix_off)
        self.register_load_state_dict_pre_hook(_put_prefix_on)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the wrapped module.

        Args:
            x: a floating-point tensor, the only input of the wrapped module.

        Returns:
            The output, bit for bit that of the wrapped module.

        Raises:
            TypeError: the input or the output is not a tensor, or the output is not floating-point.
            ValueError: the approximation has another shape than the output.
        """
        # Also refuses what torch.fx traces with. A trace taken without gradients, as that of an attack copy is, would
        # lose the approximation without a word.
        if not isinstance(x, Tensor):
            raise TypeError(f"x should be a tensor, got {type(x).__name__}")
        if not torch.is_grad_enabled() or not self._has_gradient(x):
            return _checked(self.module(x))
        exact = _checked(self.module(x.detach().clone()))  # a clone: the module may work in place
        near = x if self.approximation is None else self.approximation(x)
        if not isinstance(near, Tensor) or near.shape != exact.shape:
            found = f"shape {tuple(near.shape)}" if isinstance(near, Tensor) else type(near).__name__
            which = "its input has" if self.approximation is None else "backward gave"
            raise ValueError(
                f"backward should be a differentiable function to the shape of the module's output, "
                f"{tuple(exact.shape)}, {which} {found}"
            )
        return _WithGradientOf.apply(exact.detach(), near)

    def extra_repr(self) -> str:
        """The function and the approximation, where they are no modules, for ``print(model)``."""
        functions = {"module": self.module, "backward": self.approximation}
        return ", ".join(
            f"{name}={getattr(of, '__name__', 'identity' if of is None else type(of).__name__)}"
            for name, of in functions.items()
            if not isinstance(of, nn.Module)
        )

    def _has_gradient(self, x: Tensor) -> bool:
        return x.requires_grad or (
            isinstance(self.approximation, nn.Module) and any(p.requires_grad for p in self.approximation.parameters())
        )


def bpda(module: Callable, backward: Callable | None = None) -> BPDA:
    """Wraps a part of a model that has no useful gradient: it keeps its forward pass and gets another gradient.

    Backward pass differentiable approximation (Athalye et al. 2018, Section 4.1): an attack on a model whose input is
    quantised, compressed or otherwise not differentiable follows the gradient of ``backward`` instead, evaluated at the
    same input. With None that is the identity (straight-through). Outputs are bit for bit those of ``module``, so that
    accuracies are those of the model itself. Higher derivatives are those of ``backward`` as well.

    Parameters of ``module`` get no gradient: wrap for attacks, not for training. The state dict is that of the model
    without the wrapper, so that checkpoints load in both directions; that of ``backward`` is not part of it.

    Args:
        module: a module or a function from one tensor to another, of floating-point numbers.
        backward: a differentiable module or function with the same shapes; None for the identity, which requires that
            the output of ``module`` has the shape of its input.

    Returns:
        The module to take its place.

    Raises:
        TypeError: ``module`` or ``backward`` is neither a module nor a function.

    Example:
        model = nn.Sequential(advfeat.bpda(lambda x: (x * 7).round() / 7), network)
        model.act = advfeat.bpda(model.act, backward=torch.tanh)  # a part of a model, in place
    """
    for name, given in (("module", module), ("backward", backward)):
        if isinstance(given, type) or not (callable(given) or (name == "backward" and given is None)):
            got = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
            raise TypeError(f"{name} should be a module or a function, got {got}")
    return BPDA(module, backward)


class _WithGradientOf(torch.autograd.Function):
    """The first tensor, with the gradient of the second; without the rounding of ``near + (exact - near).detach()``."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, near: Tensor) -> Tensor:
        ctx.dtype = near.dtype
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.to(ctx.dtype)


def _checked(found: object) -> Tensor:
    if not isinstance(found, Tensor) or not found.is_floating_point():
        got = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"module should give a floating-point tensor, got {got}")
    return found


def _take_prefix_off(wrapper: BPDA, state: dict, prefix: str, *_: object) -> None:
    """Removes the wrapper's own level from the keys of a state dict, and the approximation."""
    for key in [key for key in state if key.startswith(prefix)]:
        value, inner = state.pop(key), key[len(prefix) :]
        if inner.startswith("module."):
            state[prefix + inner.removeprefix("module.")] = value


def _put_prefix_on(wrapper: BPDA, state: dict, prefix: str, *_: object) -> None:
    """Undoes :func:`_take_prefix_off` before loading; the approximation keeps its values."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}module.{key[len(prefix) :]}"] = state.pop(key)
    if isinstance(wrapper.approximation, nn.Module):
        own = wrapper.approximation.state_dict(keep_vars=True)
        state.update({f"{prefix}approximation.{key}": value.detach() for key, value in own.items()})
