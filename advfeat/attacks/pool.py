"""Continuous batching: finished samples leave the batch, and the next samples of the data set take their places.

Serving systems do the same for language models. Under ``stop="success"`` most samples of a standard model are broken in
the first steps and a few take all of them; under ``skip_cycles`` samples leave that walk in circles. A batch that only
shrinks ends as a handful of samples, whose passes through the model cost nearly as much as those of a full batch. Here
every pass is full until the data set is exhausted, or until the largest allowed number of batches waits for a slow
sample of the first one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advfeat.attacks.attacked_model import AttackedModel
from advfeat.attacks.context import Run, random_iterate, undisturbed
from advfeat.attacks.convergence import Converged
from advfeat.attacks.cycles import Cycles
from advfeat.attacks.gradient import successes, value_and_grad
from advfeat.attacks.momentum import take_step_
from advfeat.attacks.record import Record
from advfeat.attacks.replay import ReplayedStep
from advfeat.attacks.result import AttackResult
from advfeat.attacks.step_sizes import StepSizes

if TYPE_CHECKING:
    from advfeat.attacks.base import Batch
    from advfeat.attacks.pgd import PGD

# The largest number of batches started but not yet yielded: they wait behind a slow sample, each with its images and
# result in device memory. With 100 steps, of which most samples need few, 32 keep the passes as full as hundreds would;
# 16 take up to twice as many passes, and 8 nearly four times as many.
_WAITING = 32


def run(attack: PGD, samples: Run) -> AttackResult:
    """The result for one batch; each sample runs until its own stop, and the batch shrinks.

    Args:
        attack: an attack with a ``stop`` or ``skip_cycles``.
        samples: the batch.

    Returns:
        The result, in the order of the samples.
    """
    batch = _Batch(samples, attack)
    pool = _Pool(attack, samples)
    pool.packs = True
    if len(samples):
        pool.add(batch)
    while batch.left:
        pool.advance()
    return batch.result(pool)


def over(attack: PGD, model: Callable, batches: Iterator[Batch]) -> Iterator[tuple[Any, AttackResult]]:
    """Each batch with its result, in order, with continuous batching.

    A pass has as many samples as the first batch. Each sample's result is that of ``attack.run``, up to rounding that
    depends on the batch inside the model.

    Args:
        attack: an attack with a ``stop`` or ``skip_cycles``, whose eps and step_size are not per sample.
        model: as for :meth:`advfeat.attacks.Attack.run`.
        batches: the batches, with ids.

    Yields:
        Pairs of a batch, as the caller gave it, and its result.

    Raises:
        ValueError: a batch has another shape or dtype than those before, or as for :meth:`advfeat.attacks.Attack.run`.
    """
    ended = False
    waiting: deque[_Batch] = deque()  # pulled but not yet yielded
    pool: _Pool | None = None
    watched = AttackedModel(model)

    def pulls() -> bool:
        return not ended and len(waiting) < _WAITING and (pool is None or pool.wants_more())

    while True:
        # Pulled outside the no-trace context: random numbers that a loader draws must advance the caller's generator.
        while pulls():
            try:
                x, target, ids, _, given = next(batches)
            except StopIteration:
                ended = True
                if pool is not None:
                    pool.packs = True
                break
            with torch.inference_mode(False):
                run = Run(attack, model, x, target, None, ids, watched=watched)
                if pool is None and len(run):
                    pool = _Pool(attack, run)
            waiting.append(_Batch(run, attack, given))
            if pool is not None and len(run):
                pool.add(waiting[-1])
        while waiting and waiting[0].left == 0:
            batch = waiting.popleft()
            yield batch.given, batch.result(pool)
        if not waiting and ended:
            return
        if pool is not None:
            with undisturbed(attack, model, pool.device):
                while waiting and waiting[0].left and not pulls():
                    pool.advance()


def _lag_on(device: torch.device) -> int:
    """How many steps late the host learns which samples have finished.

    One on an accelerator, so that the next step already runs and the device never waits; 0 on the CPU.
    """
    return 0 if device.type == "cpu" else 1


def _pack_at(device: torch.device) -> float:
    """The fraction of places in use at or below which the batch is packed, once the data set is exhausted.

    Packing costs a new CUDA graph; on the CPU it is free.
    """
    return 1.0 if device.type == "cpu" else 0.5


class _Batch:
    """A batch and the results of its samples as they come; ``given`` is what the caller gets back with them."""

    def __init__(self, run: Run, attack: PGD, given: Any = None) -> None:
        self.run, self.attack, self.given, self.number = run, attack, given, -1
        self.left, self.taken = len(run), 0
        self.record: Record | None = None  # set once the first of its samples is done
        self.passes: int | Tensor = 0

    def store(self, rows: Tensor, record: Record, passes: Tensor) -> None:
        """Stores the record of some samples, and the number of passes that they took."""
        if self.record is None:
            self.record = Record(self.run.x0, self.attack.targeted)
            self.passes = passes.new_zeros(())
        self.record.put(rows, record)
        self.passes += passes.sum()
        self.left -= rows.numel()

    def result(self, pool: _Pool | None) -> AttackResult:
        """The result of the batch; ``pool`` is None if no sample was attacked."""
        record = Record(self.run.x0, self.attack.targeted) if self.record is None else self.record
        record.knows_success = pool is None or pool.record.knows_success
        why_eager = None if pool is None else pool.why_eager
        passes = int(self.passes)
        return self.run.result(record, forwarded=passes, backwarded=passes, why_eager=why_eager)


class _Look:
    """The flags of every place at one moment, on their way from the device to the host."""

    def __init__(self, number: int, flags: Tensor) -> None:
        self.number = number
        self.flags = flags.to("cpu", non_blocking=True)  # from CUDA into pinned memory
        self.arrived = torch.cuda.Event() if flags.device.type == "cuda" else None
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(flags.device))

    def read(self) -> Tensor:
        """The flags, bool [kinds, places]; waits until they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.flags

    def keep(self, places: Tensor) -> None:
        """Keeps the flags of some places."""
        self.flags = self.read()[:, places]


