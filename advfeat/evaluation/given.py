"""The attacks that an evaluation is given: a radius, an attack, or a pair of a name and one."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number, Real
from typing import Any

import torch
from torch import Tensor

from advfeat._arguments import number, whole_number
from advfeat.attacks import PGD, Attack, Auto, Ensemble
from advfeat.objectives import Margin, Objective
from advfeat.threat import Threat, check_norm


def strong_attack(
    eps: float, norm: str = "l2", *, steps: int = 100, seed: int = 0, autocast: torch.dtype | None = None
) -> Ensemble:
    """The attack that a bare radius stands for: 20 steps of PGD, then :class:`advfeat.Auto` on what they left.

    PGD (:func:`pgd_attack`, leaving a sample at its first success) clears what breaks easily for a fifth of Auto-PGD's
    passes. ``Auto`` is Auto-PGD on the margin and then towards each of nine other classes, the first two attacks of
    AutoAttack (Croce and Hein 2020), whose standard version left the same samples as ``Auto`` on the models that were
    tried, but for one or two; docs/decisions.md has the numbers. What is left standing is an upper bound of the model's
    robust accuracy: FAB and Square are not here, and gradients that a model hides are not found.

    eps: the radius, in pixel scale. norm: "l2" or "linf". steps: of each run of Auto-PGD. seed: of its random starts.
    autocast: torch.bfloat16 to run the model in; :func:`evaluate` has the model itself confirm each success.
    Errors: ValueError for another norm.
    """
    first = pgd_attack(eps, norm).replace(stop="success", autocast=autocast)
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
) -> PGD:
    """PGD with ``steps`` steps of ``2.5 eps / steps`` on the margin, the usual protocol before AutoAttack.

    What it leaves standing can be much more than what :func:`strong_attack` leaves. The step size is that of the
    authors' library (MadryLab/robustness, README); the margin never saturates. It starts at the sample; with
    ``restarts`` > 1 at that many random points. The best iterate counts, not the last.
    Errors: ValueError for a norm that is neither "l2" nor "linf".
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
    )


def named_attacks(attacks: Any, norm: str) -> list[tuple[str, Attack]]:
    """Each attack with its name.

    Errors: TypeError for anything else, ValueError for another norm, two of one name, a targeted attack and radii by
    sample.
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
