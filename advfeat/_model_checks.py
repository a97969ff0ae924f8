"""What a model has to be, and what is said of one that says other things twice, in other batches, or probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from advfeat._modules import modules_of
from advfeat._precision import dtype_of
from advfeat.forward import device_of, logits

_LOOKED_AT = 32  # images that are shown to a model twice
# Of the largest logit: what another order of sums may change, on the CPU and where TensorFloat-32 is used.
_ROUNDING, _ROUNDING_ELSEWHERE = 1e-5, 1e-3
# The same for batches of another size, for which libraries choose other algorithms; half types round more coarsely.
_ROUNDING_BY_SIZE, _ROUNDING_BY_SIZE_IN_HALF = 2e-3, 5e-2

# Rows that a sum of 1 is looked for in, and by how much it may be missed.
_ENOUGH_ROWS, _SUM = 4, 1e-4


def check_model(model: object) -> None:
    """Raises TypeError for what cannot be called with images."""
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
    """Raises TypeError for what is no torch.nn.Module, ValueError for one whose weights have no values."""
    check_model(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    check_values(model)


def check_values(model: Callable) -> None:
    """Raises ValueError for a model on the meta device."""
    if device_of(model).type == "meta":
        raise ValueError("model should have weights, got one on the meta device: load its state dict with assign=True")


def is_deterministic(model: Callable, x: Tensor, classes: int) -> bool:
    """Whether two passes over the first images of a batch give the same logits but for rounding."""
    x = x[:_LOOKED_AT]
    return agree(logits(model, x.clone(), classes), logits(model, x.clone(), classes))


def depends_on_batch(model: Callable, x: Tensor, classes: int) -> bool:
    """Whether the first two images of a batch get other logits, beyond rounding, where the others are not there.

    A BatchNorm layer without running statistics does that, also in eval mode. Of a model that is random the answer says
    nothing.
    """
    x = x[:_LOOKED_AT]
    if len(x) <= 2:
        return False
    together = logits(model, x.clone(), classes)[:2]
    try:
        alone = logits(model, x[:2].clone(), classes)  # not one: a batch of one has no variance
    except (RuntimeError, ValueError):  # a model that takes batches of one size alone, as a traced one may
        return False
    half_type = dtype_of([model] if isinstance(model, nn.Module) else modules_of(model)) in (
        torch.float16,
        torch.bfloat16,
    )
    return not agree(together, alone, _ROUNDING_BY_SIZE_IN_HALF if half_type else _ROUNDING_BY_SIZE)


def agree(first: Tensor, second: Tensor, rounding: float | None = None) -> bool:
    """Whether two passes gave the same values but for rounding; NaN in the same places is the same.

    rounding: what may differ, as a share of the largest value; by default what another order of sums may change.
    """
    same = (first == second) | (first.isnan() & second.isnan())
    if bool(same.all()):
        return True
    largest = torch.cat([first, second]).abs()
    largest = float(largest.where(largest.isfinite(), torch.zeros_like(largest)).max())
    if rounding is None:
        rounding = _ROUNDING if first.device.type == "cpu" else _ROUNDING_ELSEWHERE
    return bool((same | ((first - second).abs() <= rounding * largest)).all())


def are_probabilities(found: Tensor) -> bool:
    """Whether logits [B, classes] look like a softmax: at least 0 with a sum of 1 in every row.

    Of less than four rows, of rows that are all the same and of a single logit, which stands for (0, z), this says
    nothing: true logits could be so by chance.
    """
    single = found.shape[1] == 2 and not bool(found[:, 0].any())
    if single or len(found) < _ENOUGH_ROWS or bool((found == found[:1]).all()):
        return False
    return bool(((found >= 0).all(dim=1) & ((found.sum(dim=1) - 1).abs() <= _SUM)).all())


def warn_of_probabilities(stacklevel: int = 3) -> None:
    """A warning that a model gives probabilities."""
    warnings.warn(
        "the model seems to give probabilities: its values are at least 0 and sum to 1 for each image. Attacks need "
        "logits: the margin of probabilities saturates, and its gradients vanish. Take the softmax out of the model, "
        "or give the logarithm of what it gives",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def warn_of_randomness(what: str, stacklevel: int = 3) -> None:
    """A warning that two passes of a model over the same images disagree."""
    warnings.warn(
        f"the model is random in eval mode: two passes over the same images give other logits, so {what}",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def warn_of_batches(what: str, stacklevel: int = 3) -> None:
    """A warning that what a model says of an image depends on the others in its batch."""
    warnings.warn(
        "what the model says of an image depends on the other images of its batch (BatchNorm without running "
        f"statistics?), so {what}",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )
