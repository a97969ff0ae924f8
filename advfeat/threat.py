"""Threat models: a norm ball around a sample and the box of valid inputs, and how an iterate moves in them.

A norm is a subclass of :class:`Threat`, registered in :data:`NORMS`; everything that depends on the norm, here and
elsewhere, asks that class.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from advfeat import ops
from advfeat._arguments import meant
from advfeat.ops import Number
from advfeat.settings import as_json


@dataclass(frozen=True, eq=False, repr=False)
class Threat:
    """Perturbations of norm at most ``eps`` within the box ``[lo, hi]``. Use :class:`L2`, :class:`Linf` or :class:`L1`.

    Args:
        eps: the radius in the units of the input (pixel scale [0, 1] by default), a float or a tensor [B]; ``math.inf``
            for no ball.
        lo: the lower bound of the box, a float or a tensor [C] with one bound per channel.
        hi: the upper bound of the box, like ``lo``.
        unit: the change of the input that one unit of eps, step size or distance stands for: a float or a tensor [C].
            Inputs normalised by a per-channel standard deviation have 1 / std, see :meth:`normalised`.

    Attributes:
        norm: the name of the norm in settings and options.
        title: the name of the norm in text.
        order: p of L_p.
        dual_order: the order q of the dual norm, 1/p + 1/q = 1: a perturbation changes w.x by at most eps ||w||_q.
        usual_radii: the radii common in papers, in pixel scale, in increasing order.

    Raises:
        TypeError: an argument is not a number or a tensor.
        ValueError: eps is negative or not [B], lo exceeds hi, or unit is not finite and positive.
    """

    norm: ClassVar[str]
    title: ClassVar[str]
    order: ClassVar[float]
    dual_order: ClassVar[float]
    usual_radii: ClassVar[tuple[float, ...]] = ()

    eps: Number
    lo: Number = 0.0
    hi: Number = 1.0
    unit: Number = 1.0

    @staticmethod
    def of(norm: str, eps: Number, *bounds: Number, **settings: Number) -> Threat:
        """The threat model of a norm by its name, as in ``Threat.of("linf", 8 / 255)``.

        Args:
            norm: "l2", "linf" or "l1".
            eps: as for the class.
            *bounds: lo and hi, as for the class.
            **settings: as for the class.

        Returns:
            The threat model.

        Raises:
            ValueError: ``norm`` is unknown.
        """
        check_norm(norm)
        return NORMS[norm](eps, *bounds, **settings)

    @classmethod
    def write_radius(cls, eps: float) -> str:
        """A radius as it is usually written for this norm: 0.5, or 8/255 for L-inf.

        Args:
            eps: the radius in pixel scale [0, 1].

        Returns:
            The text.
        """
        return f"{eps:g}"

    @classmethod
    def holds_the_box(cls, width: float, dim: int) -> float:
        """The smallest radius at which the ball around every point of a box contains the whole box.

        Args:
            width: the width of the box in each dimension.
            dim: the number of dimensions.

        Returns:
            The radius.
        """
        return width * dim ** (1 / cls.order)

    def __post_init__(self) -> None:
        for name in ("eps", "lo", "hi", "unit"):
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        if not isinstance(self.eps, Tensor) and not self.eps >= 0:
            raise ValueError(f"eps should be at least 0, got {self.eps}")
        if isinstance(self.eps, Tensor) and self.eps.dim() > 1:
            raise ValueError(f"eps should be a float or a tensor [B], got shape {tuple(self.eps.shape)}")
        if not _in_order(self.lo, self.hi):
            raise ValueError(f"lo should be at most hi, got lo={self.lo} and hi={self.hi}")
        least, most = _extremes(self.unit)
        if not 0 < least <= most < math.inf:
            raise ValueError(f"unit should be finite and above 0, got {self.unit}")

    def __repr__(self) -> str:
        usual = {"lo": 0.0, "hi": 1.0, "unit": 1.0}
        given = {name: getattr(self, name) for name in ("eps", "lo", "hi", "unit")}
        parts = [
            f"{name}={f'tensor {list(value.shape)}' if isinstance(value, Tensor) and value.dim() else float(value):}"
            for name, value in given.items()
            if isinstance(value, Tensor) or value != usual.get(name)
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    @classmethod
    def normalised(cls, eps: float, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor):
        """The threat of radius eps in pixel scale for inputs ``(x - mean) / std`` of images x in [0, 1].

        The attack is the one on the images: eps, step lengths and distances are in pixel scale, and the box is that of
        the images, per channel; inputs and results are normalised. A result, mapped back to pixels, lies in the ball up
        to the rounding of both conversions.

        Args:
            eps: the radius in pixel scale [0, 1].
            mean: a number, or one per channel.
            std: a number, or one per channel, positive.

        Returns:
            The threat model.

        Raises:
            TypeError: ``mean`` or ``std`` does not hold numbers.
            ValueError: ``std`` is not positive, ``mean`` is not finite, or their lengths differ.
        """
        mean, std = as_number("mean", mean), as_number("std", std)
        mean, std = (torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1) for value in (mean, std))
        if not bool((torch.isfinite(std) & (std > 0)).all()):
            raise ValueError(f"std should be finite and above 0, got {std.tolist()}")
        if not bool(torch.isfinite(mean).all()):
            raise ValueError(f"mean should be finite, got {mean.tolist()}")
        if len({len(mean), len(std)} - {1}) > 1:
            raise ValueError(f"mean and std should have one value per channel, got {len(mean)} and {len(std)}")
        bounds = ((0 - mean) / std, (1 - mean) / std, 1 / std)
        return cls(eps, *(float(value) if len(value) == 1 else value for value in bounds))

    def step_(
        self,
        x: Tensor,
        grad: Tensor,
        x0: Tensor,
        step_size: Number,
        *,
        grad_status: Tensor | None = None,
        velocity: Tensor | None = None,
        momentum: float = 0.0,
    ) -> Tensor:
        """One step along grad (ascent for step_size > 0), then projection onto the ball and the box; in place.

        Args:
            x: the iterate [B, ...], updated in place.
            grad: the gradient, like x.
            x0: the centres of the balls, like x.
            step_size: the length of the step, a float or a tensor [B], in units of eps.
            grad_status: int32 [B, 2] counters, see :mod:`advfeat.ops`; None for none.
            velocity: like x, the last movement, updated in place; see :mod:`advfeat.ops`. None for no momentum.
            momentum: the share of the last movement that is added.

        Returns:
            ``x``.
        """
        # A norm defined elsewhere may know nothing of momentum.
        moving: dict[str, Any] = {} if velocity is None else {"velocity": velocity, "momentum": momentum}
        if not self.has_unit:
            self._step_(x, grad, x0, step_size, grad_status, **moving)
            return x
        unit = _by_channel(self.unit, x)
        moved, centre = x / unit, x0 / unit
        if velocity is not None:
            moving["velocity"] = velocity / unit
        self._in_units._step_(moved, grad.to(unit.dtype) * unit, centre, step_size, grad_status, **moving)
        if velocity is not None:
            velocity.copy_(moving["velocity"] * unit)
        return self._keep_(x, moved * unit)

    def accumulate_gradient_(
        self, total: Tensor, grad: Tensor, decay: float, *, grad_status: Tensor | None = None
    ) -> Tensor:
        """Adds grad, of L1 norm 1 in units of eps, to a decaying total, along which :meth:`step_` can step; in place.

        Args:
            total: [B, ...], updated in place, with respect to the input as grad is.
            grad: the gradient, like total.
            decay: the share of the total that is kept, see :func:`advfeat.ops.accumulate_gradient_`.
            grad_status: int32 [B, 2] counters, see :mod:`advfeat.ops`; None for none.

        Returns:
            ``total``.
        """
        if not self.has_unit:
            return ops.accumulate_gradient_(total, grad, decay, grad_status=grad_status)
        unit = _by_channel(self.unit, total)
        in_units = total * unit
        ops.accumulate_gradient_(in_units, grad.to(unit.dtype) * unit, decay, grad_status=grad_status)
        return total.copy_(in_units / unit)

    def project_(self, x: Tensor, x0: Tensor) -> Tensor:
        """Projects x onto the ball around x0 and the box, in place.

        Args:
            x: [B, ...], updated in place.
            x0: the centres of the balls, like x.

        Returns:
            ``x``.
        """
        if not self.has_unit:
            self._project_(x, x0)
            return x
        unit = _by_channel(self.unit, x)
        moved = x / unit
        self._in_units._project_(moved, x0 / unit)
        return self._keep_(x, moved * unit)

    def into_box_(self, x: Tensor) -> Tensor:
        """Clips x to the box, in place; values inside it keep their bits.

        Args:
            x: [B, ...].

        Returns:
            x.
        """
        if isinstance(self.lo, Tensor) or isinstance(self.hi, Tensor):
            bounds = (_by_channel(bound, x).to(x.dtype) for bound in (self.lo, self.hi))
            return torch.clamp(x, *bounds, out=x)
        return x.clamp_(self.lo, self.hi)

    def random_start(self, x0: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
        """A uniform point of the ball around each x0, clipped to the box.

        Args:
            x0: the centres [B, ...].
            seed: the random numbers depend on it and the sample id alone.
            sample_ids: int64 [B].

        Returns:
            The points [B, ...].
        """
        if not self.has_unit:
            return self._random_start(x0, seed, sample_ids)
        unit = _by_channel(self.unit, x0)
        start = self._in_units._random_start(x0.detach() / unit, seed, sample_ids)
        return self._keep_(torch.empty_like(x0), start * unit)

    def distance(self, x: Tensor, x0: Tensor) -> Tensor:
        """The norm of x - x0 for each sample, in units of eps.

        Args:
            x: [B, ...].
            x0: like x.

        Returns:
            [B] in float32, or float64 for float64 inputs.
        """
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        difference = x.to(wide) - x0.to(wide)
        if self.has_unit:
            difference = difference / _by_channel(self.unit, difference)
        return self.length(difference.reshape(x.shape[0], math.prod(x.shape[1:])))

    @classmethod
    def length(cls, difference: Tensor) -> Tensor:
        """The norm of each row.

        Args:
            difference: [B, D].

        Returns:
            [B]; 0 for rows without values.
        """
        if difference.shape[1] == 0:
            return difference.sum(dim=1)
        return torch.linalg.vector_norm(difference, cls.order, dim=1)

    def dual_norm(self, grad: Tensor) -> Tensor:
        """The dual norm of a gradient: how fast the steepest step changes the objective, per unit of its length.

        Args:
            grad: the gradient with respect to the input [B, ...].

        Returns:
            float64 [B].
        """
        flat = grad.detach().to(torch.float64)
        if self.has_unit:
            flat = flat * _by_channel(self.unit, flat)
        flat = flat.reshape(len(grad), math.prod(grad.shape[1:]))
        return torch.linalg.vector_norm(flat, self.dual_order, dim=1) if flat.shape[1] else flat.sum(dim=1)

    def _step_(
        self,
        x: Tensor,
        grad: Tensor,
        x0: Tensor,
        step_size: Number,
        grad_status: Tensor | None,
        velocity: Tensor | None = None,
        momentum: float = 0.0,
    ) -> None:
        """:meth:`step_` for inputs in units of eps, as in the following methods."""
        raise NotImplementedError

    def _project_(self, x: Tensor, x0: Tensor) -> None:
        raise NotImplementedError

    def _random_start(self, x0: Tensor, seed: int, sample_ids: Tensor) -> Tensor:
        raise NotImplementedError

    @cached_property
    def has_unit(self) -> bool:
        """Whether eps is in other units than the input."""
        return isinstance(self.unit, Tensor) or self.unit != 1.0

    @cached_property
    def _in_units(self) -> Threat:
        """The same threat model for the input divided by ``unit``."""
        return dataclasses.replace(self, lo=self.lo / self.unit, hi=self.hi / self.unit, unit=1.0)

    def _keep_(self, x: Tensor, moved: Tensor) -> Tensor:
        """Writes ``moved`` to x, and clips what rounding put outside the box."""
        return self.into_box_(x.copy_(moved))

    def rows(self, index: Tensor | slice) -> Threat:
        """The same threat model for a selection of the batch.

        Args:
            index: the selected samples, int64 or bool, or a slice.

        Returns:
            The threat model.
        """
        if isinstance(self.eps, Tensor) and self.eps.dim() == 1:
            return dataclasses.replace(self, eps=self.eps[index])
        return self

    def to(self, device: torch.device) -> Threat:
        """The same threat model with its tensors on a device, in the float64 that the kernels take.

        Args:
            device: the device.

        Returns:
            The threat model.
        """
        tensors = {k: getattr(self, k) for k in ("eps", "lo", "hi", "unit") if isinstance(getattr(self, k), Tensor)}
        if not tensors:
            return self
        return dataclasses.replace(self, **{k: v.detach().to(device, torch.float64) for k, v in tensors.items()})

    def to_dict(self) -> dict:
        """The settings as JSON values.

        Returns:
            A dict from setting names to JSON values.
        """

        def plain(v: Number | list) -> float | str | list:
            if isinstance(v, Tensor):
                return plain(v.tolist())
            if isinstance(v, list):
                return [plain(item) for item in v]
            return v if math.isfinite(v) else str(v)  # JSON has no Infinity

        settings = {"norm": self.norm, "eps": plain(self.eps), "lo": plain(self.lo), "hi": plain(self.hi)}
        return settings | ({"unit": plain(self.unit)} if self.has_unit else {})


def as_number(name: str, value: Any) -> Number:
    """A number as a Python float, as JSON needs it; a list or an array as a float64 tensor; a tensor as it is.

    Args:
        name: the name of the argument.
        value: the value.

    Returns:
        A float or a tensor.

    Raises:
        TypeError: any other value, including text such as "8/255".
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__") and getattr(value, "shape", ()) != ():
        try:
            return torch.as_tensor(value, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} should hold numbers, got {value!r}") from error
    if isinstance(value, bool):
        raise TypeError(f"{name} should be a number or a tensor, got {value}")
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} should be a number or a tensor, got the text {value!r}: give it as in 8 / 255")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} should be a number or a tensor, got {type(value).__name__}") from error


