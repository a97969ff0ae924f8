"""FAB, the fast adaptive boundary attack (Croce and Hein 2020b): the smallest perturbation that changes the class."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from advfeat import ops
from advfeat._arguments import flag, number, whole_number
from advfeat.attacks.base import GivenObjective, GradientAttack, check_settings
from advfeat.attacks.breakdown import Cost
from advfeat.attacks.context import Run
from advfeat.attacks.record import Record
from advfeat.attacks.result import AttackResult
from advfeat.attacks.target_order import TargetOrder, check_target_order, other_classes, ranks_at_once
from advfeat.forward import class_logits, predicted_classes
from advfeat.objectives import CW, as_objective
from advfeat.ops import Number
from advfeat.settings import CHANGES_NO_RESULT, OMITTED_AT_DEFAULT
from advfeat.threat import Threat


@dataclass(frozen=True, eq=False)
class FAB(GradientAttack):
    """FAB: walk along the decision boundary towards the image, and keep the nearest point beyond it.

    At x_k the boundary is approximated by a hyperplane. With d the shortest displacement within the box that takes x_k
    onto it, and d_0 the one that takes the image x onto it, ``x_{k+1} = (1 - a)(x_k + eta d) + a (x + eta d_0)``, where
    the weight a of the image follows from the lengths of d and d_0 and is at most ``alpha_max``. A point of another
    class is a candidate for the nearest; the walk then continues from ``x + beta (x_{k+1} - x)``. The hyperplane is
    that of the class whose boundary is nearest according to the gradients of all classes, or, with ``targets``, that of
    one class at a time (FAB-T).

    An example counts as a success if it is misclassified and within eps; a sample without one stays as it was. With an
    infinite eps and ``minimise`` the distances are the smallest found, see ``AttackResult.smallest_distance``.

    Args:
        threat: the ball and the box; eps may be infinite.
        steps: steps per start.
        targets: None to consider all classes at once, which takes the gradient of each class in every step; or the
            number of other classes to take in turn, those with the largest logits at x first, each for the samples that
            are left. AutoAttack takes 9.
        target_order: with ``targets``, "malt" for the order of MALT in place of that of the logits, see
            :class:`advfeat.Auto`.
        restarts: number of starts: x itself, then random points of the ball of eps / 2.
        alpha_max: the largest weight a of the image, in [0, 1].
        eta: the factor by which a step overshoots the hyperplane, at least 1; with 1 it ends on it.
        beta: the share of its perturbation that an iterate keeps once it has crossed the boundary, in [0, 1].
        minimise: once a sample has an example within eps, go on to look for a nearer one.
        seed: of the random starts; the same at every call, so that an evaluation can be repeated.
        autocast: as for :class:`advfeat.PGD`.
        graph: has no effect: what a step does depends on which samples are left.

    Attributes:
        objective: what ``value`` reports, the margin of the logits; FAB does not follow it.
        targeted: always False.
        random_start: always True; it concerns the starts after the first.

    Raises:
        ValueError: a setting is out of range.
        TypeError: a setting has the wrong type.

    Example:
        result = advfeat.FAB(advfeat.L2(float("inf")), minimise=True).run(model, x, y)
        result.smallest_distance                         # of the smallest perturbations found
    """

    threat: Threat
    steps: int = 100
    targets: int | None = None
    target_order: TargetOrder = field(default="logits", metadata=OMITTED_AT_DEFAULT)
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    minimise: bool = False
    objective: GivenObjective = field(default_factory=cast("Any", CW), init=False)
    targeted: bool = field(default=False, init=False)
    random_start: bool = field(default=True, init=False)
    seed: int = 0
    autocast: torch.dtype | None = None
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)

    takes_start = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        if self.restarts == 1:  # a single start is x itself, which needs no ball
            object.__setattr__(self, "random_start", False)
        check_settings(self)
        check_target_order(self.target_order)
        object.__setattr__(self, "minimise", flag("minimise", self.minimise))
        if self.targets is not None:
            object.__setattr__(self, "targets", whole_number("targets", self.targets, 1))
        for name, least, most in (("alpha_max", 0.0, 1.0), ("eta", 1.0, math.inf), ("beta", 0.0, 1.0)):
            value = number(name, getattr(self, name))
            object.__setattr__(self, name, value)
            if not least <= value <= most:
                raise ValueError(f"{name} should be in [{least:g}, {most:g}], got {value:g}")

    @property
    def step_length(self) -> Number | None:
        """None: it depends on the gradient."""
        return None

    def _run(self, run: Run) -> AttackResult:
        n, device = len(run), run.x0.device
        nearest = torch.full((n,), math.inf, dtype=torch.float64, device=device)
        record = Record(run.x0, targeted=False)
        walks = _Walks(self, run, None, record, nearest)
        passes = Cost()
        if n:
            logits = walks.look_at_x()
            if self.targets is None:
                walks.go()
            else:
                passes += self._towards_each_class(run, logits, record, nearest)
        passes += Cost(walks.forwarded, walks.backwarded)
        found = run.result(
            record,
            forwarded=passes.samples_forwarded,
            backwarded=passes.samples_backwarded,
            why_eager="FAB's steps are not replayed",
        )
        found.smallest_distance = nearest
        return found

    def _towards_each_class(self, run: Run, logits: Tensor, record: Record, nearest: Tensor) -> Cost:
        """Walks towards one class after the other, or towards several at once where they find room."""
        wanted = min(cast("int", self.targets), logits.shape[1] - 1)
        classes, exist, *passes = other_classes(run, logits, self.target_order, wanted)
        spent = Cost(*passes)

        def left() -> Tensor:
            return nearest > (0 if self.minimise else run.threat.eps)

        for ranks in ranks_at_once(0, wanted, run.room, lambda: int(left().sum())):
            rows = [(exist[:, k] & left()).nonzero()[:, 0] for k in ranks]
            together, counts = torch.cat(rows), [len(of_rank) for of_rank in rows]
            if not len(together):
                continue
            part = run.rows(together)
            part.seeds = [((self.seed + (k << 60)) % 2**63, count) for k, count in zip(ranks, counts, strict=True)]
            others = torch.cat([classes[of_rank, k] for k, of_rank in zip(ranks, rows, strict=True)])
            before = record.rows(together)
            before.status.zero_()
            walks = _Walks(self, part, others, before, nearest[together].clone())
            walks.go()
            spent += Cost(walks.forwarded, walks.backwarded)
            for k, of_rank in enumerate(rows):
                # As if one came after the other: a class counts only where the ones before it leave something to find.
                at = torch.arange(sum(counts[:k]), sum(counts[: k + 1]), device=together.device)[left()[of_rank]]
                walks.write(at, together[at], record, nearest)
        return spent


class _Walks:
    """A walk for each of n samples, towards a class of its own or, without ``classes``, towards all of them.

    ``record`` and ``nearest``, the distances of its examples in units of eps, hold what was found before; both are
    updated in place.
    """

    def __init__(self, attack: FAB, run: Run, classes: Tensor | None, record: Record, nearest: Tensor) -> None:
        self.attack, self.samples, self.classes, self.record, self.nearest = attack, run, classes, record, nearest
        n, device = len(run), run.x0.device
        self.eps = torch.as_tensor(run.threat.eps, dtype=torch.float64, device=device).expand(n)
        self.forwarded = self.backwarded = 0
        self.unit: Tensor | None = None
        self.lo, self.hi = run.threat.lo, run.threat.hi
        if run.threat.has_unit:
            # Perturbations are in units of eps: inputs, bounds and gradients are divided or multiplied by it.
            unit, lo, hi = (
                torch.as_tensor(value, dtype=torch.float64, device=device)
                for value in (run.threat.unit, self.lo, self.hi)
            )
            self.unit = unit.reshape(1, -1, *[1] * max(run.x0.dim() - 2, 0)) if unit.numel() > 1 else unit
            self.lo, self.hi = lo / unit, hi / unit

    def look_at_x(self) -> Tensor:
        """Evaluates the images; returns the logits there."""
        run = self.samples
        with torch.no_grad():
            logits = self._logits(run.x0)
        self.forwarded += len(run)
        wrong = self._wrong(logits, run.target)
        self.record.keep(torch.ones_like(wrong), run.x0, _margins(logits, run.target), wrong)
        self.record.see(wrong, torch.zeros((), dtype=torch.int32, device=wrong.device))
        self.nearest[wrong] = 0
        return logits

    def write(self, at: Tensor, rows: Tensor, record: Record, nearest: Tensor) -> None:
        """Writes what some of the walks found into a record of the samples, where it is nearer.

        Args:
            at: int64 [m], the walks.
            rows: int64 [m], their samples in the record.
            record: of the samples.
            nearest: float64, the distances of the samples' examples so far.
        """
        record.status[rows] += self.record.status[at]
        nearer = self.nearest[at] < nearest[rows]
        at, rows = at[nearer], rows[nearer]
        nearest[rows] = self.nearest[at]
        first = record.first_success[rows]
        record.put(rows, self.record.rows(at), but=("status", "first_success"))
        record.first_success[rows] = torch.where(first < 0, self.record.first_success[at], first)

    def go(self) -> None:
        """All starts, each for the samples that are left."""
        for restart in range(self.attack.restarts):
            self._start(restart)

    def _start(self, restart: int) -> None:
        attack, run = self.attack, self.samples
        done = (self.nearest <= 0) if attack.minimise else (self.nearest <= self.eps)
        rows = (~done).nonzero()[:, 0]
        if not len(rows):
            return
        if restart > 0:
            x = run.within(_halved(run.threat)).random_iterate(attack, restart)[rows]
        else:
            x = run.x0[rows]
        self._crossed = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
        rows, x = self._step_on(rows, x, starts=restart == 0)
        for step in range(attack.steps):
            if not len(rows):
                return
            part = run.rows(rows)
            x = self._beyond_the_plane(x, part, rows)
            rows, x = self._step_on(rows, x, step=step + 1, last=step + 1 == attack.steps)

    def _step_on(
        self, rows: Tensor, x: Tensor, *, starts: bool = False, step: int = 0, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Looks at the iterates, keeps what is nearer, and finds the hyperplane there or at the point gone back to.

        A walk that has crossed the boundary mostly crosses it again at each step, and goes back: its iterate is then
        looked at without a gradient, and the gradient is taken once it is known where. Before that a single pass gives
        both.

        Returns the rows that are left and their points; ``_plane`` holds their hyperplanes.
        """
        if last:
            with torch.no_grad():
                logits = self._logits(x)
            self.forwarded += len(rows)
            self._keep_nearer(rows, x, logits, step)
            return rows[:0], x[:0]
        crossed = self._crossed
        if crossed.any():
            at = crossed.nonzero()[:, 0]
            with torch.no_grad():
                logits = self._logits(x[at])
            self.forwarded += len(at)
            wrong = self._keep_nearer(rows[at], x[at], logits, step)
            x = self._gone_back(x, rows, at[wrong])
            if not self.attack.minimise:
                left = self.nearest[rows] > self.eps[rows]
                rows, x, crossed = rows[left], x[left], crossed[left]
        logits, gap, w = self._boundary(rows, x)
        fresh = (~crossed).nonzero()[:, 0]
        if len(fresh):
            wrong = self._wrong(logits[fresh], self.samples.target[rows[fresh]])
            if starts:  # at x itself, which was looked at before
                wrong = torch.zeros_like(wrong)
            elif wrong.any():
                self._keep_nearer(rows[fresh], x[fresh], logits[fresh], step)
            back = fresh[wrong]
            if not self.attack.minimise:
                back = back[self.nearest[rows[back]] > self.eps[rows[back]]]
            if len(back):
                crossed = crossed.clone()
                crossed[back] = True
                x = self._gone_back(x, rows, back)
                _, gap[back], w[back] = self._boundary(rows[back], x[back])
        if not self.attack.minimise:
            left = self.nearest[rows] > self.eps[rows]
            if not left.all():
                rows, x, gap, w, crossed = rows[left], x[left], gap[left], w[left], crossed[left]
        self._plane, self._crossed = (gap, w), crossed
        return rows, x

    def _keep_nearer(self, rows: Tensor, x: Tensor, logits: Tensor, step: int) -> Tensor:
        """Keeps those that are misclassified and nearer than what was found before; returns which are misclassified."""
        target = self.samples.target[rows]
        wrong = self._wrong(logits, target)
        if wrong.any():
            distance = self._distance(x, rows)
            nearer = wrong & (distance < self.nearest[rows])
            within = nearer & (distance <= self.eps[rows])
            self.nearest[rows[nearer]] = distance[nearer]
            kept = rows[within]
            assert self.record.x is not None
            self.record.x[kept] = x[within]
            self.record.value[kept] = _margins(logits, target)[within].to(self.record.value.dtype)
            self.record.success[kept] = True
            first = self.record.first_success
            first[kept] = torch.where(first[kept] < 0, step, first[kept])
        return wrong

    def _gone_back(self, x: Tensor, rows: Tensor, at: Tensor) -> Tensor:
        """The points with those at these places drawn towards their images."""
        if not len(at):
            return x
        x, x0 = x.clone(), self.samples.x0[rows[at]]
        x[at] = x0 + self.attack.beta * (x[at] - x0)
        return x

    def _boundary(self, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits, how far ``<w, .>`` has to fall to the hyperplane, and its normal w, in units of eps."""
        target = self.samples.target[rows]
        point = x.detach().requires_grad_()
        if not len(rows):
            return x.new_zeros((0, 1)), torch.zeros(0, dtype=torch.float64, device=x.device), point.detach()
        with torch.enable_grad():
            logits = self._logits(point)
        self.forwarded += len(rows)
        own = logits.gather(1, target[:, None])[:, 0]
        if self.classes is not None:
            other = logits.gather(1, self.classes[rows][:, None])[:, 0]
            gap = (own - other).detach().to(torch.float64)
            w = self._gradient(own - other, point, keep=False)
        else:
            gap, w = self._nearest_boundary(logits, own, point, target)
        return logits.detach(), gap, w

    def _nearest_boundary(self, logits: Tensor, own: Tensor, point: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The boundary to the class that is the nearest by the norm of its gradient."""
        classes, threat = logits.shape[1], self.samples.threat
        best = torch.full((len(logits),), math.inf, dtype=torch.float64, device=logits.device)
        gap = torch.zeros_like(best)
        normal = torch.zeros_like(point)
        for c in range(classes):
            difference = own - logits[:, c]
            w = self._gradient(difference, point, keep=c + 1 < classes)
            value = difference.detach().to(torch.float64)
            in_units = w.to(torch.float64) if self.unit is None else w.to(torch.float64) * self.unit
            slope = torch.linalg.vector_norm(in_units.flatten(1), threat.dual_order, dim=1)
            distance = torch.where(slope > 0, value.abs() / torch.where(slope > 0, slope, 1.0), math.inf)
            nearer = (target != c) & (distance < best) & (logits[:, c] > -math.inf)
            best = torch.where(nearer, distance, best)
            gap = torch.where(nearer, value, gap)
            ops.copy_rows_(normal, w, nearer)
        return gap, normal

    def _gradient(self, output: Tensor, point: Tensor, keep: bool) -> Tensor:
        w = None
        if output.requires_grad:  # perhaps only because of the parameters
            (w,) = torch.autograd.grad(output.sum(), point, retain_graph=keep, allow_unused=True)
        if w is None:
            raise ValueError("the logits do not depend on x through anything differentiable")
        self.backwarded += len(point)
        return w

    def _beyond_the_plane(self, x: Tensor, part: Run, rows: Tensor) -> Tensor:
        """A step towards the hyperplanes, in place where there is no unit; counts gradients that lead nowhere."""
        gap, w = self._plane
        status = torch.zeros(len(rows), 2, dtype=torch.int32, device=x.device)
        more: dict[str, Any] = {"eta": self.attack.eta, "alpha_max": self.attack.alpha_max, "grad_status": status}
        order = part.threat.order
        if self.unit is None:
            ops.fab_step_(x, w, part.x0, gap, order, lo=self.lo, hi=self.hi, **more)
        else:
            at, centre = x.to(torch.float64) / self.unit, part.x0.to(torch.float64) / self.unit
            at = ops.fab_step_(at, w.to(torch.float64) * self.unit, centre, gap, order, lo=self.lo, hi=self.hi, **more)
            x = part.threat.into_box_(torch.empty_like(part.x0).copy_(at * self.unit))
        self.record.status[rows] += status
        return x

    def _logits(self, x: Tensor) -> Tensor:
        attack, context = self.attack, contextlib.nullcontext()
        if attack.autocast is not None:
            context = torch.autocast(x.device.type, dtype=attack.autocast, cache_enabled=False)  # type: ignore[assignment]
        self.samples.model.look_at(x)
        with context:
            logits = self.samples.model(x)
        return class_logits(logits.double() if x.dtype == torch.float64 else logits.float())

    def _wrong(self, logits: Tensor, target: Tensor) -> Tensor:
        predicted = predicted_classes(logits)
        return (predicted != target) & (predicted >= 0)

    def _distance(self, x: Tensor, rows: Tensor) -> Tensor:
        difference = x.to(torch.float64) - self.samples.x0[rows].to(torch.float64)
        difference = difference if self.unit is None else difference / self.unit
        return self.samples.threat.length(difference.flatten(1))


def _halved(threat: Threat) -> Threat:
    return dataclasses.replace(threat, eps=threat.eps / 2)


def _margins(logits: Tensor, target: Tensor) -> Tensor:
    own = logits.gather(1, target[:, None])[:, 0]
    return logits.scatter(1, target[:, None], -math.inf).amax(dim=1) - own
