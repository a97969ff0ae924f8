"""The batch that stays full: samples that are done leave, the next of the data set take their places.

As serving systems do for language models. Under ``stop="success"`` most samples of a standard model fall in the first
steps and a few take all of them: a batch that only shrinks ends as a handful of samples, whose passes through the model
cost nearly as much as those of a full batch. Here every pass is full until the data set runs out, or until as many
batches wait for a slow sample of the first one as may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.convergence import Converged
from advfeat.attacks.engine import (
    into_box_,
    own_copies,
    random_start,
    strides_of,
    successes,
    value_and_grad,
    with_strides,
)
from advfeat.attacks.inputs import check_inputs
from advfeat.attacks.no_trace import Watched, no_trace
from advfeat.attacks.replay import Step
from advfeat.attacks.result import AttackResult

if TYPE_CHECKING:
    from advfeat.attacks.pgd import PGD

# Batches that are begun and not yet yielded, at most: behind a slow sample they wait, each with its images and its
# result in the device's memory. With 100 steps, of which most samples need few, 32 leave the passes as full as hundreds
# would; 16 take up to twice as many passes, and 8 nearly four times.
_WAITING = 32


def run(
    attack: PGD, model: Callable, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None
) -> AttackResult:
    """One batch, each sample until its own stop; the batch shrinks."""
    check_inputs(attack, x, target, start, sample_ids)
    ids = torch.arange(x.shape[0], device=x.device) if sample_ids is None else sample_ids
    (result,) = over(attack, model, [(x, target, ids)], start)
    return result


def over(
    attack: PGD, model: Callable, batches: Iterable[tuple[Tensor, Tensor, Tensor]], start: Tensor | None = None
) -> Iterator[AttackResult]:
    """The results of ``attack``, one a batch ``(x, target, sample_ids)`` and in order, with the model's passes kept
    full.

    For an attack with a ``stop``, and numbers that are not per sample unless there is only one batch. A pass has as
    many samples as the first batch. Each sample's result is that of ``attack.run``, but for rounding that depends on
    the batch inside the model. start: the first iterates of the first batch.
    """
    source, ended = iter(batches), False
    waiting: deque[_Batch] = deque()  # pulled and not yet yielded
    pool: _Pool | None = None

    def pulls() -> bool:
        return not ended and len(waiting) < _WAITING and (pool is None or pool.wants_more())

    while True:
        # Pulled outside no_trace: a loader may draw random numbers, and they are its own.
        while pulls():
            try:
                x, target, ids = next(source)
            except StopIteration:
                ended = True
                if pool is not None:
                    pool.packs = True
                break
            with torch.inference_mode(False):
                if pool is None and x.shape[0]:
                    pool = _Pool(attack, model, x, target)
                batch = _Batch(model, x, target, ids, start)
            waiting.append(batch)
            if x.shape[0]:
                pool.add(batch, x, target)
        while waiting and waiting[0].left == 0:
            yield waiting.popleft().result(attack, pool)
        if not waiting and ended:
            return
        if pool is not None:
            with no_trace(model, pool.device, attack.objective), torch.autocast(pool.device.type, enabled=False):
                while waiting and waiting[0].left and not pulls():
                    pool.advance()


def _lag_on(device: torch.device) -> int:
    """How many steps late the host learns who is done. Off the CPU one, so that the next step already runs and the
    device never waits."""
    return 0 if device.type == "cpu" else 1


def _pack_at(device: torch.device) -> float:
    """Once the data have run out, a batch is packed when no more than this share of its places is in use. Packing costs
    a new CUDA graph; on the CPU it costs nothing."""
    return 1.0 if device.type == "cpu" else 0.5


class _Batch:
    """What is known of a batch: its inputs, and the results of its samples as they come."""

    def __init__(self, model: Callable, x: Tensor, target: Tensor, ids: Tensor, start: Tensor | None) -> None:
        self.number = -1
        self.strides = strides_of(x)  # for the result
        self.x0, self.target = own_copies(model, x, target)
        self.ids = ids.clone()
        self.start = None if start is None else torch.empty_like(self.x0).copy_(start.detach())
        self.left, self.taken = x.shape[0], 0
        self.results: dict[str, Tensor] = {}

    def store(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            if name not in self.results:
                self.results[name] = value.new_empty((self.x0.shape[0], *value.shape[1:]))
            self.results[name][rows] = value
        self.left -= rows.numel()

    def result(self, attack: PGD, pool: _Pool | None) -> AttackResult:
        x, n, device = self.x0, self.x0.shape[0], self.x0.device
        r = self.results
        if n == 0:
            empty = torch.zeros(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=device)
            counts = torch.zeros(0, 2, dtype=torch.int32, device=device)
            r = {"best": x, "value": empty, "success": empty.bool(), "first": counts[:, 0], "status": counts}
        knows = n == 0 or pool is None or pool.knows_success
        return AttackResult(
            x_adv=with_strides(r["best"], self.strides),
            value=r["value"],
            success=r["success"] if knows else None,
            distance=attack.threat.to(device).distance(r["best"], x),
            first_success=r["first"] if knows else None,
            zero_grad_steps=r["status"][:, 0],
            nonfinite_grad_steps=r["status"][:, 1],
            samples_forwarded=int(r["passes"].sum()) if n else 0,
            samples_backwarded=int(r["passes"].sum()) if n else 0,
            why_eager=pool.step.why_eager if pool else None,
        )


class _Look:
    """What the device knew of every place at one moment, on its way to the host."""

    def __init__(self, number: int, flags: Tensor) -> None:
        self.number = number
        self.flags = flags.to("cpu", non_blocking=True)  # from CUDA into pinned memory
        self.arrived = torch.cuda.Event() if flags.device.type == "cuda" else None
        if self.arrived is not None:
            self.arrived.record(torch.cuda.current_stream(flags.device))

    def read(self) -> Tensor:
        """The flags, bool [kinds, places]; waits until they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.flags

    def keep(self, places: Tensor) -> None:
        self.flags = self.read()[:, places]


