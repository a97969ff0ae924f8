"""A model called with images: where it lies, in which dtype it takes them, its logits, and the classes they predict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from advfeat._modules import modules_of
from advfeat._precision import cast, dtype_of
from advfeat.eval_mode import evaluating


def logits_of(output: object) -> Tensor:
    """The logits in a model's output: a tensor, an object with ``.logits`` (Hugging Face), or a dict with that key."""
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
    """The module inside DistributedDataParallel, else the model itself.

    The wrapper talks to the other processes at every pass, and under attack each makes as many as its own samples need:
    they would wait for each other forever. A compiled wrapper is attacked as it was before it was compiled.
    """
    inner = getattr(model, "_orig_mod", model) if isinstance(model, nn.Module) else model
    return inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else model


def device_of(model: Callable) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU where there is none."""
    for module in _modules(model):
        for tensor in (*module.parameters(), *module.buffers()):
            return tensor.device
    return torch.device("cpu")


def image_dtype(model: Callable) -> torch.dtype:
    """In which images are attacked: float64 for a model in float64, else float32, also for one in a half type."""
    return torch.float64 if dtype_of(_modules(model)) == torch.float64 else torch.float32


def taken_by(model: Callable, x: Tensor, method: Callable | None = None) -> object:
    """What a model, or a method or function of one, says of images in its own dtype; ``method`` if it is given."""
    return (method or model)(cast(x, dtype_of(_modules(model))))


def output(model: Callable, x: Tensor) -> Tensor:
    """The logits [B, ...] of images as the model gives them, in eval mode and without a gradient; [B, 1] for [B]."""
    with evaluating(model), torch.no_grad():
        found = logits_of(taken_by(model, x))
    return found[:, None] if found.shape == x.shape[:1] else found


def logits(model: Callable, x: Tensor, classes: int) -> Tensor:
    """The logits [B, classes] of images, in eval mode and without a gradient; float64 for a model in float64, else
    float32.

    A single logit stands for two classes, see :func:`advfeat.forward.class_logits`.
    Errors: ValueError for another number of classes.
    """
    found = output(model, x)
    found = found if found.dtype == torch.float64 else found.float()
    if classes == 2 and found.shape == (len(x), 1):
        found = class_logits(found)
    if found.shape != (len(x), classes):
        raise ValueError(f"the model should give logits {(len(x), classes)} for this data, got {tuple(found.shape)}")
    return found


def class_logits(logits: Tensor) -> Tensor:
    """Logits [B, C], one a class, from a model's output [B, C].

    A single logit z, as of a binary model trained with the binary cross-entropy, stands for two classes with the logits
    (0, z): the same probabilities, class 1 where z > 0.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def predicted_classes(logits: Tensor) -> Tensor:
    """The predicted class of each sample, int64 [B], and -1 where there is no prediction.

    logits: [B, C], or [B, 1] for a binary model, whose class is the sign of its logit (0 or less is class 0).

    There is no prediction where a logit is NaN, where several are +inf, and where all are -inf. A logit of -inf says
    that its class is out, and one of +inf that it is certain. Among finite logits that are equal the first counts, as
    for argmax.
    """
    if logits.shape[1] == 1:
        z = logits[:, 0]
        return torch.where(z.isnan(), -1, (z > 0).to(torch.int64))
    highest, predicted = logits.max(dim=1)  # NaN where there is one
    certain = (logits == torch.inf).sum(dim=1)
    return torch.where(highest.isnan() | (highest == -torch.inf) | (certain > 1), -1, predicted)


def class_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """``z_y - max_{j != y} z_j`` of each sample, [B]: positive where the label is predicted; logits as above.

    Infinite where all other classes are out, minus infinity where the label's own class is; NaN without a prediction.
    """
    logits = class_logits(logits)
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def _modules(model: Callable) -> list[nn.Module]:
    return [model] if isinstance(model, nn.Module) else modules_of(model)
