"""Projected gradient descent (Madry et al. 2018), for data set construction, training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from advfeat._arguments import flag, meant
from advfeat.attacks import pool
from advfeat.attacks.base import Batch, GivenObjective, GradientAttack, check_settings
from advfeat.attacks.context import Run, undisturbed
from advfeat.attacks.convergence import Converged
from advfeat.attacks.gradient import successes, value_and_grad
from advfeat.attacks.momentum import check_momentum, take_step_
from advfeat.attacks.record import Record
from advfeat.attacks.replay import ReplayedStep
from advfeat.attacks.result import AttackResult
from advfeat.attacks.step_sizes import SCHEDULES, StepSizes
from advfeat.objectives import Margin, as_objective
from advfeat.ops import Number
from advfeat.settings import CHANGES_NO_RESULT, OMITTED_AT_DEFAULT, as_json
from advfeat.threat import Threat, as_number


@dataclass(frozen=True, eq=False)
class PGD(GradientAttack):
    """Projected gradient descent on any model that returns logits.

    The attack leaves no trace: parameters' ``.grad``, every submodule's training flag, BatchNorm statistics, random
    state, grad mode and inputs are as before, also after an exception. It works under ``no_grad`` and
    ``inference_mode``. The model is attacked in eval mode. Nothing in the loop waits for the device; with ``stop`` the
    host learns one step late which samples have finished.

    Args:
        threat: :class:`advfeat.Linf`, :class:`advfeat.L2` or :class:`advfeat.L1`, the ball and the box.
        steps: number of gradient steps; 0 evaluates the start.
        step_size: the length of a step (L2) or the step per value (L-inf), in the units of eps (pixel scale [0, 1]): a
            float or a tensor, array or list [B]. None for ``2.5 * eps / steps`` (Madry et al. 2018), or with the cosine
            schedule for ``2 * eps``. "polyak" for Polyak's step, ``(value - optimum) / ||grad||_q`` in the dual norm,
            times ``1 - momentum``: for a targeted attack on an objective whose optimum is known, such as
            :class:`advfeat.objectives.Representation`.
        schedule: how the step size changes from the first step to the last: "constant", or "cosine" to fall from
            ``step_size`` towards 0, ``step_size * (1 + cos(pi k / steps)) / 2`` at step k.
        momentum: the weight of the previous steps in a step, see ``momentum_form``; 0 for none.
        momentum_form: "heavy-ball" of Polyak (1964): before it moves along the gradient, a step repeats the previous
            displacement (that after the projection), multiplied by ``momentum``, which is at least 0 and below 1; see
            :mod:`advfeat.ops`. Or "mi-fgsm" of Dong et al. (2018): a step moves along a running sum of gradients; at
            every step the sum is multiplied by ``momentum``, which is above 0 and at most 1 (the paper's value), and
            the new gradient, divided by its L1 norm, is added; see :func:`advfeat.ops.accumulate_gradient_`.
        objective: maximised, or minimised with ``targeted``; see :mod:`advfeat.objectives`. The default never
            saturates.
        random_start: start at a random point of the ball instead of at x.
        restarts: number of random starts; the best iterate over all of them is kept, successes first.
        targeted: descend towards ``target`` instead of ascending away from it.
        keep: "last" returns the last iterate; "best" returns the best one: a success ranks above a failure; otherwise
            the objective decides.
        stop: "success" ends a sample's attack at its first success, :class:`advfeat.Converged` once its objective has
            converged; the sample leaves the batch, and the others continue. None runs all steps.
        seed: of the random starts; their noise is a function of the seed and the sample id. None, the default, draws a
            new seed at every call, so that a training loop does not repeat the same noise; if the call gives sample
            ids, None means 0. A new seed is drawn from torch's global generator, so that ``torch.manual_seed`` makes a
            script reproducible.
        autocast: torch.bfloat16 or torch.float16, the dtype in which the model runs; iterates and projections stay in
            the dtype of x. None turns autocast off, even inside a caller's autocast context, so that the result does
            not depend on the context.
        graph: on CUDA, whether a step may be captured into a CUDA graph and replayed. A model that cannot be captured
            runs eagerly, with a warning that says why; the result's ``why_eager`` holds the reason too. Set it to False
            for a model whose Python code behaves differently from call to call, since a replay does not run that code
            again.
        skip_cycles: end a sample's attack once its iterates are proven to repeat. The result is that of all steps, with
            the same x_adv, value, success, first_success and counts of bad gradients; ``samples_forwarded`` shows what
            was saved: almost everything in a long run with steps of eps / 4, little with the default step size
            (docs/performance.md). L2 iterates hardly ever repeat, except where the gradient is zero. As with ``stop``,
            samples leave the batch and others take their places, and results are equal up to rounding, since a model's
            outputs can depend on the rest of the batch in the last bits. The proof holds for a model that always gives
            the same gradient at the same image, not for one that draws random numbers. It takes memory for one more
            image per sample, and needs a constant schedule, no momentum, and a ``step_size`` that is a number or None.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range; ``step_size`` is None with an infinite eps; ``step_size`` is "polyak" and
            the attack is untargeted, the optimum of the objective is unknown, or the momentum is that of MI-FGSM;
            ``momentum_form`` is given without momentum; or ``skip_cycles`` is set although steps depend on more than
            the iterate.

    Example:
        attack = advfeat.PGD(advfeat.L2(0.5), steps=100, step_size=0.1, targeted=True)
        x_adv = attack(model, x, target)          # the tensor
        result = attack.run(model, x, target)     # with success, objective, distance and counts
    """

    threat: Threat
    steps: int
    step_size: Number | Literal["polyak"] | None = None
    objective: GivenObjective = field(default_factory=cast("Any", Margin))
    random_start: bool = False
    restarts: int = 1
    targeted: bool = False
    keep: Literal["last", "best"] = "last"
    stop: Literal["success"] | Converged | None = None
    seed: int | None = None
    autocast: torch.dtype | None = None
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)
    schedule: Literal["constant", "cosine"] = field(default="constant", metadata=OMITTED_AT_DEFAULT)
    momentum: float = field(default=0.0, metadata=OMITTED_AT_DEFAULT)
    skip_cycles: bool = field(default=False, metadata=CHANGES_NO_RESULT)
    momentum_form: Literal["heavy-ball", "mi-fgsm"] = field(default="heavy-ball", metadata=OMITTED_AT_DEFAULT)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_settings(self)
        if self.step_size is None:
            if not isinstance(self.threat.eps, Tensor) and not math.isfinite(self.threat.eps):
                raise ValueError("step_size should be given when eps is infinite")
        elif isinstance(self.step_size, str) and self.step_size == "polyak":
            self._check_polyak()
        else:
            object.__setattr__(self, "step_size", as_number("step_size", self.step_size))
            if not isinstance(self.step_size, Tensor) and not 0 <= self.step_size < math.inf:
                raise ValueError(f"step_size should be finite and at least 0, got {self.step_size}")
        if self.schedule not in SCHEDULES:
            names = " or ".join(f'"{name}"' for name in SCHEDULES)
            raise ValueError(f"schedule should be {names}, got {self.schedule!r}{meant(self.schedule, SCHEDULES)}")
        check_momentum(self)
        if self.keep not in ("last", "best"):
            raise ValueError(f'keep should be "last" or "best", got {self.keep!r}')
        if not (self.stop in (None, "success") or isinstance(self.stop, Converged)):
            raise ValueError(f'stop should be None, "success" or advfeat.Converged(), got {self.stop!r}')
        object.__setattr__(self, "skip_cycles", flag("skip_cycles", self.skip_cycles))
        if self.skip_cycles:
            self._check_that_cycles_repeat()

    def _check_polyak(self) -> None:
        if self.objective.optimum is None:
            raise ValueError(
                f'step_size should be a number for {self.objective.name}, whose optimum is not known, got "polyak"'
            )
        if not self.targeted:
            raise ValueError('step_size should be a number for an untargeted attack, got "polyak"')

    def _check_that_cycles_repeat(self) -> None:
        """An iterate that returns proves a cycle only if the same step always follows it."""
        others = {"schedule": self.schedule != "constant", "momentum": self.momentum != 0}
        others |= {"step_size": isinstance(self.step_size, str)}
        for name in (name for name, differs in others.items() if differs):
            raise ValueError(
                f"skip_cycles should be False with {name}={getattr(self, name)!r}, which makes steps differ, got True"
            )

    @property
    def step_length(self) -> Number | None:
        """The size of the first step: as given, 2.5 * eps / steps or 2 * eps; None if it depends on the gradient."""
        if isinstance(self.step_size, str):
            return None
        if self.step_size is not None:
            return self.step_size
        return (2.5 / max(self.steps, 1) if self.schedule == "constant" else 2.0) * self.threat.eps

    def to_dict(self) -> dict:
        """See :meth:`advfeat.attacks.Attack.to_dict`; with the effective step size, and the seed of a call with ids."""
        size = self.step_size if isinstance(self.step_size, str) else as_json(self.step_length)
        return super().to_dict() | {"step_size": size, "seed": self.seed or 0}

    @property
    def runs_in_pool(self) -> bool:
        """Whether samples leave the batch before all steps are done."""
        return self.stop is not None or self.skip_cycles

    def _run(self, run: Run) -> AttackResult:
        return pool.run(self, run) if self.runs_in_pool else _Loop(self, run).run()

    def _over(self, model: Callable, batches: Iterator[Batch]) -> Iterator[tuple[Any, AttackResult]]:
        """With ``stop`` or ``skip_cycles``, finished samples leave and the next ones take their places.

        See :mod:`advfeat.attacks.pool`. A result equals that of :meth:`run`; it comes a little later, with up to 32
        batches started.
        """
        if type(self)._run is not PGD._run:  # a subclass with its own loop
            return super()._over(model, batches)
        if not self.runs_in_pool:
            in_lockstep = InLockstep(self, model)
            return ((batch.given, in_lockstep(batch.x, batch.target, batch.ids)) for batch in batches)
        if any(isinstance(v, Tensor) and v.dim() > 0 for v in (self.threat.eps, self.step_size)):
            return super()._over(model, batches)
        return pool.over(self, model, batches)


class InLockstep:
    """Attacks batch after batch, each when it is given, all samples of a batch in lockstep.

    Batches of one shape share their buffers, and so one captured graph. The model's weights may change in place between
    two batches, as in training.

    Args:
        attack: an attack without ``stop`` and ``skip_cycles``, whose seeds are set.
        model: as for :meth:`advfeat.attacks.Attack.run`.
        statistics: whether anything besides ``x_adv`` is needed.
    """

    def __init__(self, attack: PGD, model: Callable, statistics: bool = True) -> None:
        self._attack, self._model, self._statistics = attack, model, statistics
        self._loop: _Loop | None = None

    def __call__(self, x: Tensor, target: Tensor, sample_ids: Tensor) -> AttackResult:
        """The result for one batch, whose tensors are its own.

        Args:
            x: [B, ...].
            target: [B, ...].
            sample_ids: int64 [B].

        Returns:
            The result.
        """
        attack, loop = self._attack, self._loop
        with undisturbed(attack, self._model, x.device):
            if loop is None or not loop.batch.take(attack, x, target, sample_ids):
                watched = None if loop is None else loop.batch.model
                run = Run(
                    attack, self._model, x, target, None, sample_ids, watched=watched, statistics=self._statistics
                )
                loop = self._loop = _Loop(attack, run, again=True)
            return loop.run()


class _Loop:
    """The loop without ``stop`` and ``skip_cycles``: all steps for all samples of a batch, in lockstep.

    With ``again`` the buffers are kept for the next batch, if that is of the same kind. With ``stop`` or
    ``skip_cycles`` see :mod:`advfeat.attacks.pool`.
    """

    def __init__(self, attack: PGD, batch: Run, again: bool = False) -> None:
        self.attack, self.batch, self.again = attack, batch, again
        # Without statistics only the last iterate is needed, and no pass has to evaluate it.
        self.track = batch.statistics or attack.keep == "best" or attack.restarts > 1
        self.at = torch.empty_like(batch.x0)  # the iterate; every step updates it in place
        self.buffer = torch.zeros_like(self.at) if attack.momentum else None
        self.sizes = StepSizes(attack, batch.threat, self.at.device)
        self.record = Record(batch.x0, attack.targeted, image=attack.keep == "best" or attack.restarts > 1)
        self.step = torch.zeros((), dtype=torch.int32, device=self.at.device)
        self.steps = ReplayedStep(self.at.device, attack.graph, again=again)

    def run(self) -> AttackResult:
        """The result for the samples that the batch holds now."""
        attack, batch, n = self.attack, self.batch, len(self.batch)
        self.record.forget(batch.x0)
        for restart in range(attack.restarts):
            self.at.copy_(batch.first_iterate(attack, restart))
            self.step.zero_()
            if self.buffer is not None:
                self.buffer.zero_()
            if n > 0:
                self.steps(self._one_step, attack.steps)
                if self.track:
                    self._last_look(restart)
        self.record.knows_success &= self.track
        return batch.result(
            self.record,
            forwarded=n * attack.restarts * (attack.steps + self.track),
            backwarded=n * attack.restarts * attack.steps,
            x_adv=self.at,
            why_eager=self.steps.why_eager,
            copied=self.again,
        )

    def _one_step(self) -> None:
        attack, batch, record = self.attack, self.batch, self.record
        value, logits, grad = value_and_grad(attack, batch.model, self.at, batch.target, True)
        size = self.sizes.of(self.step, value, grad)
        if self.track:
            success = record.as_successes(successes(attack, logits, batch.target))
            record.see(success, self.step)
            if attack.keep == "best":
                record.keep(record.is_better(value, success), self.at, value, success)
        self.step.add_(1)
        take_step_(attack, batch.threat, self.at, grad, batch.x0, size, self.buffer, record.status)

    def _last_look(self, restart: int) -> None:
        attack, batch, record = self.attack, self.batch, self.record
        value, logits, _ = value_and_grad(attack, batch.model, self.at, batch.target, False)
        success = record.as_successes(successes(attack, logits, batch.target))
        record.see(success, self.step)
        better = record.is_better(value, success)
        if attack.keep == "last" and restart == 0:
            better = torch.ones_like(better)
        record.keep(better, self.at, value, success)
