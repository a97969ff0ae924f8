"""The batch that stays full: samples that are done leave, the next of the data set take their places.

As serving systems do for language models. Under ``stop="success"`` most samples of a standard model fall in the first
steps and a few take all of them: a batch that only shrinks ends as a handful of samples, whose passes through the model
cost nearly as much as those of a full batch. Here every pass is full until the data set runs out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advfeat import ops
from advfeat.attacks.engine import look_every, random_start, successes, value_and_grad
from advfeat.attacks.inputs import check_inputs
from advfeat.attacks.no_trace import Watched, no_trace
from advfeat.attacks.result import AttackResult
from advfeat.objectives import are_labels

if TYPE_CHECKING:
    from advfeat.attacks.pgd import PGD


def over(attack: PGD, model: Callable, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Iterator[AttackResult]:
    """The results of ``attack``, one a batch ``(x, target, sample_ids)`` and in order, with the model's passes kept
    full.

    For ``stop="success"`` and numbers that are not per sample. A pass has as many samples as the first batch. Each
    sample's result is that of ``attack.run``, but for rounding that depends on the batch inside the model.
    """
    source, ended = iter(batches), False
    waiting: deque[_Batch] = deque()  # pulled and not yet yielded
    pool: _Pool | None = None
    while True:
        # Pulled outside no_trace: a loader may draw random numbers, and they are its own.
        while not ended and (pool is None or pool.wants_more()):
            try:
                x, target, ids = next(source)
            except StopIteration:
                ended = True
                break
            if x.shape[0] == 0:
                waiting.append(_Batch(x, target, ids))
                continue
            if pool is None:
                pool = _Pool(attack, model, x)
            waiting.append(pool.add(x, target, ids))
        while waiting and waiting[0].left == 0:
            yield waiting.popleft().result(attack)
        if not waiting and ended:
            return
        if pool is not None:
            with no_trace(model, pool.device), torch.autocast(pool.device.type, enabled=False):
                while waiting and waiting[0].left and not (pool.wants_more() and not ended):
                    pool.advance()


class _Batch:
    """What is known of a batch: its inputs, and the results of its samples as they come."""

    def __init__(self, x: Tensor, target: Tensor, ids: Tensor, number: int = 0) -> None:
        self.number = number
        # Clones: tensors made under inference_mode cannot take part in autograd, and the caller may change his.
        self.x0, self.target, self.ids = x.detach().clone(), target.detach().clone(), ids.clone()
        if are_labels(target):
            self.target = self.target.to(torch.int64)
        n = x.shape[0]
        self.left, self.taken = n, 0
        self.results: dict[str, Tensor] = {}

    def store(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            if name not in self.results:
                self.results[name] = value.new_empty((self.x0.shape[0], *value.shape[1:]))
            self.results[name][rows] = value
        self.left -= rows.numel()

    def result(self, attack: PGD) -> AttackResult:
        x, n, device = self.x0, self.x0.shape[0], self.x0.device
        r = self.results
        if n == 0:
            empty = torch.zeros(0, dtype=torch.float32, device=device)
            counts = torch.zeros(0, 2, dtype=torch.int32, device=device)
            r = {"x": x, "value": empty, "success": empty.bool(), "first": counts[:, 0], "status": counts}
        return AttackResult(
            x_adv=r["x"],
            value=r["value"],
            success=r["success"],
            distance=attack.threat.to(device).distance(r["x"], x),
            first_success=r["first"],
            zero_grad_steps=r["status"][:, 0],
            nonfinite_grad_steps=r["status"][:, 1],
            samples_forwarded=int(r["passes"].sum()) if n else 0,
            samples_backwarded=int(r["passes"].sum()) if n else 0,
        )


class _Pool:
    """The samples under attack, each at a step and a restart of its own."""

    def __init__(self, attack: PGD, model: Callable, x: Tensor) -> None:
        self.attack, self.device, self.size = attack, x.device, x.shape[0]
        self.watched = Watched(model)
        self.threat = attack.threat.to(x.device)
        self.sign = -1.0 if attack.targeted else 1.0
        self.queue: deque[_Batch] = deque()  # with samples that are not in yet
        self.homes: dict[int, _Batch] = {}  # of the slots, by number
        self.batches = 0
        self.slots: dict[str, Tensor] = {}
        self.steps_to_look = 1
        self.every = look_every(x.device)

    def wants_more(self) -> bool:
        """Whether a place could be given to a sample that has not been pulled yet."""
        return sum(b.x0.shape[0] - b.taken for b in self.queue) < self.size

    def add(self, x: Tensor, target: Tensor, ids: Tensor) -> _Batch:
        largest = check_inputs(self.attack, x, target, None, ids)
        if largest is not None:
            self.watched.expect_label(largest)
        batch = _Batch(x, target, ids, self.batches)
        self.batches += 1
        self.homes[batch.number] = batch
        self.queue.append(batch)
        return batch

    def advance(self) -> None:
        """One pass through the model for the samples in the pool, after new ones have come in."""
        self._fill()
        s, attack = self.slots, self.attack
        value, logits, grad = value_and_grad(attack, self.watched, s["x"], s["target"], True)
        hit = successes(attack, logits, s["target"])
        if hit is None:
            raise ValueError('stop="success" needs labels as target and an objective that asks the model for logits')
        value = value.to(s["value"].dtype)
        live, last = ~s["done"], s["step"] == attack.steps
        s["passes"] += live
        s["first"] = torch.where(live & (s["first"] < 0) & hit, s["step"].to(torch.int32), s["first"])
        better = hit
        rank, old = self.sign * value, self.sign * s["value"]
        higher = (rank > old) | (old.isnan() & ~rank.isnan())
        if attack.keep == "best":
            better = hit | higher
        else:  # the last iterate of the first start, or a better last one of a later start
            better = hit | last & ((s["restart"] == 0) | higher)
        better = better & live & ~s["success"]
        ops.update_best_(s["best"], torch.zeros_like(value), s["x"], better.to(value.dtype))
        s["value"] = torch.where(better, value, s["value"])
        s["success"] = s["success"] | (hit & live)
        s["done"] = s["done"] | s["success"] | last
        counts = torch.zeros_like(s["status"])
        self.threat.step_(s["x"], grad, s["x0"], self.sign * attack.step_length, grad_status=counts)
        s["status"] += counts * ~s["done"][:, None]
        s["step"] += 1
        self.steps_to_look -= 1
        if self.steps_to_look == 0:
            self.steps_to_look = self.every
            self._look()

    def _look(self) -> None:
        """Sends away what is done, and back to a new start what has restarts left; waits for the device."""
        s = self.slots
        again = torch.where(s["done"] & ~s["success"], s["restart"] + 1, 0)
        for restart in range(1, self.attack.restarts):
            rows = (again == restart).nonzero()[:, 0]
            if rows.numel():
                s["x"][rows] = self._start(s["x0"][rows], s["id"][rows], restart)
                s["restart"][rows], s["step"][rows], s["done"][rows] = restart, 0, False
        leaving = s["done"].nonzero()[:, 0]
        if leaving.numel() == 0:
            return
        home = s["home"][leaving]
        for number in home.unique().tolist():
            own = leaving[home == number]
            values = {name: s[name][own] for name in ("value", "success", "first", "status", "passes")}
            batch = self.homes[number]
            batch.store(s["row"][own], values | {"x": s["best"][own]})
            if batch.left == 0:
                del self.homes[number]
        stay = (~s["done"]).nonzero()[:, 0]
        self.slots = {name: value[stay] for name, value in s.items()}

    def _fill(self) -> None:
        """New samples into free places."""
        while self.queue:
            here = self.slots["x"].shape[0] if self.slots else 0
            batch = self.queue[0]
            first, last = batch.taken, min(batch.taken + self.size - here, batch.x0.shape[0])
            if last == first:
                return
            self._enter(batch, first, last)
            if batch.taken == batch.x0.shape[0]:
                self.queue.popleft()

    def _enter(self, batch: _Batch, first: int, last: int) -> None:
        n, x0, ids = last - first, batch.x0[first:last].clone(), batch.ids[first:last]
        x = self._start(x0, ids, 0) if self.attack.random_start else self.threat.project_(x0.clone(), x0)
        wide = torch.float64 if x0.dtype == torch.float64 else torch.float32

        def numbers(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((n,), value, dtype=dtype, device=self.device)

        new = {
            "x": x,
            "x0": x0,
            "best": x0.clone(),
            "target": batch.target[first:last],
            "id": ids,
            "home": numbers(batch.number, torch.int64),
            "row": torch.arange(first, last, device=self.device),
            "step": numbers(0, torch.int64),
            "restart": numbers(0, torch.int64),
            "passes": numbers(0, torch.int64),
            "value": numbers(float("nan"), wide),
            "success": numbers(False, torch.bool),
            "done": numbers(False, torch.bool),
            "first": numbers(-1, torch.int32),
            "status": torch.zeros(n, 2, dtype=torch.int32, device=self.device),
        }
        self.slots = {k: torch.cat([self.slots[k], v]) for k, v in new.items()} if self.slots else new
        batch.taken = last

    def _start(self, x0: Tensor, ids: Tensor, restart: int) -> Tensor:
        return self.threat.project_(random_start(self.attack, self.threat, x0, ids, restart), x0)
