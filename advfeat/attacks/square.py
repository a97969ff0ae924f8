"""Square Attack (Andriushchenko et al. 2020): random search over square windows, by forward passes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from advfeat import ops
from advfeat._arguments import flag, number
from advfeat._hardware import has_bfloat16
from advfeat.attacks.base import GivenObjective, GradientAttack, check_settings
from advfeat.attacks.context import Run
from advfeat.attacks.gradient import successes, value_and_grad
from advfeat.attacks.record import Record
from advfeat.attacks.result import AttackResult
from advfeat.attacks.square_moves import Centre, Choices, moves_of
from advfeat.objectives import CW, as_objective
from advfeat.ops import Number
from advfeat.random import philox
from advfeat.settings import CHANGES_NO_RESULT
from advfeat.threat import L1, L2, Linf, Threat

# Queries after which the share of the image that a window covers is halved, of 10,000; from AutoAttack's code.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Random numbers are drawn for so many queries at once.
_BLOCK = 64
# Casts take longer than they save with images of fewer values.
_BF16_VALUES = 1024
_START, _QUERIES = 2, 3  # streams of random numbers; 0 and 1 are those of random starts


@dataclass(frozen=True, eq=False)
class Square(GradientAttack):
    """Square: replace the perturbation in a random window, and keep the change where the objective gets better.

    It asks the model for logits alone, never for a gradient, so that it also attacks models whose gradients are masked.
    Each query is one forward pass of the samples that are still correct. The windows shrink on a fixed schedule; each
    sample has its own, keyed by its id, so that results do not depend on the batch (in AutoAttack's code all samples of
    a batch share them, and windows never reach the last row and column).

    * L-inf: the start is vertical stripes of +-eps; a query sets each channel of a window to +-eps.
    * L2 and L1: the start is a grid of tiles, each with a bump of either sign; a query moves the mass of one window,
      together with the unused part of eps, into another window, as a bump added to what is there.

    The result holds the best example of each sample; a success ranks above a failure.

    Args:
        threat: :class:`advfeat.Linf`, :class:`advfeat.L2` or :class:`advfeat.L1` with a finite eps.
        steps: queries after the start; AutoAttack takes 5,000.
        objective: maximised, or minimised with ``targeted``. AutoAttack takes the margin of the logits,
            :class:`advfeat.CW`.
        p_init: the share of the image that the first windows cover, above 0 and at most 1.
        rescale_schedule: rescale the schedule of the windows, which is made for 10,000 queries, to the given number of
            steps; AutoAttack does not.
        restarts: number of starts, each for the samples that are not broken yet.
        targeted: minimise the objective, towards ``target``.
        seed: of the random numbers; the same at every call, so that an evaluation can be repeated.
        autocast: as for :class:`advfeat.PGD`.
        bf16_queries: run the queries under bfloat16 autocast, if the device computes that natively (CUDA from sm_80 on,
            CPUs with AVX512-BF16 or AMX), in less time. A success counts once the model without autocast confirms it,
            in one more pass. Has no effect with ``autocast``, and on images of fewer than 1,024 values.
        graph: has no effect: what a query does depends on which samples are left.

    Attributes:
        random_start: always True.

    Raises:
        ValueError: eps is infinite, the norm is none of these, or a setting is out of range.
        TypeError: a setting has the wrong type.

    Example:
        result = advfeat.Square(advfeat.Linf(8 / 255)).run(model, x, y)
    """

    threat: Threat
    steps: int = 5000
    objective: GivenObjective = field(default_factory=cast("Any", CW))
    p_init: float = 0.8
    rescale_schedule: bool = False
    random_start: bool = field(default=True, init=False)
    restarts: int = 1
    targeted: bool = False
    seed: int = 0
    autocast: torch.dtype | None = None
    bf16_queries: bool = False
    graph: bool = field(default=True, metadata=CHANGES_NO_RESULT)

    takes_start = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        check_settings(self)
        object.__setattr__(self, "rescale_schedule", flag("rescale_schedule", self.rescale_schedule))
        object.__setattr__(self, "bf16_queries", flag("bf16_queries", self.bf16_queries))
        object.__setattr__(self, "p_init", number("p_init", self.p_init))
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init should be above 0 and at most 1, got {self.p_init}")
        if not isinstance(self.threat, (Linf, L2, L1)):
            raise ValueError(f"threat should be advfeat.Linf, advfeat.L2 or advfeat.L1, got {self.threat!r}")

    @property
    def step_length(self) -> Number | None:
        """None: it takes no gradient steps."""
        return None

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """See :meth:`advfeat.attacks.Attack.check`; x must be images [B, C, H, W]."""
        largest = super().check(x, target, start, sample_ids)
        if x.dim() != 4:
            raise ValueError(f"x should be images [B, C, H, W] for Square, got shape {tuple(x.shape)}")
        return largest

    def share_of(self, query: int) -> float:
        """The share of the image that the window of a query covers.

        Args:
            query: its number, from 0.

        Returns:
            The share.
        """
        at = int(query / self.steps * 10_000) if self.rescale_schedule else query
        return self.p_init / 2 ** sum(at > least for least in _HALVED_AFTER)

    def side_of(self, query: int, height: int, width: int) -> int:
        """The side of the window of a query, in pixels.

        Args:
            query: its number, from 0.
            height: that of the images.
            width: that of the images.

        Returns:
            The side; for L2 and L1 odd and at least 3, if the image is as large.
        """
        side = max(round(math.sqrt(self.share_of(query) * height * width)), 1)
        if not isinstance(self.threat, Linf):
            side = max(side, 3)
            side += side % 2 == 0
        return min(side, height, width)

    def _run(self, run: Run) -> AttackResult:
        record = Record(run.x0, self.targeted)
        passes = self._look_at_x(run, record)
        rows = (~record.success).nonzero()[:, 0]
        for restart in range(self.restarts):
            if rows.numel() == 0:
                break
            search = _Search(self, run.rows(rows), restart)
            passes += search.run()
            part = record.rows(rows)
            better = part.is_better(search.record.value, search.record.success)
            part.keep(better, cast("Tensor", search.record.x), search.record.value, search.record.success)
            part.see(search.record.success, search.record.first_success)
            record.put(rows, part)
            rows = rows[~search.record.success]
        return run.result(record, forwarded=passes, backwarded=0, why_eager="Square takes no gradient steps")

    def _look_at_x(self, run: Run, record: Record) -> int:
        """Evaluates the images themselves; returns the passes."""
        if not len(run):
            return 0
        value, success = _evaluated(self, run, run.x0, run.target)
        record.see(success, torch.zeros((), dtype=torch.int32, device=value.device))
        record.keep(torch.ones_like(success), run.x0, value, success)
        return len(run)


def _evaluated(attack: Square, run: Run, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The objective and the successes at x."""
    value, logits, _ = value_and_grad(attack, run.model, x, target, False)
    success = successes(attack, logits, target)
    if success is None:
        raise ValueError("Square needs labels as target, and an objective that asks the model for the logits of x")
    return value, success


