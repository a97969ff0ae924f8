"""One call of an attack: its inputs, checked and copied, and the construction of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from advfeat.attacks.attacked_model import AttackedModel
from advfeat.attacks.inputs import memory_format_for
from advfeat.attacks.no_trace import no_trace
from advfeat.attacks.record import Record
from advfeat.attacks.result import AttackResult
from advfeat.objectives import are_labels
from advfeat.threat import Threat

if TYPE_CHECKING:
    from advfeat.attacks.base import Attack, GradientAttack


@contextmanager
def undisturbed(attack: Attack, model: Callable, device: torch.device) -> Iterator[None]:
    """A context in which the model can be attacked and is left as it was.

    See :func:`advfeat.attacks.no_trace.no_trace`. The caller's autocast is disabled: it would also cast the backward
    pass, which PyTorch advises against.

    Args:
        attack: the attack, whose objectives are protected too.
        model: the model.
        device: the device of the inputs.

    Yields:
        Nothing.
    """
    with no_trace(model, device, *attack.objectives), torch.autocast(device.type, enabled=False):
        yield


def random_iterate(attack: GradientAttack, threat: Threat, x0: Tensor, ids: Tensor, restart: int) -> Tensor:
    """Random points of the balls around x0, at which a restart begins.

    Each restart has its own stream of random numbers, far from the others in the space of seeds.

    Args:
        attack: gives the seed.
        threat: the balls.
        x0: the centres [n, ...].
        ids: int64 [n].
        restart: the number of the restart.

    Returns:
        The points [n, ...], in the memory layout of x0.
    """
    seed = ((attack.seed or 0) + (restart << 40)) % 2**63
    x = torch.empty_like(x0).copy_(threat.random_start(x0, seed, ids))
    return threat.project_(x, x0)


class Run:
    """A batch of n samples under attack, from which the result is made.

    Args:
        attack: the attack, which checks the inputs.
        model: the model as the caller gave it.
        x: the images [n, ...], as the caller gave them.
        target: [n, ...].
        start: the first iterates, or None.
        sample_ids: int64 [n], or None for 0 ... n-1.
        watched: a wrapper of the same model, to be reused; None for a new one.
        statistics: whether anything besides ``x_adv`` is needed.
        room: how many samples a pass through the model may hold; None for as many as there are.

    Attributes:
        model: the model as objectives see it.
        x0: [n, ...], the centres of the balls, in the box and in the memory layout that suits the model.
        target: [n, ...].
        ids: int64 [n].
        start: the first iterates as given, or None.
        threat: on the device, for these samples.
        statistics: as above.
        room: as above, at least n. The parts of a run have that of the whole, so that an attack may try several starts
            of the few samples that are left in one pass.
        seeds: for a run that holds several starts of its samples, as an attack has put them together: the seed of each
            start and its number of samples, in order; None for the attack's own seed.
        known_logits: the logits at x0, [n, classes], once they have been computed or given; see :meth:`logits_at_x`.
    """

    def __init__(
        self,
        attack: Attack,
        model: Callable,
        x: Tensor,
        target: Tensor,
        start: Tensor | None = None,
        sample_ids: Tensor | None = None,
        *,
        watched: AttackedModel | None = None,
        statistics: bool = True,
        room: int | None = None,
    ) -> None:
        largest = attack.check(x, target, start, sample_ids)
        self.model = AttackedModel(model) if watched is None else watched
        self.model.expect_label(largest)
        self.threat, self.statistics = attack.threat.to(x.device), statistics
        self.room, self.seeds = max(len(x), room or 0), cast("list[tuple[int, int]] | None", None)
        self._kind, self._strides = _kind(x, target), _strides(x)
        # Clones: the inputs must not change, and tensors made under inference_mode cannot take part in autograd.
        self.x0 = x.detach().clone(memory_format=memory_format_for(model, x))
        # Rounding may have left the centres a little outside the box, and an iterate that is put back into the box
        # around such a centre would leave the ball.
        self.threat.into_box_(self.x0)
        self.target = target.detach().clone()
        if are_labels(target):
            self.target = self.target.to(torch.int64)
        self.ids = torch.arange(len(x), device=x.device) if sample_ids is None else sample_ids.clone()
        self.start = None if start is None else torch.empty_like(self.x0).copy_(start.detach())
        self._whole: tuple[Run, Tensor | slice] | None = None  # for a part: the whole run, and its rows there
        self.known_logits: Tensor | None = None

    def __len__(self) -> int:
        return self.x0.shape[0]

    def take(self, attack: Attack, x: Tensor, target: Tensor, sample_ids: Tensor) -> bool:
        """Copies another batch into the same tensors.

        Args:
            attack: checks the batch.
            x: as for :class:`Run`.
            target: as for :class:`Run`.
            sample_ids: as for :class:`Run`.

        Returns:
            False, with nothing changed, if the batch has another shape, dtype or device.
        """
        if self._kind != _kind(x, target):
            return False
        self.model.expect_label(attack.check(x, target, None, sample_ids))
        self._strides = _strides(x)
        self.threat.into_box_(self.x0.copy_(x.detach()))
        self.target.copy_(target.detach())
        self.ids = sample_ids.clone()
        self.known_logits = None
        return True

    def rows(self, rows: Tensor | slice, target: Tensor | None = None) -> Run:
        """The run of some of the samples.

        Args:
            rows: int64 indices or a slice.
            target: their targets; None for those of this run.

        Returns:
            A run that takes the logits of this one where they are known.
        """
        part = object.__new__(Run)
        part.model, part.threat, part.statistics = self.model, self.threat.rows(rows), self.statistics
        part.room, part.seeds = self.room, None
        part.x0, part.ids = self.x0[rows], self.ids[rows]
        part.target = self.target[rows] if target is None else target
        part.start = None if self.start is None else self.start[rows]
        part._kind, part._strides = _kind(part.x0, part.target), part.x0.stride()
        part._whole, part.known_logits = (self, rows), None
        return part

    def within(self, threat: Threat) -> Run:
        """The same samples in other balls, as an attack takes them on its way.

        Args:
            threat: the other threat model, on the device.

        Returns:
            A run that shares everything else with this one.
        """
        other = self.rows(slice(None))
        other.threat, other.seeds = threat, self.seeds
        return other

    def logits_at_x(self) -> tuple[Tensor, int]:
        """The logits at x0, computed once for these samples: a part of a run takes those of the run.

        Returns:
            The logits [n, classes], float32 and without autocast, and the number of samples that went through the model
            for them: 0 if they were known.
        """
        forwarded = 0
        if self.known_logits is None:
            self.known_logits = self._logits_of_whole()
        if self.known_logits is None:
            forwarded = len(self)
            with torch.no_grad():
                self.known_logits = self.model(self.x0).float()
        return self.known_logits, forwarded

    def _logits_of_whole(self) -> Tensor | None:
        """The logits at x0 where this run, or one that it is a part of, knows them."""
        if self.known_logits is not None or self._whole is None:
            return self.known_logits
        whole, rows = self._whole
        logits = whole._logits_of_whole()
        return None if logits is None else logits[rows]

    def first_iterate(self, attack: GradientAttack, restart: int = 0) -> Tensor:
        """The first iterate of a start, in the ball: the given one, a random point, or the centre.

        Args:
            attack: says whether starts are random.
            restart: the number of the restart.

        Returns:
            A new tensor [n, ...].
        """
        if self.start is not None:
            return self.threat.project_(self.start.clone(), self.x0)
        if attack.random_start:
            return self.random_iterate(attack, restart)
        return self.x0.clone()

    def random_iterate(self, attack: GradientAttack, restart: int) -> Tensor:
        """Random points of the balls, from the seed of the attack or from :attr:`seeds`.

        Args:
            attack: gives the seed.
            restart: the number of the restart.

        Returns:
            A new tensor [n, ...].
        """
        if self.seeds is None:
            return random_iterate(attack, self.threat, self.x0, self.ids, restart)
        found, first = torch.empty_like(self.x0), 0
        for seed, count in self.seeds:
            rows = slice(first, first + count)
            own, threat = attack.replace(seed=seed), self.threat.rows(rows)
            found[rows] = random_iterate(own, threat, self.x0[rows], self.ids[rows], restart)
            first += count
        return found

    def result(
        self,
        record: Record,
        *,
        forwarded: int,
        backwarded: int,
        x_adv: Tensor | None = None,
        why_eager: str | None = None,
        copied: bool = False,
    ) -> AttackResult:
        """The result that a record holds, in the memory layout of the caller's x.

        Args:
            record: the best iterates and counts.
            forwarded: samples that went through the model.
            backwarded: samples whose gradient was computed.
            x_adv: the examples [n, ...], where the record keeps no images.
            why_eager: why no CUDA graph was replayed; None if one was.
            copied: whether the result's tensors must be copies of the record's.

        Returns:
            The result.
        """
        images = cast("Tensor", x_adv if record.x is None else record.x)  # x_adv is given where the record has none

        def given(tensor: Tensor) -> Tensor:
            return tensor.clone() if copied else tensor

        return AttackResult(
            x_adv=_with_strides(given(images), self._strides),
            value=given(record.value),
            success=given(record.success) if record.knows_success else None,
            distance=self.threat.distance(images, self.x0),
            first_success=given(record.first_success) if record.knows_success else None,
            zero_grad_steps=given(record.status[:, 0]),
            nonfinite_grad_steps=given(record.status[:, 1]),
            samples_forwarded=forwarded,
            samples_backwarded=backwarded,
            why_eager=why_eager,
        )


def _kind(x: Tensor, target: Tensor) -> tuple:
    return x.shape, x.dtype, x.device, target.shape, target.dtype


def _strides(x: Tensor) -> tuple[int, ...]:
    """The strides of a new tensor like x."""
    return torch.empty_like(x, device="meta").stride()


def _with_strides(x_adv: Tensor, strides: tuple[int, ...]) -> Tensor:
    if x_adv.stride() == strides:
        return x_adv
    return torch.empty_strided(x_adv.shape, strides, dtype=x_adv.dtype, device=x_adv.device).copy_(x_adv)
