"""Threat models: the ball around a sample and the box of valid inputs, and how an iterate moves in them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat import ops
from advfeat.ops import Number


@dataclass(frozen=True, eq=False)
class Threat:
    """Perturbations of norm at most ``eps`` that stay in the box ``[lo, hi]``. Use :class:`L2` or :class:`Linf`.

    eps: the radius in the units of the input (pixel scale [0, 1] by default), a float or a tensor [B]; ``math.inf`` for
    no ball. lo, hi: a float, or a tensor [C] with one bound a channel; a model that takes normalised inputs has
    ``lo = (0 - mean) / std`` and ``hi = (1 - mean) / std``.
    """

    eps: Number
    lo: Number = 0.0
    hi: Number = 1.0

    norm = ""  # "l2" or "linf"

    def __post_init__(self) -> None:
        for name in ("eps", "lo", "hi"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if not isinstance(self.eps, Tensor) and not self.eps >= 0:
            raise ValueError(f"eps should be at least 0, got {self.eps}")
        if isinstance(self.eps, Tensor) and self.eps.dim() > 1:
            raise ValueError(f"eps should be a float or a tensor [B], got shape {tuple(self.eps.shape)}")
        if not isinstance(self.lo, Tensor) and not isinstance(self.hi, Tensor) and not self.lo <= self.hi:
            raise ValueError(f"lo should be at most hi, got lo={self.lo} and hi={self.hi}")

    @classmethod
    def normalised(cls, eps: float, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor):
        """The threat of radius eps in pixel scale for inputs ``(x - mean) / std`` of images x in [0, 1].

        mean, std: a number, or one a channel. Its radius is eps / std and its box that of the images by channel, so
        that an attack is the one in pixel scale, in other units; steps and distances are in those, too.
        Errors: ValueError where std differs between channels: the ball is none of one radius then, and the way is to
        put the normalisation into the model (:func:`advfeat.models.adapt`).
        """
        mean, std = (torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in (mean, std))
        if not bool((std > 0).all()) or not bool((std == std[0]).all()):
            raise ValueError(
                f"std should be one positive number for all channels, or the ball has no single radius, got "
                f"{std.tolist()}: put the normalisation into the model, advfeat.models.adapt(module, mean=..., std=...)"
            )
        lo, hi = (0 - mean) / std[0], (1 - mean) / std[0]
        return cls(eps / float(std[0]), *((lo, hi) if len(mean) > 1 else (float(lo), float(hi))))

    def step_(
        self, x: Tensor, grad: Tensor, x0: Tensor, step_size: Number, *, grad_status: Tensor | None = None
    ) -> Tensor:
        """One step of length step_size along grad (ascent for step_size > 0), then the ball and the box; in place."""
        raise NotImplementedError

    def project_(self, x: Tensor, x0: Tensor) -> Tensor:
        """x into the ball around x0 and the box, in place."""
        raise NotImplementedError

    def random_start(self, x0: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
        """A uniform point of the ball around each x0, clipped to the box; a function of (seed, sample id) alone."""
        raise NotImplementedError

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        """The norm of x - x0 of each sample, [B] float32 (float64 for float64)."""
        raise NotImplementedError

    def rows(self, index: Tensor) -> Threat:
        """The same threat for a selection of the batch."""
        if isinstance(self.eps, Tensor) and self.eps.dim() == 1:
            return dataclasses.replace(self, eps=self.eps[index])
        return self

    def to(self, device: torch.device) -> Threat:
        """The same threat with its tensors on a device, in the float64 that the kernels take."""
        tensors = {k: getattr(self, k) for k in ("eps", "lo", "hi") if isinstance(getattr(self, k), Tensor)}
        if not tensors:
            return self
        return dataclasses.replace(self, **{k: v.detach().to(device, torch.float64) for k, v in tensors.items()})

    def to_dict(self) -> dict:
        """The settings as JSON values."""

        def plain(v: Number) -> float | str | list:
            if isinstance(v, Tensor):
                return plain(v.tolist())
            if isinstance(v, list):
                return [plain(item) for item in v]
            return v if math.isfinite(v) else str(v)  # JSON has no Infinity

        return {"norm": self.norm, "eps": plain(self.eps), "lo": plain(self.lo), "hi": plain(self.hi)}


def _number(name: str, value: object) -> Number:
    """A number as Python's float, as JSON has it; a list or an array as a tensor in float64; a tensor as it is.

    Errors: TypeError for anything else, a text such as "8/255" among them.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__") and getattr(value, "shape", ()) != ():
        try:
            return torch.as_tensor(value, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} should hold numbers, got {value!r}") from error
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} should be a number or a tensor, got the text {value!r}: give it as in 8 / 255")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} should be a number or a tensor, got {type(value).__name__}") from error


def _difference(x: Tensor, x0: Tensor) -> Tensor:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(wide) - x0.to(wide)).reshape(x.shape[0], math.prod(x.shape[1:]))


@dataclass(frozen=True, eq=False)
class L2(Threat):
    """The L2 ball; a step is normalised, ``step_size * grad / ||grad||``. The paper's threat (Appendix C.3-C.5)."""

    norm = "l2"

    def step_(self, x, grad, x0, step_size, *, grad_status=None):
        return ops.l2_step_(x, grad, x0, step_size, self.eps, self.lo, self.hi, grad_status=grad_status)

    def project_(self, x, x0):
        return ops.project_l2_(x, x0, self.eps, self.lo, self.hi)

    def random_start(self, x0, seed, sample_ids):
        return ops.random_start_l2(x0, self.eps, seed, sample_ids, self.lo, self.hi)

    def distance(self, x, x0):
        return torch.linalg.vector_norm(_difference(x, x0), dim=1)


@dataclass(frozen=True, eq=False)
class Linf(Threat):
    """The L-inf ball; a step is ``step_size * sign(grad)``.

    A RuntimeWarning says where a finite ``eps`` is more than the whole box, as 8 for 8 / 255 is.
    """

    norm = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isinstance(value, Tensor) for value in (self.eps, self.lo, self.hi)):
            return
        if math.isfinite(self.eps) and self.eps > self.hi - self.lo > 0:
            warnings.warn(
                f"eps={self.eps:g} is more than the whole box [{self.lo:g}, {self.hi:g}], so it bounds nothing: radii "
                "are in the units of the input, 8 / 255 in pixel scale [0, 1]",
                RuntimeWarning,
                stacklevel=3,
            )

    def step_(self, x, grad, x0, step_size, *, grad_status=None):
        return ops.linf_step_(x, grad, x0, step_size, self.eps, self.lo, self.hi, grad_status=grad_status)

    def project_(self, x, x0):
        return ops.project_linf_(x, x0, self.eps, self.lo, self.hi)

    def random_start(self, x0, seed, sample_ids):
        return ops.random_start_linf(x0, self.eps, seed, sample_ids, self.lo, self.hi)

    def distance(self, x, x0):
        d = _difference(x, x0).abs()
        return d.amax(dim=1) if d.shape[1] else d.sum(dim=1)