class _Pool:
    """The places for samples under attack; each sample has its own step and restart.

    ``slots`` are tensors with one row per place, updated in place, so that a step can be replayed as a graph. A place
    is in use until its sample's result has been stored; ``slots["live"]`` says whether the attack continues there.
    """

    def __init__(self, attack: PGD, first: Run) -> None:
        x, target = first.x0, first.target
        self.attack, self.device, self.size = attack, x.device, len(first)
        self.kinds = {"x": (x.dtype, x.shape[1:]), "target": (target.dtype, target.shape[1:])}
        self.model, self.threat = first.model, first.threat
        self.sign = -1.0 if attack.targeted else 1.0
        self.sizes = StepSizes(attack, first.threat, x.device)
        self.rule = attack.stop if isinstance(attack.stop, Converged) else None
        self.packs = False  # whether to pack the places in use, once the data set is exhausted
        self.queue: deque[_Batch] = deque()  # batches with samples that have not entered yet
        self.homes: dict[int, _Batch] = {}  # the batches of the samples in the places, by number
        self.batches = 0
        self.lag, self.pack_at = _lag_on(x.device), _pack_at(x.device)
        self.slots = self._empty(x)
        self.record = Record(x, attack.targeted)  # of the places, which the first batch fills
        self.cycles = Cycles(x) if attack.skip_cycles else None
        self.step, self.replayed = ReplayedStep(x.device, attack.graph, again=True), False
        # On the host: which places are in use, by which row of which batch, at which restart, and the last look taken
        # before this sample entered.
        self.used = torch.zeros(self.size, dtype=torch.bool, device="cpu")
        self.home, self.row, self.restart, self.not_seen_by = torch.zeros(
            (4, self.size), dtype=torch.int64, device="cpu"
        )
        self.looks = 0
        self.unread: deque[_Look] = deque()

    def _empty(self, x: Tensor) -> dict[str, Tensor]:
        def numbers(dtype: torch.dtype) -> Tensor:
            return torch.zeros((self.size,), dtype=dtype, device=self.device)

        slots = {name: numbers(torch.int64) for name in ("id", "step", "restart", "passes", "since")}
        slots["gained"] = numbers(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return slots | {"live": numbers(torch.bool)}

    @property
    def why_eager(self) -> str | None:
        """Why no pass was replayed as a graph; None where one was, before the last packing too."""
        return None if self.replayed else self.step.why_eager

    def wants_more(self) -> bool:
        """Whether there is room for a sample that has not been pulled yet."""
        return sum(len(b.run) - b.taken for b in self.queue) < self.size

    def add(self, batch: _Batch) -> None:
        """Queues a batch; raises ValueError if it has another shape or dtype than those before."""
        for name, value in (("x", batch.run.x0), ("target", batch.run.target)):
            dtype, shape = self.kinds[name]
            if value.shape[1:] != shape or value.dtype != dtype:
                raise ValueError(
                    f"{name} should be like that of the batches before, {dtype} of shape "
                    f"[{', '.join(map(str, ('B', *shape)))}], got {value.dtype} of shape {tuple(value.shape)}"
                )
        batch.number = self.batches
        self.batches += 1
        self.homes[batch.number] = batch
        self.queue.append(batch)

    def advance(self) -> None:
        """One pass through the model for the samples in the pool, after new ones have entered."""
        self._fill()
        self._pack()
        self.step(self._one_step, 1)
        self.looks += 1
        self.unread.append(_Look(self.looks, torch.stack([self.slots["live"], self.record.success])))
        while len(self.unread) > self.lag:
            look = self.unread.popleft()
            live, success = look.read()
            ended = self.used & ~live & (self.not_seen_by < look.number)
            if self.attack.restarts > 1:
                again = ended & (self.restart + 1 < self.attack.restarts)
                if self.attack.stop == "success":
                    again &= ~success
                self._start_again(again.nonzero()[:, 0])
                ended &= ~again
            self._send_away(ended.nonzero()[:, 0])

    def _one_step(self) -> None:
        """Evaluates every place, keeps what is better, and takes a step; in place."""
        s, record, attack = self.slots, self.record, self.attack
        value, logits, grad = value_and_grad(attack, self.model, s["x"], s["target"], True)
        success = successes(attack, logits, s["target"])
        if success is None and attack.stop == "success":
            raise ValueError(
                'stop="success" needs labels as target, and an objective that asks the model for the logits of x '
                "itself, or for logits once"
            )
        success = record.as_successes(success)
        live = s["live"]
        s["passes"].add_(live)
        record.see(success & live, s["step"])
        if self.rule is not None:
            self._count_since_gain(self.rule, value)
        if self.cycles is not None:
            self._skip_laps(self.cycles)
        ending = s["step"] >= attack.steps
        if self.rule is not None:
            ending |= s["since"] >= self.rule.patience
        elif attack.stop == "success":
            ending |= success
        better = record.is_better(value, success)
        if attack.keep == "last":  # the last iterate of the first start, or a better last one of a later start
            better = ending & ((s["restart"] == 0) | better)
        record.keep(better & live, s["x"], value, success)
        live.logical_and_(~ending)
        counts = torch.zeros_like(record.status)
        size = self.sizes.of(s["step"], value, grad)
        take_step_(attack, self.threat, s["x"], grad, s["x0"], size, s.get("buffer"), counts)
        record.status.add_(counts * live[:, None])
        s["step"].add_(1)

    def _skip_laps(self, cycles: Cycles) -> None:
        """Takes the samples that are known to walk in circles as many whole laps ahead as they have steps left for.

        The few steps that remain end at the iterate at which all steps would end. A lap changes nothing but what counts
        steps: all of its iterates have been seen, so none is a first success, better than the best or a gain.
        """
        s, record = self.slots, self.record
        left = self.attack.steps - s["step"]
        if self.rule is not None:
            left = torch.minimum(left, self.rule.patience - s["since"])
        length, counts = cycles.closed(s["x"], s["step"], record.status)
        laps = torch.where(s["live"] & (length > 0), left.clamp(min=0) // length.clamp(min=1), 0)
        s["step"].add_(laps * length)
        s["since"].add_(laps * length)
        record.status.add_((laps[:, None] * counts).to(torch.int32))

    def _count_since_gain(self, rule: Converged, value: Tensor) -> None:
        """Counts the steps of every sample since its last gain, this one included."""
        s = self.slots
        gained, rank = s["gained"], self.sign * value.to(s["gained"].dtype)
        enough = torch.where(gained.isinf(), gained, gained + rule.tolerance * gained.abs())
        gains = (rank > enough) | (gained.isnan() & ~rank.isnan())
        gained.copy_(torch.where(gains, rank, gained))
        s["since"].copy_(torch.where(gains, 0, s["since"] + 1))

    def _send_away(self, ended: Tensor) -> None:
        """Stores the results of the samples in these places."""
        home = self.home[ended]
        for number in home.unique().tolist():
            places = ended[home == number]
            at, batch = places.to(self.device, non_blocking=True), self.homes[number]
            rows = self.row[places].to(self.device, non_blocking=True)
            batch.store(rows, self.record.rows(at), self.slots["passes"][at])
            if batch.left == 0:
                del self.homes[number]
        self.used[ended] = False

    def _start_again(self, places: Tensor) -> None:
        """Moves the samples in these places to their next start."""
        s = self.slots
        self.restart[places] += 1
        self.not_seen_by[places] = self.looks
        for restart in self.restart[places].unique().tolist():
            at = places[self.restart[places] == restart].to(self.device, non_blocking=True)
            s["x"][at] = random_iterate(self.attack, self.threat.rows(at), s["x0"][at], s["id"][at], restart)
            s["restart"][at], s["step"][at], s["since"][at] = restart, 0, 0
            if self.attack.momentum:
                s["buffer"][at] = 0
            if self.cycles is not None:
                self.cycles.forget(at)
            s["gained"][at], s["live"][at] = float("nan"), True

    def _fill(self) -> None:
        """Puts new samples into free places."""
        free = (~self.used).nonzero()[:, 0]
        while self.queue and free.numel():
            batch = self.queue[0]
            n = min(free.numel(), len(batch.run) - batch.taken)
            self._enter(batch, batch.taken, free[:n])
            free = free[n:]
            if batch.taken == len(batch.run):
                self.queue.popleft()

    def _enter(self, batch: _Batch, first: int, places: Tensor) -> None:
        s, n = self.slots, places.numel()
        last = first + n
        rows, part = places.to(self.device, non_blocking=True), batch.run.rows(slice(first, last))
        new = {"x": part.first_iterate(self.attack), "x0": part.x0, "target": part.target}
        if self.attack.momentum:
            new["buffer"] = torch.zeros_like(part.x0)
        if "x" not in s:  # the first samples set the shapes for all
            s |= {name: value.clone() for name, value in new.items()}
        for name, value in new.items():
            s[name][rows] = value
        self.record.forget(part.x0, rows)
        if self.cycles is not None:
            self.cycles.forget(rows)
        for name in ("step", "restart", "passes", "since"):
            s[name][rows] = 0
        s["id"][rows] = part.ids
        s["gained"][rows], s["live"][rows] = float("nan"), True
        self.used[places], self.not_seen_by[places], self.restart[places] = True, self.looks, 0
        self.home[places], self.row[places] = batch.number, torch.arange(first, last, device="cpu")
        batch.taken = last

    def _pack(self) -> None:
        """Drops the free places from the passes, once there are no samples left for them."""
        n, used = self.used.numel(), int(self.used.sum())
        if not self.packs or self.queue or used == n or used == 0 or used > self.pack_at * n:
            return
        kept = self.used.nonzero()[:, 0]
        rows = kept.to(self.device)
        self.slots = {name: value[rows] for name, value in self.slots.items()}
        self.record = self.record.rows(rows)
        self.cycles = None if self.cycles is None else self.cycles.rows(rows)
        self.threat = self.threat.rows(rows)
        self.sizes = self.sizes.rows(rows)
        for look in self.unread:
            look.keep(kept)
        self.used, self.home, self.row = self.used[kept], self.home[kept], self.row[kept]
        self.restart, self.not_seen_by = self.restart[kept], self.not_seen_by[kept]
        self.replayed = self.why_eager is None
        self.step = ReplayedStep(self.device, self.attack.graph, again=True)