def _in_order(lo: Number, hi: Number) -> bool:
    """Whether lo is at most hi, in every channel.

    True where the check would wait for a device, or where the numbers of channels differ: the attack compares those
    with its input.
    """
    if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
        return lo <= hi
    bounds = [
        torch.as_tensor(bound, dtype=torch.float64, device="cpu") for bound in (lo, hi) if not _is_elsewhere(bound)
    ]
    if len(bounds) < 2 or len({bound.numel() for bound in bounds} - {1}) > 1:
        return True
    low, high = (bound.detach().reshape(-1) for bound in bounds)
    return bool((low <= high).all())


def _is_elsewhere(bound: Number) -> bool:
    return isinstance(bound, Tensor) and bound.device.type != "cpu"


def _extremes(value: Number) -> tuple[float, float]:
    """The smallest and largest value of a float or a tensor.

    For a tensor on another device than the CPU 1 and 1, since reading it would wait for the device.
    """
    if not isinstance(value, Tensor):
        return value, value
    if value.device.type != "cpu" or value.numel() == 0:
        return 1.0, 1.0
    least, most = value.detach().aminmax()
    return float(least), float(most)


def _by_channel(value: Number, x: Tensor) -> Tensor:
    """A float or a tensor [C] reshaped to broadcast to x, in at least float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    value = torch.as_tensor(value, dtype=wide, device=x.device)
    return value.reshape(-1, *[1] * max(x.dim() - 2, 0)) if value.numel() > 1 else value.reshape(())


@dataclass(frozen=True, eq=False, repr=False)
class L2(Threat):
    """The L2 ball; a step is normalised, ``step_size * grad / ||grad||``. The paper's threat model (Appendix C.3-C.5).

    Args:
        eps: the L2 radius, as for :class:`Threat`.
        lo: as for :class:`Threat`.
        hi: as for :class:`Threat`.
        unit: as for :class:`Threat`.
    """

    norm, title = "l2", "L2"
    order = dual_order = 2.0
    usual_radii = (0.25, 0.5)

    def _step_(self, x, grad, x0, step_size, grad_status, velocity=None, momentum=0.0):
        ball = (self.eps, self.lo, self.hi)
        ops.l2_step_(x, grad, x0, step_size, *ball, grad_status=grad_status, velocity=velocity, momentum=momentum)

    def _project_(self, x, x0):
        ops.project_l2_(x, x0, self.eps, self.lo, self.hi)

    def _random_start(self, x0, seed, sample_ids):
        return ops.random_start_l2(x0, self.eps, seed, sample_ids, self.lo, self.hi)


@dataclass(frozen=True, eq=False, repr=False)
class Linf(Threat):
    """The L-inf ball; a step is ``step_size * sign(grad)``.

    Warns with a RuntimeWarning if a finite ``eps`` is wider than the box, as 8 is where 8 / 255 was meant.

    Args:
        eps: the radius per value, as for :class:`Threat`.
        lo: as for :class:`Threat`.
        hi: as for :class:`Threat`.
        unit: as for :class:`Threat`.
    """

    norm, title = "linf", "L-inf"
    order, dual_order = math.inf, 1.0
    usual_radii = (4 / 255, 8 / 255)

    @classmethod
    def write_radius(cls, eps: float) -> str:
        """See :meth:`Threat.write_radius`."""
        levels = eps * 255
        return f"{levels:.0f}/255" if 1 <= levels < 255 and abs(levels - round(levels)) < 1e-6 else f"{eps:g}"

    def __post_init__(self) -> None:
        super().__post_init__()
        (lo, _), (_, hi), (unit, _), (eps, _) = (_extremes(v) for v in (self.lo, self.hi, self.unit, self.eps))
        if math.isfinite(eps) and eps > (hi - lo) / unit > 0:
            units = "in pixel scale" if self.has_unit else "in the units of the input, 8 / 255 in pixel scale [0, 1]"
            warnings.warn(
                f"eps={eps:g} is more than the whole box [{lo:g}, {hi:g}], so it bounds nothing: radii are {units}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _step_(self, x, grad, x0, step_size, grad_status, velocity=None, momentum=0.0):
        ball = (self.eps, self.lo, self.hi)
        ops.linf_step_(x, grad, x0, step_size, *ball, grad_status=grad_status, velocity=velocity, momentum=momentum)

    def _project_(self, x, x0):
        ops.project_linf_(x, x0, self.eps, self.lo, self.hi)

    def _random_start(self, x0, seed, sample_ids):
        return ops.random_start_linf(x0, self.eps, seed, sample_ids, self.lo, self.hi)


@dataclass(frozen=True, eq=False, repr=False)
class L1(Threat):
    """The L1 ball; a step moves the values with the largest gradients, all by the same length.

    The projection is exact on ball and box together, see :func:`advfeat.ops.project_l1`.

    Args:
        eps: the L1 radius, as for :class:`Threat`.
        lo: as for :class:`Threat`.
        hi: as for :class:`Threat`.
        unit: as for :class:`Threat`.
        share: the share of the values that a step moves, above 0 and at most 1, a float or a tensor [B]; see
            :func:`advfeat.ops.l1_step`.

    Raises:
        ValueError: as for :class:`Threat`, or share is not above 0 and at most 1.
    """

    norm, title = "l1", "L1"
    order, dual_order = 1.0, math.inf
    usual_radii = (12.0,)

    share: Number = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "share", as_number("share", self.share))
        if not isinstance(self.share, Tensor) and not 0 < self.share <= 1:
            raise ValueError(f"share should be above 0 and at most 1, got {self.share}")

    def rows(self, index: Tensor | slice) -> Threat:
        """See :meth:`Threat.rows`."""
        rows = super().rows(index)
        if isinstance(self.share, Tensor) and self.share.dim() == 1:
            return dataclasses.replace(cast("L1", rows), share=self.share[index])
        return rows

    def to_dict(self) -> dict:
        """See :meth:`Threat.to_dict`."""
        return super().to_dict() | {"share": as_json(self.share)}

    def _step_(self, x, grad, x0, step_size, grad_status, velocity=None, momentum=0.0):
        ball = (self.eps, self.lo, self.hi)
        more = {"grad_status": grad_status, "velocity": velocity, "momentum": momentum}
        ops.l1_step_(x, grad, x0, step_size, *ball, share=self.share, **more)

    def _project_(self, x, x0):
        ops.project_l1_(x, x0, self.eps, self.lo, self.hi)

    def _random_start(self, x0, seed, sample_ids):
        return ops.random_start_l1(x0, self.eps, seed, sample_ids, self.lo, self.hi)


NORMS: dict[str, type[Threat]] = {threat.norm: threat for threat in (L2, Linf, L1)}


def check_norm(norm: Any) -> None:
    """Checks the name of a norm.

    Args:
        norm: the name.

    Raises:
        ValueError: ``norm`` is not the name of a norm.
    """
    if not isinstance(norm, str) or norm not in NORMS:
        *names, last = (f'"{name}"' for name in NORMS)
        raise ValueError(f"norm should be {', '.join(names)} or {last}, got {norm!r}{meant(norm, NORMS)}")