class _Search:
    """One start, for the samples that are left; those that are broken leave.

    ``rows`` are the indices of the samples that are left, ``x`` their best points, ``value`` their objective there, of
    which the larger is the better.
    """

    def __init__(self, attack: Square, run: Run, restart: int) -> None:
        self.attack, self.run_, self.record = attack, run, Record(run.x0, attack.targeted)
        self.sign = -1.0 if attack.targeted else 1.0
        self.seed = (attack.seed + (restart << 40)) % 2**63
        self.rows = torch.arange(len(run), device=run.x0.device)
        self.moves = moves_of(attack.threat, run.x0.shape)
        self.passes = 0
        # By the image and not the batch, so that a sample's result does not depend on those beside it.
        large = math.prod(run.x0.shape[1:]) >= _BF16_VALUES
        in_bf16 = attack.bf16_queries and attack.autocast is None and large and has_bfloat16(run.x0.device)
        self.quick = attack.replace(autocast=torch.bfloat16) if in_bf16 else None

    def run(self) -> int:
        """All queries; returns the passes."""
        run = self.run_
        self.part, self.target = run, run.target
        self.x0 = run.x0.contiguous()  # a window is found by its pixels' numbers; the model gets the images' own layout
        self.format = _format(run.x0)
        uniform = _uniforms(self.seed, run.ids, self.moves.start_words, _START)
        self.centre = self._centre_of_part()
        self.x = self._inside(self.moves.start(self.centre, uniform))
        value, success = self._queried(self.x, last=self.attack.steps == 0)
        self.value = self.sign * value
        self._keep(self.x, value, success, 0)
        first, self.block = 0, Choices(0, 0)
        for query in range(self.attack.steps):
            if not len(self.rows):
                break
            if query == first + self.block.count:
                first, self.block = query, self._block(query)
            candidate = self._inside(self.moves.query(self.centre, self.x, self.block, query - first))
            value, success = self._queried(candidate)
            accepted = (self.sign * value > self.value) | success
            ops.copy_rows_(self.x, candidate, accepted)
            self.value = torch.where(accepted, self.sign * value, self.value)
            if self.quick is not None and query + 1 == self.attack.steps:  # what the record keeps
                self.value = self.sign * self._evaluated(self.attack, self.part, self.x, self.target)[0]
            self._keep(self.x, self.sign * self.value, success, query + 1)
        return self.passes

    def _block(self, query: int) -> Choices:
        """The random choices of the queries from this one on, as long as the windows have the same side."""
        attack, size = self.attack, self.x0.shape[2:]
        side, count = attack.side_of(query, *size), 1
        while count < min(_BLOCK, attack.steps - query) and attack.side_of(query + count, *size) == side:
            count += 1
        words = self.moves.words
        uniform = _uniforms(self.seed, self.part.ids, words * count, _QUERIES, words * query)
        return self.moves.block(self.centre, uniform.reshape(len(self.rows), count, words), side)

    def _queried(self, x: Tensor, last: bool = False) -> tuple[Tensor, Tensor]:
        """The objective and the successes at x; with ``quick``, of which the model in its own precision is sure."""
        if self.quick is None or last:
            return self._evaluated(self.attack, self.part, x, self.target)
        value, success = self._evaluated(self.quick, self.part, x, self.target)
        rows = success.nonzero()[:, 0]
        if rows.numel():
            sure, confirmed = self._evaluated(self.attack, self.part.rows(rows), x[rows], self.target[rows])
            success[rows] = confirmed
            value[rows[confirmed]] = sure[confirmed]
        return value, success

    def _evaluated(self, attack: Square, part: Run, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        self.passes += len(x)
        return _evaluated(attack, part, x.contiguous(memory_format=self.format), target)

    def _centre_of_part(self) -> Centre:
        threat = self.part.threat
        eps = torch.as_tensor(threat.eps, dtype=self.x0.dtype, device=self.x0.device).reshape(-1, 1, 1, 1)
        unit = None
        if threat.has_unit:
            unit = torch.as_tensor(threat.unit, dtype=self.x0.dtype, device=self.x0.device).reshape(-1, 1, 1)
        return Centre(self.x0, eps.expand(len(self.x0), 1, 1, 1), unit)

    def _inside(self, candidate: Tensor) -> Tensor:
        return self.part.threat.project_(candidate, self.x0)

    def _keep(self, x: Tensor, value: Tensor, success: Tensor, query: int) -> None:
        """Stores what is broken, and at the end everything; goes on with the samples that are left."""
        last = query == self.attack.steps
        stored = torch.ones_like(success) if last else success
        if not bool(stored.any()):
            return
        rows = self.rows[stored]
        record = self.record
        assert record.x is not None
        record.x[rows], record.success[rows] = x[stored], success[stored]
        record.value[rows] = value[stored].to(record.value.dtype)
        record.first_success[self.rows[success]] = query
        left = (~success).nonzero()[:, 0]
        self.rows, self.x, self.value = self.rows[left], self.x[left], self.value[left]
        self.part = self.run_.rows(self.rows)
        self.x0, self.target = self.x0[left], self.part.target
        self.centre = self._centre_of_part()
        if query > 0:
            self.block.keep(left)


def _uniforms(seed: int, ids: Tensor, count: int, stream: int, first: int = 0) -> Tensor:
    """Uniform numbers in (0, 1) for each sample: ``count`` of those of a stream, from number ``first`` on."""
    quads = torch.arange(first // 4, (first + count + 3) // 4, device=ids.device)
    words = philox(seed, ids, quads, stream).reshape(len(ids), -1)[:, first % 4 : first % 4 + count]
    return (words.to(torch.float32) + 0.5) * 2.0**-32


def _format(x: Tensor) -> torch.memory_format:
    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format
