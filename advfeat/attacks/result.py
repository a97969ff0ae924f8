"""The per-sample result of an attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from advfeat.attacks.breakdown import Cost, Turn


@dataclass(repr=False)
class AttackResult:
    """The outcome of an attack on a batch of B samples; all tensors are on the device of the inputs.

    Attributes:
        x_adv: [B, ...], in the ball and the box; for float16 and bfloat16, up to the rounding of each value to its
            dtype, see :mod:`advfeat.ops`. Give float32 images (with ``autocast``, if the model is to run in half
            precision) where the ball has to hold exactly.
        value: [B], the objective at x_adv.
        success: bool [B], whether the model's prediction at x_adv is wrong (targeted: is the target). None if the
            objective did not ask the model for the logits of the iterate itself, or for logits exactly once.
        distance: [B], the threat's norm of x_adv - x.
        first_success: int32 [B], the step at which the first successful iterate was seen (0: the start), -1 for never;
            None like ``success``. Counted within the restart that found it first.
        zero_grad_steps: int32 [B], the number of steps at which the gradient was all zero, so that it did not move the
            sample. A sample with many is not robust but unattacked: report it alongside the accuracy.
        nonfinite_grad_steps: int32 [B], the number of steps at which the gradient held NaN or inf, so that it did not
            move the sample; report it likewise.
        samples_forwarded: the cost, in samples through the model's forward pass; steps that ``skip_cycles`` skips cost
            nothing, while all other counts are those of all steps.
        samples_backwarded: the cost, in samples through the model's backward pass.
        why_eager: a short reason why the steps were not replayed as a CUDA graph; None if they were.
        broken_by: int32 [B], for attacks in turn (:class:`advfeat.Ensemble`, :class:`advfeat.Auto`,
            :class:`advfeat.AutoAttack`) the position in :attr:`breakdown` of the attack that broke the sample; -1 for
            survivors, and for samples that Auto and AutoAttack find misclassified at x. None for other attacks.
        costs: for attacks in turn, the cost of each by its name.
        smallest_distance: float64 [B], the distance of the nearest adversarial example that the attack saw, also one
            beyond eps, where ``x_adv`` is x; 0 where x itself is one, inf for none. None for attacks that do not look
            for the nearest: those that do are :class:`advfeat.DDN`, :class:`advfeat.FMN` and :class:`advfeat.FAB`.
    """

    x_adv: Tensor
    value: Tensor
    success: Tensor | None
    distance: Tensor
    first_success: Tensor | None
    zero_grad_steps: Tensor
    nonfinite_grad_steps: Tensor
    samples_forwarded: int
    samples_backwarded: int
    why_eager: str | None = None
    broken_by: Tensor | None = None
    costs: dict[str, Cost] = field(default_factory=dict)
    smallest_distance: Tensor | None = None

    @property
    def breakdown(self) -> tuple[Turn, ...]:
        """What each of several attacks in turn broke, in which number of passes; empty for a single attack."""
        if self.broken_by is None:
            return ()
        counts = [int((self.broken_by == i).sum()) for i in range(len(self.costs))]
        left = int((~cast("Tensor", self.success)).sum()) + sum(counts)  # attacks in turn report successes
        turns = []
        for (name, cost), broken in zip(self.costs.items(), counts, strict=True):
            turns.append(Turn(name, left, broken, cost))
            left -= broken
        return tuple(turns)

    def __repr__(self) -> str:
        broken = "" if self.success is None else f", {int(self.success.sum())} successful"
        far = f", distance up to {float(self.distance.max()):.4g}" if len(self.distance) else ""
        return f"AttackResult({len(self.x_adv)} samples of shape {tuple(self.x_adv.shape[1:])}{broken}{far})"

    def split(self, counts: Sequence[int]) -> list[AttackResult]:
        """Splits the result by consecutive samples; each part has its samples' share of the cost.

        Args:
            counts: the number of samples of each part.

        Returns:
            The parts, in order.
        """
        parts, first, total = [], 0, sum(counts)
        for count in counts:
            rows = slice(first, first + count)
            sliced = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            sliced = {name: value[rows] if isinstance(value, Tensor) else value for name, value in sliced.items()}
            spent = Cost(self.samples_forwarded, self.samples_backwarded).part(first, first + count, total)
            sliced["samples_forwarded"] = spent.samples_forwarded
            sliced["samples_backwarded"] = spent.samples_backwarded
            sliced["costs"] = {name: cost.part(first, first + count, total) for name, cost in self.costs.items()}
            parts.append(AttackResult(**sliced))
            first += count
        return parts

    def at(self, rows: Tensor) -> AttackResult:
        """The result of some of the samples, with the passes of all.

        Args:
            rows: bool [n] or int64 indices.

        Returns:
            A copy.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        parts: dict[str, Any] = {name: v[rows] if isinstance(v, Tensor) else v for name, v in values.items()}
        return AttackResult(**parts)

    def take_over(self, rows: Tensor, more: AttackResult, failures: bool = False) -> None:
        """Merges the result of a further attack on some of the samples, in place; both results must have ``success``.

        The samples that the further attack broke take its example and value; all its counts are added.

        Args:
            rows: int64 [n], the samples that it attacked.
            more: its result, for n samples.
            failures: whether to take the samples that it did not break as well.
        """
        new = (cast("Tensor", more.success) | failures).nonzero()[:, 0]  # a condition of this method
        for name in ("x_adv", "value", "success", "distance", "first_success"):
            getattr(self, name)[rows[new]] = getattr(more, name)[new].to(getattr(self, name).dtype)
        for name in ("zero_grad_steps", "nonfinite_grad_steps"):
            getattr(self, name)[rows] += getattr(more, name)
        if self.smallest_distance is not None:
            seen = more.smallest_distance
            if seen is None:
                seen = more.distance.to(torch.float64).where(cast("Tensor", more.success), torch.inf)
            self.smallest_distance[rows] = torch.minimum(self.smallest_distance[rows], seen)
        # Taking failures means that this result only looked at its samples, and a look has nothing to replay.
        self.why_eager = more.why_eager if failures else self.why_eager or more.why_eager
        self.samples_forwarded += more.samples_forwarded
        self.samples_backwarded += more.samples_backwarded
