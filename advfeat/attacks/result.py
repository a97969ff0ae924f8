"""What an attack found, sample by sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(repr=False)
class AttackResult:
    """The outcome of an attack on a batch of B samples; all tensors on the device of the inputs.

    x_adv: [B, ...], in the ball and the box: for float16 and bfloat16 but for the rounding of each value to its dtype,
        see :mod:`advfeat.ops`. Give float32 images (with ``autocast``, if the model is to run in half precision) where
        the ball has to hold.
    value: [B], the objective at x_adv.
    success: [B] bool, whether the model's prediction at x_adv is wrong (targeted: is the target); None when the
        objective did not ask the model for the logits of the iterate itself, or for logits just once.
    distance: [B], the threat's norm of x_adv - x.
    first_success: [B] int32, the step at which the first successful iterate was seen (0: the start), -1 for never; None
        like success. Counted within the restart that found it first.
    zero_grad_steps, nonfinite_grad_steps: [B] int32, steps at which the gradient was all zero, or held NaN or inf, and
        the sample did not move for it. A sample with many is not robust, it is unattacked: say so beside the accuracy.
    samples_forwarded, samples_backwarded: what it cost, in samples through the model.
    why_eager: why the steps were not replayed as a CUDA graph, in a few words; None if they were.
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

    def __repr__(self) -> str:
        broken = "" if self.success is None else f", {int(self.success.sum())} successful"
        far = f", distance up to {float(self.distance.max()):.4g}" if len(self.distance) else ""
        return f"AttackResult({len(self.x_adv)} samples of shape {tuple(self.x_adv.shape[1:])}{broken}{far})"

    def split(self, counts: Sequence[int]) -> list[AttackResult]:
        """The parts of so many samples each, in order; of what it cost, a part has the share of its samples."""
        parts, first, total = [], 0, sum(counts)
        for count in counts:
            rows = slice(first, first + count)
            sliced = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            sliced = {name: value[rows] if isinstance(value, Tensor) else value for name, value in sliced.items()}
            # So that the parts add up to the whole.
            for name in ("samples_forwarded", "samples_backwarded"):
                spent = getattr(self, name)
                sliced[name] = spent * (first + count) // max(total, 1) - spent * first // max(total, 1)
            parts.append(AttackResult(**sliced))
            first += count
        return parts

    def take_over(self, rows: Tensor, more: AttackResult, failures: bool = False) -> None:
        """Takes over what a further attack on the samples at ``rows``, int64 [n], broke, with ``failures`` also what it
        did not break, and all of its counts; both have ``success``. In place."""
        new = (more.success | failures).nonzero()[:, 0]
        for name in ("x_adv", "value", "success", "distance", "first_success"):
            getattr(self, name)[rows[new]] = getattr(more, name)[new].to(getattr(self, name).dtype)
        for name in ("zero_grad_steps", "nonfinite_grad_steps"):
            getattr(self, name)[rows] += getattr(more, name)
        self.why_eager = self.why_eager or more.why_eager
        self.samples_forwarded += more.samples_forwarded
        self.samples_backwarded += more.samples_backwarded
