"""Attacks as arguments of an evaluation: a radius, an attack, or a pair of a name and an attack."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number, Real
from typing import Any, Literal

import torch
from torch import Tensor

from advfeat._arguments import number, whole_number
from advfeat.attacks import PGD, Attack, Auto, Ensemble
from advfeat.objectives import Margin, Objective
from advfeat.threat import Threat, check_norm


def strong_attack(
    eps: float,
    norm: str = "l2",
    *,
    steps: int = 100,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    schedule: Literal["constant", "cosine"] = "cosine",
) -> Ensemble:
    """Return the attack that a bare radius stands for: PGD, then :class:`advfeat.Auto` on the remaining samples.

    PGD (:func:`pgd_attack`, 20 steps, stopping each sample at its first success) breaks the easy samples for a fifth of
    Auto-PGD's passes. ``Auto`` is Auto-PGD on the margin and then towards each of nine other classes: the first two
    attacks of AutoAttack (Croce and Hein 2020). On the models tried, AutoAttack's standard version left the same
    samples as ``Auto`` except for one or two; docs/decisions.md has the numbers. The result is an upper bound of the
    model's robust accuracy: FAB and Square are not included, and gradients that a model masks are not recovered.

    Args:
        eps: Radius in pixel scale [0, 1].
        norm: "l2" or "linf".
        steps: Steps of each run of Auto-PGD.
        seed: Seed of the random starts of Auto-PGD.
        autocast: ``torch.bfloat16`` to run the model in; :func:`evaluate` confirms each success with the model itself.
        schedule: Step sizes of PGD, see :func:`pgd_attack`.

    Returns:
        The attack.

    Raises:
        ValueError: If the norm is another one.
    """
    first = pgd_attack(eps, norm, schedule=schedule).replace(stop="success", autocast=autocast)
    return Ensemble((first, Auto(first.threat, steps=steps, seed=seed, autocast=autocast)))


def pgd_attack(
    eps: float,
    norm: str = "l2",
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    objective: Objective | Callable | None = None,
    seed: int = 0,
    schedule: Literal["constant", "cosine"] = "cosine",
    momentum: float = 0.0,
) -> PGD:
    """Return PGD on the margin, the usual protocol before AutoAttack, with step sizes that fall from ``2 eps`` to 0.

    It can leave many more samples unbroken than :func:`strong_attack`. With the falling sizes 20 steps leave no more of
    them than 100 steps of constant size do (docs/performance.md). ``schedule="constant"`` takes steps of
    ``2.5 eps / steps``, as the paper authors' library does (MadryLab/robustness, README). The margin never saturates.
    The best iterate counts, not the last.

    Args:
        eps: Radius in pixel scale [0, 1].
        norm: "l2" or "linf".
        steps: Number of steps.
        step_size: Size of the first step in pixel scale; None takes ``2 eps``, or with a constant schedule
            ``2.5 eps / steps``.
        restarts: Number of random starts; 1 starts at the sample itself.
        objective: Objective to maximise; None takes the margin.
        seed: Seed of the random starts.
        schedule: How the step size changes over the steps, see :class:`advfeat.PGD`.
        momentum: See :class:`advfeat.PGD`.

    Returns:
        The attack.

    Raises:
        ValueError: If the norm is neither "l2" nor "linf".
    """
    check_norm(norm)
    eps, restarts = float(number("eps", eps)), whole_number("restarts", restarts)
    return PGD(
        Threat.of(norm, eps),
        steps=steps,
        step_size=step_size,
        objective=Margin() if objective is None else objective,
        random_start=restarts > 1,
        restarts=restarts,
        keep="best",
        seed=seed,
        schedule=schedule,
        momentum=momentum,
    )


def named_attacks(attacks: Any, norm: str) -> list[tuple[str, Attack]]:
    """Resolve the attacks of an evaluation to pairs of a name and an attack.

    Args:
        attacks: Radii, attacks, or pairs of a name and an attack.
        norm: Norm of the attacks that bare radii stand for.

    Returns:
        Each attack with its name.

    Raises:
        TypeError: If an entry is none of these.
        ValueError: If the norm is unknown, two attacks have the same name, an attack is targeted, or its radius differs
            between samples.
    """
    check_norm(norm)
    wanted = "a list of radii, attacks or pairs of a name and an attack"
    if isinstance(attacks, (str, bytes, dict, Attack, Number)) or not hasattr(attacks, "__iter__"):
        raise TypeError(f"attacks should be {wanted}, as in attacks=[0.5], got {attacks!r}")
    named = [_named(attack, norm) for attack in attacks]
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"attacks should have different names, got {', '.join(names)}")
    return named


def _named(attack: Any, norm: str) -> tuple[str, Attack]:
    if (isinstance(attack, Real) and not isinstance(attack, bool)) or (isinstance(attack, Tensor) and not attack.dim()):
        attack = strong_attack(float(attack), norm)
    if isinstance(attack, Attack):
        eps = attack.threat.eps
        attack = (f"{attack.threat.norm} {eps:g}" if not isinstance(eps, Tensor) else attack.threat.norm, attack)
    if not isinstance(attack, (tuple, list)) or len(attack) != 2 or not isinstance(attack[0], str):
        raise TypeError(
            f"attacks should hold radii, attacks such as advfeat.PGD(advfeat.L2(0.5)), or pairs of a name and one, got "
            f"{attack!r}"
        )
    name, named = attack
    if not isinstance(named, Attack):
        raise TypeError(f"attacks should be radii, attacks or pairs of a name and one, got {type(named).__name__}")
    if named.targeted:
        raise ValueError(f"attack {name!r} is targeted: robust accuracy needs attacks away from the label")
    if isinstance(named.threat.eps, Tensor):
        raise ValueError(f"attack {name!r} should have one radius for all samples, got a tensor of eps")
    return name, named
