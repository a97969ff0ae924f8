"""What an attack found, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class AttackResult:
    """The outcome of an attack on a batch of B samples; all tensors on the device of the inputs.

    x_adv: [B, ...], in the ball and the box.
    value: [B], the objective at x_adv.
    success: [B] bool, whether the model's prediction at x_adv is wrong (targeted: is the target); None when the
        objective never asked the model for logits.
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