class _Pool:
    """The places for samples under attack, each sample at a step and a restart of its own.

    ``slots`` are tensors with a row a place, changed in place, so that a step can be replayed as a graph. A place is
    in use until its sample's result has been stored; whether the attack goes on there is ``slots["live"]``.
    """

    def __init__(self, attack: PGD, model: Callable, x: Tensor, target: Tensor) -> None:
        self.attack, self.device, self.size = attack, x.device, x.shape[0]
        self.kinds = {"x": (x.dtype, x.shape[1:]), "target": (target.dtype, target.shape[1:])}
        self.watched = Watched(model)
        self.threat = attack.threat.to(x.device)
        self.sign = -1.0 if attack.targeted else 1.0
        size = attack.step_length
        self.step_size = self.sign * (size.detach().to(x.device, torch.float64) if isinstance(size, Tensor) else size)
        self.rule = attack.stop if isinstance(attack.stop, Converged) else None
        self.knows_success = True
        self.packs = False  # once the data have run out, the places in use
        self.queue: deque[_Batch] = deque()  # with samples that are not in yet
        self.homes: dict[int, _Batch] = {}  # of the places, by number
        self.batches = 0
        self.lag, self.pack_at = _lag_on(x.device), _pack_at(x.device)
        self.slots = self._empty(x)
        self.step = Step(x.device, attack.graph, again=True)
        # On the host: which places are in use, by which row of which batch, at which restart, and the last look that
        # did not see this sample yet.
        self.used = torch.zeros(self.size, dtype=torch.bool, device="cpu")
        self.home, self.row, self.restart, self.not_seen_by = torch.zeros(
            (4, self.size), dtype=torch.int64, device="cpu"
        )
        self.looks = 0
        self.unread: deque[_Look] = deque()

    def _empty(self, x: Tensor) -> dict[str, Tensor]:
        n, wide = self.size, torch.float64 if x.dtype == torch.float64 else torch.float32

        def numbers(dtype: torch.dtype, *more: int) -> Tensor:
            return torch.zeros((n, *more), dtype=dtype, device=self.device)

        slots = {name: numbers(torch.int64) for name in ("id", "step", "restart", "passes", "since")}
        slots |= {"value": numbers(wide), "record": numbers(wide)}
        slots |= {"success": numbers(torch.bool), "live": numbers(torch.bool)}
        return slots | {"first": numbers(torch.int32), "status": numbers(torch.int32, 2)}

    def wants_more(self) -> bool:
        """Whether a place could be given to a sample that has not been pulled yet."""
        return sum(b.x0.shape[0] - b.taken for b in self.queue) < self.size

    def add(self, batch: _Batch, x: Tensor, target: Tensor) -> None:
        for name, value in (("x", x), ("target", target)):
            dtype, shape = self.kinds[name]
            if value.shape[1:] != shape or value.dtype != dtype:
                raise ValueError(
                    f"{name} should be like that of the batches before, {dtype} of shape "
                    f"[{', '.join(map(str, ('B', *shape)))}], got {value.dtype} of shape {tuple(value.shape)}"
                )
        self.watched.expect_label(check_inputs(self.attack, x, batch.target, None, batch.ids))
        into_box_(batch.x0, self.threat)
        batch.number = self.batches
        self.batches += 1
        self.homes[batch.number] = batch
        self.queue.append(batch)

    def advance(self) -> None:
        """One pass through the model for the samples in the pool, after new ones have come in."""
        self._fill()
        self._pack()
        self.step(self._one_step, 1)
        self.looks += 1
        self.unread.append(_Look(self.looks, torch.stack([self.slots["live"], self.slots["success"]])))
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
        """Looks at every place, keeps what is better, and moves on; in place."""
        s, attack = self.slots, self.attack
        value, logits, grad = value_and_grad(attack, self.watched, s["x"], s["target"], True)
        hit = successes(attack, logits, s["target"])
        if hit is None:
            if attack.stop == "success":
                raise ValueError(
                    'stop="success" needs labels as target, and an objective that asks the model for the logits of x '
                    "itself, or for logits once"
                )
            self.knows_success = False
            hit = torch.zeros_like(s["success"])
        value = value.to(s["value"].dtype)
        live, rank, old = s["live"], self.sign * value, self.sign * s["value"]
        s["passes"].add_(live)
        s["first"].copy_(torch.where(live & (s["first"] < 0) & hit, s["step"].to(torch.int32), s["first"]))
        ending = s["step"] >= attack.steps
        if self.rule is None:
            ending = ending | hit
        else:
            record = s["record"]
            enough = torch.where(record.isinf(), record, record + self.rule.tolerance * record.abs())
            gains = (rank > enough) | (record.isnan() & ~rank.isnan())
            record.copy_(torch.where(gains, rank, record))
            s["since"].copy_(torch.where(gains, 0, s["since"] + 1))
            ending = ending | (s["since"] >= self.rule.patience)
        higher = (rank > old) | (old.isnan() & ~rank.isnan())
        better = (hit & ~s["success"]) | ((hit == s["success"]) & higher)
        if attack.keep == "last":  # the last iterate of the first start, or a better last one of a later start
            better = ending & ((s["restart"] == 0) | better)
        better = better & live
        ops.update_best_(s["best"], torch.zeros_like(value), s["x"], better.to(value.dtype))
        s["value"].copy_(torch.where(better, value, s["value"]))
        s["success"].copy_(torch.where(better, hit, s["success"]))
        live.logical_and_(~ending)
        counts = torch.zeros_like(s["status"])
        self.threat.step_(s["x"], grad, s["x0"], self.step_size, grad_status=counts)
        s["status"].add_(counts * live[:, None])
        s["step"].add_(1)

    def _send_away(self, ended: Tensor) -> None:
        """Stores the results of these places' samples."""
        home = self.home[ended]
        for number in home.unique().tolist():
            places = ended[home == number]
            at, batch = places.to(self.device, non_blocking=True), self.homes[number]
            names = ("best", "value", "success", "first", "status", "passes")
            rows = self.row[places].to(self.device, non_blocking=True)
            batch.store(rows, {name: self.slots[name][at] for name in names})
            if batch.left == 0:
                del self.homes[number]
        self.used[ended] = False

    def _start_again(self, places: Tensor) -> None:
        """Puts these places' samples to their next start."""
        s = self.slots
        self.restart[places] += 1
        self.not_seen_by[places] = self.looks
        for restart in self.restart[places].unique().tolist():
            at = places[self.restart[places] == restart].to(self.device, non_blocking=True)
            s["x"][at] = self._start(s["x0"][at], s["id"][at], restart, at)
            s["restart"][at], s["step"][at], s["since"][at] = restart, 0, 0
            s["record"][at], s["live"][at] = float("nan"), True

    def _fill(self) -> None:
        """New samples into free places."""
        free = (~self.used).nonzero()[:, 0]
        while self.queue and free.numel():
            batch = self.queue[0]
            n = min(free.numel(), batch.x0.shape[0] - batch.taken)
            self._enter(batch, batch.taken, free[:n])
            free = free[n:]
            if batch.taken == batch.x0.shape[0]:
                self.queue.popleft()

    def _enter(self, batch: _Batch, first: int, places: Tensor) -> None:
        s, n = self.slots, places.numel()
        last = first + n
        x0, ids, rows = batch.x0[first:last], batch.ids[first:last], places.to(self.device, non_blocking=True)
        if batch.start is not None:
            x = self.threat.project_(batch.start[first:last].clone(), x0)
        elif self.attack.random_start:
            x = self._start(x0, ids, 0, rows)
        else:
            x = self.threat.project_(x0.clone(), x0)
        target = batch.target[first:last]
        if "x" not in s:  # the first samples: their shapes are everyone's
            s |= {"x": x.clone(), "x0": x0.clone(), "best": x0.clone(), "target": target.clone()}
        else:
            s["x"][rows], s["x0"][rows], s["best"][rows], s["target"][rows] = x, x0, x0, target
        for name in ("step", "restart", "passes", "since", "status"):
            s[name][rows] = 0
        s["id"][rows] = ids
        s["value"][rows], s["record"][rows] = float("nan"), float("nan")
        s["success"][rows], s["live"][rows], s["first"][rows] = False, True, -1
        self.used[places], self.not_seen_by[places], self.restart[places] = True, self.looks, 0
        self.home[places], self.row[places] = batch.number, torch.arange(first, last, device="cpu")
        batch.taken = last

    def _pack(self) -> None:
        """Leaves the free places out of the passes, once there is nobody to give them to."""
        n, used = self.used.numel(), int(self.used.sum())
        if not self.packs or self.queue or used == n or used == 0 or used > self.pack_at * n:
            return
        kept = self.used.nonzero()[:, 0]
        rows = kept.to(self.device)
        self.slots = {name: value[rows] for name, value in self.slots.items()}
        self.threat = self.threat.rows(rows)
        if isinstance(self.step_size, Tensor) and self.step_size.dim() == 1:
            self.step_size = self.step_size[rows]
        for look in self.unread:
            look.keep(kept)
        self.used, self.home, self.row = self.used[kept], self.home[kept], self.row[kept]
        self.restart, self.not_seen_by = self.restart[kept], self.not_seen_by[kept]
        self.step = Step(self.device, self.attack.graph, again=True)

    def _start(self, x0: Tensor, ids: Tensor, restart: int, places: Tensor) -> Tensor:
        threat = self.threat.rows(places)
        return threat.project_(random_start(self.attack, threat, x0, ids, restart), x0)
