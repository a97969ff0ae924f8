"""Checks of models, and warnings about randomness, dependence on the batch, and probabilities instead of logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from advfeat._modules import modules_of
from advfeat._precision import dtype_of
from advfeat.forward import device_of, logits

_LOOKED_AT = 32  # images that are passed to a model twice
# Tolerance for another order of summation, relative to the largest logit: on the CPU, and with TensorFloat-32.
_ROUNDING, _ROUNDING_ELSEWHERE = 1e-5, 1e-3
# The same for another batch size, for which libraries choose other algorithms; half types round more coarsely.
_ROUNDING_BY_SIZE, _ROUNDING_BY_SIZE_IN_HALF = 2e-3, 5e-2

# The number of rows checked for a sum of 1, and the tolerance, of half types that of their rounding.
_ENOUGH_ROWS, _SUM, _SUM_IN_HALF = 4, 1e-4, 5e-3


def check_model(model: object) -> None:
    """Checks that a model can be called with images.

    Args:
        model: the model.

    Raises:
        TypeError: it is a class, a state dict, a path or anything else that is not a model.
    """
    if isinstance(model, type):
        raise TypeError(
            f"model should be a model, got the class {model.__name__}: give an instance, {model.__name__}()"
        )
    if callable(model):
        return
    kind = type(model).__name__
    if isinstance(model, dict):
        raise TypeError(
            f"model should be a module or a function that gives logits, got a {kind}: a state dict holds weights "
            "alone; load it into its module, module.load_state_dict(...), and give that"
        )
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        raise TypeError(
            f"model should be a module, got the path {str(model)!r}: give advfeat.models.load({str(model)!r})"
        )
    raise TypeError(f"model should be a module or a function that gives logits, got {kind}")


def check_module(model: object) -> None:
    """Checks that a model is a module with weights.

    Args:
        model: the model.

    Raises:
        TypeError: it is not a torch.nn.Module.
        ValueError: its weights have no values.
    """
    check_model(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    check_values(model)


def check_values(model: Callable) -> None:
    """Checks that a model is not on the meta device.

    Args:
        model: the model.

    Raises:
        ValueError: it is.
    """
    if device_of(model).type == "meta":
        raise ValueError("model should have weights, got one on the meta device: load its state dict with assign=True")


def is_deterministic(model: Callable, x: Tensor, classes: int) -> bool:
    """Whether two passes over the first images of a batch give the same logits up to rounding.

    Args:
        model: the model.
        x: images [B, ...].
        classes: the number of classes.

    Returns:
        False for a model that is random in eval mode.
    """
    x = x[:_LOOKED_AT]
    return agree(logits(model, x.clone(), classes), logits(model, x.clone(), classes))


def depends_on_batch(model: Callable, x: Tensor, classes: int) -> bool:
    """Whether the logits of the first two images of a batch change, beyond rounding, without the other images.

    A BatchNorm layer without running statistics causes that, also in eval mode. For a random model the answer means
    nothing.

    Args:
        model: the model.
        x: images [B, ...].
        classes: the number of classes.

    Returns:
        True if they change.
    """
    x = x[:_LOOKED_AT]
    if len(x) <= 2:
        return False
    together = logits(model, x.clone(), classes)[:2]
    try:
        alone = logits(model, x[:2].clone(), classes)  # two images, since a batch of one has no variance
    except (RuntimeError, ValueError):  # a model, perhaps a traced one, that takes a single batch size
        return False
    half_type = _is_half(model)
    return not agree(together, alone, _ROUNDING_BY_SIZE_IN_HALF if half_type else _ROUNDING_BY_SIZE)


def agree(first: Tensor, second: Tensor, rounding: float | None = None) -> bool:
    """Whether two passes gave the same values up to rounding; NaN in the same places counts as equal.

    Args:
        first: the values of one pass.
        second: the values of the other.
        rounding: the tolerance as a fraction of the largest value; by default the effect of another order of summation.

    Returns:
        True if they agree.
    """
    same = (first == second) | (first.isnan() & second.isnan())
    if bool(same.all()):
        return True
    sizes = torch.cat([first, second]).abs()
    largest = float(sizes.where(sizes.isfinite(), torch.zeros_like(sizes)).max())
    if rounding is None:
        rounding = _ROUNDING if first.device.type == "cpu" else _ROUNDING_ELSEWHERE
    return bool((same | ((first - second).abs() <= rounding * largest)).all())


def are_probabilities(found: Tensor, model: Callable | None = None) -> bool:
    """Whether logits look like the output of a softmax: at least 0, and a sum of 1 in every row.

    It is False for fewer than four rows, for rows that are all equal, and for a single logit, which stands for (0, z):
    true logits could be so by chance.

    Args:
        found: [B, classes].
        model: the model that gives them, whose dtype decides how far a sum may be from 1; None for float32.

    Returns:
        True if they look like probabilities.
    """
    tolerance = _SUM if model is None or not _is_half(model) else _SUM_IN_HALF
    single = found.shape[1] == 2 and not bool(found[:, 0].any())
    if single or len(found) < _ENOUGH_ROWS or bool((found == found[:1]).all()):
        return False
    return bool(((found >= 0).all(dim=1) & ((found.sum(dim=1) - 1).abs() <= tolerance)).all())


def warn_of_probabilities(stacklevel: int = 3) -> None:
    """Warns that a model returns probabilities.

    Args:
        stacklevel: as for :func:`warnings.warn`.
    """
    warnings.warn(
        "the model seems to give probabilities: its values are at least 0 and sum to 1 for each image. Attacks need "
        "logits: the margin of probabilities saturates, and its gradients vanish. Take the softmax out of the model, "
        "or return the logarithm of its output",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def warn_of_randomness(what: str, stacklevel: int = 3) -> None:
    """Warns that two passes of a model over the same images disagree.

    Args:
        what: the consequence, for the message.
        stacklevel: as for :func:`warnings.warn`.
    """
    warnings.warn(
        f"the model is random in eval mode: two passes over the same images give different logits, so {what}",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def warn_of_batches(what: str, stacklevel: int = 3) -> None:
    """Warns that a model's output for an image depends on the others in its batch.

    Args:
        what: the consequence, for the message.
        stacklevel: as for :func:`warnings.warn`.
    """
    warnings.warn(
        "the model's output for an image depends on the other images of its batch (BatchNorm without running "
        f"statistics?), so {what}",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def _is_half(model: Callable) -> bool:
    """Whether the model computes in float16 or bfloat16."""
    modules = [model] if isinstance(model, nn.Module) else modules_of(model)
    return dtype_of(modules) in (torch.float16, torch.bfloat16)
