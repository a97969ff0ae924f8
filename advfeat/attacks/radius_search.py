"""A search over radii: an attack within a given radius becomes one that looks for the nearest adversarial example."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat._arguments import number, whole_number
from advfeat.attacks.base import Attack
from advfeat.attacks.context import Run
from advfeat.attacks.minimum_norm import distance, farthest
from advfeat.attacks.pgd import PGD
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective
from advfeat.threat import Threat

# How much smaller the next radius is than the smallest distance found, at first: after another attack, and without one.
# It doubles with each success, up to a half.
_CLOSE, _HALF = 0.05, 0.5


@dataclass(frozen=True, eq=False)
class RadiusSearch(Attack):
    """Search for the smallest radius at which an attack succeeds, with a radius of its own for each sample.

    Each round runs the attack once on all samples that are left, so that ten rounds are ten batched runs. Let d be the
    distance of a sample's nearest example so far, and l the largest radius at which the attack failed (0 at first). The
    next radius is ``max((l + d) / 2, s d)``. With s = 1/2 this is bisection; after ``first``, whose distances are
    already close to the smallest, s is 0.95 at first, and ``1 - s`` doubles with each success, up to 1/2. As long as a
    sample has no example at all, its radius starts at eps and is halved in each round. A sample leaves once l is within
    ``tolerance`` of d.

    The result holds the nearest example of each sample, as for :class:`advfeat.FMN`; a failure at some radius does not
    prove that there is none, so distances are upper bounds.

    Args:
        attack: an attack whose success is known and whose eps, the largest radius, is finite, such as
            ``advfeat.APGD(advfeat.L2(3.0))``. For :class:`advfeat.PGD`, set ``keep="best"``.
        rounds: the number of radii tried for each sample, at least 0.
        first: an attack that looks for the nearest example, such as :class:`advfeat.FMN`, in the same norm and box; the
            search starts from the distances that it finds. None to start without.
        tolerance: a sample is done once l and d differ by no more than this share of d; at least 0 and below 1.

    Raises:
        TypeError: ``attack`` or ``first`` is not an attack.
        ValueError: eps is infinite, ``first`` has another norm, box or goal, or a setting is out of range.

    Example:
        attack = advfeat.APGD(advfeat.Linf(1.0), steps=50)
        result = advfeat.RadiusSearch(attack, first=advfeat.FMN(attack.threat)).run(model, x, y)
        result.smallest_distance                         # [B], inf where no adversarial example was found
    """

    attack: Attack
    rounds: int = 10
    first: Attack | None = None
    tolerance: float = 0.01

    takes_start = False

    def __post_init__(self) -> None:
        for name in ("attack", "first"):
            given = getattr(self, name)
            if not isinstance(given, Attack) and not (name == "first" and given is None):
                raise TypeError(f"{name} should be an attack, such as advfeat.APGD(...), got {type(given).__name__}")
        object.__setattr__(self, "rounds", whole_number("rounds", self.rounds, 0))
        object.__setattr__(self, "tolerance", float(number("tolerance", self.tolerance)))
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance should be at least 0 and below 1, got {self.tolerance:g}")
        eps = self.threat.eps
        if not isinstance(eps, Tensor) and not math.isfinite(eps):
            raise ValueError(f"attack should have a finite eps, the largest radius, got {eps}")
        if self.first is not None and _goal(self.first) != _goal(self.attack):
            raise ValueError(
                f"first should have the norm, the box and the goal of the attack, {_goal(self.attack)}, got "
                f"{_goal(self.first)}"
            )

    @property
    def threat(self) -> Threat:
        """The threat of the attack, whose eps is the largest radius."""
        return self.attack.threat

    @property
    def targeted(self) -> bool:
        """Whether the attack is targeted."""
        return self.attack.targeted

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast dtype of either attack, or None."""
        return next((a.autocast for a in self._parts if a.autocast is not None), None)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives of both attacks."""
        return tuple(objective for a in self._parts for objective in a.objectives)

    @property
    def _parts(self) -> tuple[Attack, ...]:
        return (self.attack,) if self.first is None else (self.first, self.attack)

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """See :meth:`advfeat.attacks.Attack.check`.

        Raises:
            ValueError: a ``start`` is given, or as for the attack.
        """
        if start is not None:
            raise ValueError("start should be None: RadiusSearch starts at x")
        return self.attack.check(x, target, start, sample_ids)

    def replace(self, **changes) -> RadiusSearch:
        """A copy with some settings changed, of the search or of both attacks.

        Args:
            **changes: new values by setting name; settings that the search itself does not have are changed in both
                attacks, as in ``replace(threat=...)``.

        Returns:
            The copy.
        """
        own = {f.name for f in dataclasses.fields(self)} & set(changes)
        kept = {name: changes.pop(name) for name in own}
        if changes:
            kept.setdefault("attack", self.attack.replace(**changes))
            if self.first is not None:
                kept.setdefault("first", self.first.replace(**changes))
        return dataclasses.replace(self, **kept)

    def to_dict(self) -> dict:
        """See :meth:`advfeat.attacks.Attack.to_dict`; the attack of each round is under "of"."""
        return {
            "attack": type(self).__name__,
            **self.threat.to_dict(),
            "targeted": self.targeted,
            "of": self.attack.to_dict(),
            "first": None if self.first is None else self.first.to_dict(),
            "rounds": self.rounds,
            "tolerance": self.tolerance,
        }

    @property
    def lacks_seed(self) -> bool:
        """See :attr:`advfeat.attacks.Attack.lacks_seed`; true if either attack lacks one."""
        return any(a.lacks_seed for a in self._parts)

    def with_seed(self, seed: int) -> RadiusSearch:
        """See :meth:`advfeat.attacks.Attack.with_seed`."""
        first = None if self.first is None else self.first.with_seed(seed)
        return dataclasses.replace(self, attack=self.attack.with_seed(seed), first=first)

    def _run(self, run: Run) -> AttackResult:
        begin = self.first or PGD(self.threat, steps=0, targeted=self.targeted, autocast=self.autocast)
        found = begin.replace(threat=run.threat).part_of(run)
        upper = _smallest_distance(found, run).clone()
        found.smallest_distance = upper
        if not len(run):
            return found
        eps = torch.as_tensor(run.threat.eps, dtype=torch.float64, device=upper.device)
        largest = torch.minimum(eps, farthest(run.threat, run.x0))
        unknown, lower = largest.clone(), torch.zeros_like(upper)
        stride = torch.full_like(upper, _HALF if self.first is None else _CLOSE)
        for _ in range(self.rounds):
            known = upper <= largest
            between = torch.maximum((lower + upper) / 2, (1 - stride) * upper)
            radius = torch.where(known, between, unknown)
            rows = ((upper > 0) & (lower < (1 - self.tolerance) * upper)).nonzero()[:, 0]
            if not len(rows):
                break
            part = run.rows(rows)
            part = part.within(dataclasses.replace(part.threat, eps=radius[rows]))
            more = self.attack.replace(threat=part.threat).part_of(part)
            more.smallest_distance = _smallest_distance(more, part)
            found.take_over(rows, more)
            broken = more.smallest_distance < math.inf
            lower[rows] = torch.where(~broken & known[rows], radius[rows], lower[rows])
            unknown[rows] /= 2
            stride[rows] = torch.where(broken, (2 * stride[rows]).clamp(max=_HALF), stride[rows])
        return found


def _smallest_distance(found: AttackResult, run: Run) -> Tensor:
    """The distance of the nearest example of each sample, float64 [n], measured here if the attack does not say."""
    if found.smallest_distance is not None:
        return found.smallest_distance
    if found.success is None:
        raise ValueError("attack should report successes: the target should be labels and the objective use the logits")
    return distance(run.threat, found.x_adv, run.x0).where(found.success, math.inf)


def _goal(attack: Attack) -> dict:
    """What two attacks have to share for one to go on from the other's distances."""
    given = attack.threat.to_dict()
    return {name: given.get(name) for name in ("norm", "lo", "hi", "unit")} | {"targeted": attack.targeted}
