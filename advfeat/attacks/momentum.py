"""The momentum of PGD's steps: two forms, each with one buffer per sample that is carried from step to step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from advfeat._arguments import meant, number
from advfeat.threat import Threat

if TYPE_CHECKING:
    from advfeat.attacks.pgd import PGD
    from advfeat.ops import Number

HEAVY_BALL, MI_FGSM = "heavy-ball", "mi-fgsm"
FORMS = (HEAVY_BALL, MI_FGSM)


def check_momentum(attack: PGD) -> None:
    """Checks the momentum and its form, and converts the momentum to a Python float.

    Args:
        attack: the attack, whose field is set.

    Raises:
        TypeError: ``momentum`` is not a number.
        ValueError: one is out of range, or they do not go together with each other or with the step size.
    """
    object.__setattr__(attack, "momentum", float(number("momentum", attack.momentum)))
    momentum, form = attack.momentum, attack.momentum_form
    if form not in FORMS:
        names = " or ".join(f'"{name}"' for name in FORMS)
        raise ValueError(f"momentum_form should be {names}, got {form!r}{meant(form, FORMS)}")
    if form == HEAVY_BALL:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum should be at least 0 and below 1, got {momentum}")
        return
    if momentum == 0:
        raise ValueError(f'momentum_form should be "{HEAVY_BALL}", the default, where momentum is 0, got "{form}"')
    if not 0 < momentum <= 1:
        raise ValueError(f'momentum should be above 0 and at most 1 with momentum_form="{form}", got {momentum}')
    if isinstance(attack.step_size, str) and attack.step_size == "polyak":
        raise ValueError(
            f'step_size should be a number with momentum_form="{form}", whose step is not along the gradient, got '
            '"polyak"'
        )


def take_step_(
    attack: PGD,
    threat: Threat,
    x: Tensor,
    grad: Tensor,
    x0: Tensor,
    step_size: Number,
    buffer: Tensor | None,
    grad_status: Tensor,
) -> None:
    """One step of an attack with the momentum that it has, in place on ``x``, ``buffer`` and ``grad_status``.

    Args:
        attack: gives the momentum and its form.
        threat: the balls and the box.
        x: the iterates [n, ...].
        grad: the gradient of the objective at them, like x.
        x0: the centres of the balls, like x.
        step_size: signed, a float or a tensor [] or [n].
        buffer: like x, zeros before a sample's first step: the last movement of the heavy ball, the accumulated
            gradients of MI-FGSM. None without momentum.
        grad_status: int32 [n, 2], the counts of zero and of non-finite gradients.
    """
    if buffer is not None and attack.momentum_form == MI_FGSM:
        threat.accumulate_gradient_(buffer, grad, attack.momentum, grad_status=grad_status)
        threat.step_(x, buffer, x0, step_size)  # of this gradient nothing is counted
    else:
        threat.step_(x, grad, x0, step_size, grad_status=grad_status, velocity=buffer, momentum=attack.momentum)
