"""Calling a model with images: its device and input dtype, its logits, and the classes that they predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from advfeat._modules import modules_of
from advfeat._precision import cast, dtype_of
from advfeat.eval_mode import evaluating


def logits_of(output: object) -> Tensor:
    """The logits in a model's output.

    Args:
        output: a tensor, an object with ``.logits`` (Hugging Face), or a dict with that key.

    Returns:
        The logits.

    Raises:
        TypeError: the output is none of these.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model should return logits as a tensor or an output with .logits, got {type(output).__name__}"
    )


def unwrapped(model: Callable) -> Callable:
    """The module inside DistributedDataParallel, otherwise the model itself.

    The wrapper communicates with the other processes at every pass. Under attack each process makes as many passes as
    its own samples need, so they would wait for each other forever. A compiled wrapper is attacked in its uncompiled
    form.

    Args:
        model: the model.

    Returns:
        The inner module, or ``model``.
    """
    inner = getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model
    return inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else model


def device_of(model: Callable) -> torch.device:
    """The device of the model's first parameter or buffer.

    Args:
        model: the model.

    Returns:
        The device; the CPU if there is no parameter or buffer.
    """
    for module in _modules(model):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")


def image_dtype(model: Callable) -> torch.dtype:
    """The dtype in which images are attacked.

    Args:
        model: the model.

    Returns:
        float64 for a float64 model, otherwise float32, also for a model in half precision.
    """
    return torch.float64 if dtype_of(_modules(model)) == torch.float64 else torch.float32


def taken_by(model: Callable, x: Tensor, method: Callable | None = None) -> object:
    """The output of a model for images cast to its own dtype.

    Args:
        model: the model.
        x: images [B, ...].
        method: a method or function of the model to call instead; None for the model itself.

    Returns:
        The output.
    """
    return (method or model)(cast(x, dtype_of(_modules(model))))


def output(model: Callable, x: Tensor) -> Tensor:
    """The raw logits of images, in eval mode and without a gradient.

    Args:
        model: the model.
        x: images [B, ...].

    Returns:
        The logits [B, ...]; [B, 1] for a model that gives [B].
    """
    with evaluating(model), torch.no_grad():
        found = logits_of(taken_by(model, x))
    return found[:, None] if found.shape == x.shape[:1] else found


def logits(model: Callable, x: Tensor, classes: int) -> Tensor:
    """The logits of images, in eval mode and without a gradient.

    A single logit stands for two classes, see :func:`advfeat.forward.class_logits`.

    Args:
        model: the model.
        x: images [B, ...].
        classes: the expected number of classes.

    Returns:
        [B, classes], float64 for a float64 model, otherwise float32.

    Raises:
        ValueError: the model has another number of classes.
    """
    found = output(model, x)
    found = found if found.dtype == torch.float64 else found.float()
    if classes == 2 and found.shape == (len(x), 1):
        found = class_logits(found)
    if found.shape != (len(x), classes):
        raise ValueError(f"the model should give logits {(len(x), classes)} for this data, got {tuple(found.shape)}")
    return found


def class_logits(logits: Tensor) -> Tensor:
    """Logits with one column per class.

    A single logit z, from a binary model trained with binary cross-entropy, stands for two classes with the logits (0,
    z): the same probabilities, and class 1 where z > 0.

    Args:
        logits: a model's output [B, C].

    Returns:
        [B, C], or [B, 2] for a single logit.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def predicted_classes(logits: Tensor) -> Tensor:
    """The predicted class of each sample.

    There is no prediction if a logit is NaN, if several are +inf, or if all are -inf. A logit of -inf excludes its
    class, and one of +inf makes it certain. Among equal finite logits the first wins, as for argmax.

    Args:
        logits: [B, C], or [B, 1] for a binary model, whose class is the sign of its logit (0 or less is class 0).

    Returns:
        int64 [B], -1 where there is no prediction.
    """
    if logits.shape[1] == 1:
        z = logits[:, 0]
        return torch.where(z.isnan(), -1, (z > 0).to(torch.int64))
    highest, predicted = logits.max(dim=1)  # NaN if any logit is NaN
    certain = (logits == torch.inf).sum(dim=1)
    return torch.where(highest.isnan() | (highest == -torch.inf) | (certain > 1), -1, predicted)


def class_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin ``z_y - max_{j != y} z_j`` of each sample: positive where the label is predicted.

    Args:
        logits: as for :func:`predicted_classes`.
        labels: int64 [B].

    Returns:
        [B]; infinity if all other classes are excluded, minus infinity if the label's own class is, NaN without a
        prediction.
    """
    logits = class_logits(logits)
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def _modules(model: Callable) -> list[nn.Module]:
    return [model] if isinstance(model, nn.Module) else modules_of(model)
