"""Checks of an attack's inputs, made before it starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from advfeat.attacks.base import GradientAttack
    from advfeat.ops import Number
    from advfeat.threat import Threat


def _kind(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}"


def check_tensor(name: str, value: object, what: str) -> None:
    """Checks that a value is a tensor.

    Args:
        name: the name of the argument.
        value: the value.
        what: the expected form, for the message.

    Raises:
        TypeError: ``value`` is not a tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} should be a torch tensor, {what}, got {type(value).__name__}: torch.as_tensor() makes one of "
            "arrays and lists"
        )


def check_inputs(
    attack: GradientAttack, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None
) -> int | None:
    """Checks the inputs of a gradient attack, with one synchronising read of their values, before the loop.

    Args:
        attack: the attack.
        x: [B, ...] floating-point, in the box of the threat.
        target: [B, ...].
        start: the first iterate, like x, or None.
        sample_ids: int64 [B], or None.

    Returns:
        The largest label; None if ``target`` holds no labels, x is empty or a CUDA graph is being captured.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: an input has the wrong shape, dtype or device; x is not finite or outside the box; a per-sample eps
            or step_size is negative, or not finite where it has to be; a label is negative; or ``start`` is combined
            with random starts or restarts.
    """
    check_tensor("x", x, "a floating-point batch [B, ...]")
    check_tensor("target", target, "[B, ...] with one entry per sample")
    if start is not None:
        check_tensor("start", start, "like x")
    if sample_ids is not None:
        check_tensor("sample_ids", sample_ids, "int64 [B]")
    for name, value in (("target", target), ("start", start), ("sample_ids", sample_ids)):
        if value is not None and value.device != x.device:
            raise ValueError(f"{name} should be on the device of x, {x.device}, got {value.device}")
    if not x.is_floating_point() or x.dim() < 1:
        raise ValueError(f"x should be a floating-point batch [B, ...], got {_kind(x)}")
    if target.shape[:1] != x.shape[:1]:
        raise ValueError(f"target should have one entry per sample, {x.shape[0]}, got shape {tuple(target.shape)}")
    if start is not None and (start.shape != x.shape or start.dtype != x.dtype):
        raise ValueError(f"start should be like x, {_kind(x)}, got {_kind(start)}")
    if start is not None and (attack.random_start or attack.restarts > 1):
        raise ValueError("start should be None with random_start or restarts: it would replace every random start")
    for name, number in (("eps", attack.threat.eps), ("step_size", attack.step_size)):
        if isinstance(number, Tensor) and number.dim() > 0 and number.shape != x.shape[:1]:
            raise ValueError(
                f"{name} should be a float or a tensor [B] = ({x.shape[0]},), got shape {tuple(number.shape)}"
            )
    for name, number in (("lo", attack.threat.lo), ("hi", attack.threat.hi), ("unit", attack.threat.unit)):
        if isinstance(number, Tensor) and number.dim() > 0 and (x.dim() < 2 or number.numel() != x.shape[1]):
            raise ValueError(
                f"{name} should be a float or a tensor [C] with one value per channel, got shape {tuple(number.shape)} "
                f"for x of shape {tuple(x.shape)}"
            )
    if sample_ids is not None and (sample_ids.shape != x.shape[:1] or sample_ids.dtype != torch.int64):
        raise ValueError(f"sample_ids should be int64 [B] = ({x.shape[0]},), got {_kind(sample_ids)}")
    if x.numel() == 0 or (x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return None

    bad = _outside(attack.threat, x.detach())
    integers = not target.is_floating_point() and target.dtype != torch.bool
    labels = integers and attack.objective.labels(target) is not None
    least, most = target.aminmax() if labels else (torch.zeros_like(bad[0]), torch.zeros_like(bad[0]))
    not_finite, outside, least, most = torch.stack([t.to(torch.int64) for t in (*bad, least, most)]).tolist()
    if not_finite:
        row = int((~torch.isfinite(x)).reshape(x.shape[0], -1).any(dim=1).nonzero()[0])
        raise ValueError(f"x should be finite, sample {row} of the batch holds NaN or inf")
    threat, size = attack.threat, attack.step_length
    if isinstance(threat.eps, Tensor) and not bool((threat.eps >= 0).all()):  # before the step length derived from it
        raise ValueError(f"eps should be at least 0, got {threat.eps.tolist()}")
    if isinstance(size, Tensor) and not bool((torch.isfinite(size) & (size >= 0)).all()):
        raise ValueError(f"step_size should be finite and at least 0, got {size.tolist()}")
    if isinstance(threat.eps, Tensor) and attack.random_start and not bool(torch.isfinite(threat.eps).all()):
        raise ValueError("random_start needs a finite eps for every sample")
    if outside:
        raise ValueError(
            f"x should lie in the box [{attack.threat.lo}, {attack.threat.hi}] of the threat, got values from "
            f"{x.min().item():.4g} to {x.max().item():.4g}; for normalised inputs the radius is in other units too: "
            "put the normalisation into the model, advfeat.models.adapt(module, mean=..., std=...), and attack images "
            "in [0, 1], or give the threat as advfeat.L2.normalised(eps, mean, std), or Linf's, with eps in pixel scale"
        )
    _warn_of_radius(threat, math.prod(x.shape[1:]))
    if labels and least < 0:
        raise ValueError(f"target should hold labels of at least 0, got {least}")
    return most if labels else None


def _warn_of_radius(threat: Threat, dim: int) -> None:
    """Warns if the ball contains the whole box, as the L2 ball of radius 128 (for 128 / 255) does.

    :class:`advfeat.Linf` warns itself, since it needs no dimension.
    """
    eps, lo, hi = threat.eps, threat.lo, threat.hi
    if isinstance(eps, Tensor) or isinstance(lo, Tensor) or isinstance(hi, Tensor):
        return
    if math.isinf(threat.order) or not math.isfinite(eps):
        return
    if eps > threat.holds_the_box(hi - lo, dim) > 0:
        warnings.warn(
            f"eps={eps:g} is more than the diagonal of the box [{lo:g}, {hi:g}] of {dim} values, "
            f"{threat.holds_the_box(hi - lo, dim):.3g}, so it bounds nothing: radii are in the units of the input, "
            "128 / 255 in pixel scale [0, 1]",
            RuntimeWarning,
            stacklevel=2,
        )


def _outside(threat: Threat, x: Tensor) -> tuple[Tensor, Tensor]:
    """Whether x holds NaN or inf, and whether it leaves the box, from its extremes in one pass over x."""
    lo, hi = threat.lo, threat.hi
    width: Number
    if isinstance(lo, Tensor) or isinstance(hi, Tensor):
        others = [d for d in range(x.dim()) if d != 1]
        least, most = x.amin(others), x.amax(others)  # NaN if x holds one
        lo, hi = (torch.as_tensor(v, dtype=torch.float32, device=x.device).reshape(-1) for v in (lo, hi))
        width = torch.where(torch.isfinite(hi - lo), hi - lo, 1.0)
    else:
        least, most = x.aminmax()
        width = hi - lo if math.isfinite(hi - lo) else 1.0
    # Rounding in the user's own normalisation (-3e-8 for 0) is not an error; it is clipped.
    slack = 1e-4 * width
    not_finite = ~(torch.isfinite(least) & torch.isfinite(most))
    return not_finite.any(), ((least < lo - slack) | (most > hi + slack)).any()


def memory_format_for(model: Callable, x: Tensor) -> torch.memory_format:
    """The memory format in which gradients arrive in the layout of x, so that no step mixes two layouts.

    Args:
        model: the model.
        x: images [B, ...].

    Returns:
        ``torch.channels_last`` if x is 4-D and the model's convolutions have that layout, else
        ``torch.preserve_format``.
    """
    if x.dim() == 4 and isinstance(model, nn.Module):
        for weight in (m.weight for m in model.modules() if isinstance(m, nn.Conv2d)):
            if not weight.is_contiguous():
                last = weight.is_contiguous(memory_format=torch.channels_last)
                return torch.channels_last if last else torch.preserve_format
            if not weight.is_contiguous(memory_format=torch.channels_last):
                break  # only a 1x1 or single-channel convolution can have both layouts
    return torch.preserve_format
