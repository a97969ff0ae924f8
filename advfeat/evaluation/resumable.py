"""An attack on a data set that keeps what it finds in the state of an evaluation, and resumes from it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor

from advfeat._stopwatch import Stopwatch
from advfeat.attacks import Attack, AttackResult
from advfeat.attacks.breakdown import Cost
from advfeat.attacks.ensemble import InTurn
from advfeat.evaluation.state import State
from advfeat.forward import device_of
from advfeat.progress import Reporter

Samples = tuple[Tensor, Tensor, Tensor]

# What is found is written so often: a kill costs little, and a long evaluation has no more files than minutes times 6.
_SECONDS = 10.0
_PER_SAMPLE = ("value", "distance", "zero_grad_steps", "nonfinite_grad_steps")


def in_turn(attack: Attack) -> list[tuple[str, Attack]]:
    """List the single attacks that an attack consists of.

    Args:
        attack: The attack.

    Returns:
        Each with its name in the breakdown of ``attack``; "" for an evaluation at x.
    """
    if not isinstance(attack, InTurn):
        return [(type(attack).__name__, attack)]
    pairs = zip(attack.names, attack.attacks, strict=True)
    return [(name, single) for name, one in pairs for _, single in in_turn(one)]


def over(
    attack: Attack,
    model: Callable,
    ids: Tensor,
    batch_size: int,
    batches: Callable[[Sequence[Tensor]], Generator[Samples, None, None]],
    state: State,
    key: str,
    report: Reporter,
) -> Iterator[tuple[Samples, AttackResult]]:
    """Attack samples as :meth:`Attack.over` does, except those whose outcome is known.

    Each single attack is run on all samples that are left before the next one begins. An outcome depends on its sample
    alone, not on its batch, so that resuming gives what an undisturbed evaluation finds, also in other batches.

    Args:
        attack: The attack.
        model: The attacked model.
        ids: int64 [n], positions of the samples in the data set.
        batch_size: Images per batch.
        batches: Reads the batches of these ids: images, labels and ids on the device.
        state: What is known; what is found is added.
        key: Name of the attack and of the round of the evaluation.
        report: Progress; counts samples whose outcome is final.

    Yields:
        Each batch with its result.
    """
    found = _Found(attack, ids, device_of(model))
    for part in state.parts(key):
        found.take(part.turn, part.tensors(), part.cost)
    report.advance(found.final)
    for turn, (_, single) in enumerate(found.attacks):
        if len(rows := found.left(turn)):
            with contextlib.closing(batches(ids[rows].split(batch_size))) as given:
                _run(turn, single, model, given, found, state, key, report)
    chunks = ids.split(batch_size) if len(ids) else ()
    whole = found.result()
    with contextlib.closing(batches(chunks)) as given:
        for samples, result in zip(given, whole.split([len(chunk) for chunk in chunks]) if whole else (), strict=True):
            yield samples, _on(samples[0].device, result)


def _run(
    turn: int,
    attack: Attack,
    model: Callable,
    batches: Iterator[Samples],
    found: _Found,
    state: State,
    key: str,
    report: Reporter,
) -> None:
    """Run one attack on what is left, and write what it finds now and then, and at the end or on an error."""
    waiting: list[dict[str, Tensor]] = []
    cost, watch, timed, written = Cost(), Stopwatch(found.device), 0.0, time.monotonic()

    def write() -> None:
        nonlocal cost, written
        if waiting:
            tensors = {name: torch.cat([one[name] for one in waiting]) for name in waiting[0]}
            state.add(key, turn, cost, tensors)
        waiting.clear()
        cost, written = Cost(), time.monotonic()

    try:
        for (_, _, ids), result in watch.of(attack.over(model, watch.without(batches))):
            tensors = _to_keep(ids, result, found.keeps_failures(turn))
            own = Cost(result.samples_forwarded, result.samples_backwarded, watch.seconds - timed)
            timed, cost = watch.seconds, cost + own
            before = found.final
            found.take(turn, tensors, own)
            waiting.append(tensors)
            report.advance(found.final - before)
            if time.monotonic() - written >= _SECONDS:
                write()
    finally:
        write()


def _to_keep(ids: Tensor, result: AttackResult, failures: bool) -> dict[str, Tensor]:
    """The tensors of a result that are written: of the samples that were not broken only the first examples."""
    tensors = {name: getattr(result, name).cpu() for name in _PER_SAMPLE}
    tensors["ids"] = ids.cpu()
    success = torch.zeros(len(ids), dtype=torch.bool, device="cpu")
    if result.success is not None and result.first_success is not None:
        success = result.success.cpu()
        tensors |= {"success": success, "first_success": result.first_success.cpu()}
    kept = (success | failures).nonzero()[:, 0]
    return tensors | {"x_adv": result.x_adv.cpu()[kept]}


class _Found:
    """The outcome of an attack for n samples as far as it is known, on the CPU.

    Args:
        attack: The attack.
        ids: int64 [n], positions of the samples in the data set.
        device: Device of the model.

    Attributes:
        attacks: The single attacks, with their names in the breakdown.
    """

    def __init__(self, attack: Attack, ids: Tensor, device: torch.device) -> None:
        self.device = device
        self.attacks = in_turn(attack)
        self._n, (self._sorted, self._order) = len(ids), ids.sort()
        names = list(dict.fromkeys(name for name, _ in self.attacks if name))
        self._position = {"": -1} | {name: i for i, name in enumerate(names)}
        self._costs = dict.fromkeys(names, Cost())
        self._done = torch.zeros(len(self.attacks), self._n, dtype=torch.bool, device="cpu")
        self._broken = torch.zeros(self._n, dtype=torch.bool, device="cpu")
        self._result: AttackResult | None = None
        self._knows_success = True

    def keeps_failures(self, turn: int) -> bool:
        """Return whether the examples of an attack count where it fails.

        They do for the first attack that takes steps, as in :class:`advfeat.Ensemble`.

        Args:
            turn: Number of the attack.
        """
        return all(getattr(attack, "steps", 1) == 0 for _, attack in self.attacks[:turn])

    @property
    def final(self) -> int:
        """The number of samples that no attack remains for."""
        return int((self._broken | self._done[-1]).sum())

    def left(self, turn: int) -> Tensor:
        """Return the samples that an attack is to be run on.

        Args:
            turn: Number of the attack.

        Returns:
            int64 [m], their rows.
        """
        return (~self._broken & ~self._done[turn]).nonzero()[:, 0]

    def take(self, turn: int, tensors: dict[str, Tensor], cost: Cost) -> None:
        """Add the outcome of an attack; samples that are no longer of interest are skipped.

        Args:
            turn: Number of the attack.
            tensors: As :func:`_to_keep` makes them.
            cost: What it cost.
        """
        ids, failures = tensors["ids"], self.keeps_failures(turn)
        knows = "success" in tensors
        success = tensors["success"] if knows else torch.zeros(len(ids), dtype=torch.bool, device="cpu")
        at = torch.searchsorted(self._sorted, ids).clamp(max=max(self._n - 1, 0))
        rows = self._order[at] if self._n else at
        wanted = at < 0
        if self._n:
            # Where the file of an attack before it is gone, this one is repeated as well.
            follows = self._done[:turn, rows].all(dim=0)
            wanted = (self._sorted[at] == ids) & ~self._broken[rows] & ~self._done[turn, rows] & follows
        images = tensors["x_adv"]
        x_adv = images.new_zeros(len(ids), *images.shape[1:])
        x_adv[success | failures] = images
        part = AttackResult(
            x_adv=x_adv[wanted],
            success=success[wanted],
            first_success=tensors["first_success"][wanted] if knows else torch.full_like(ids[wanted], -1).int(),
            value=tensors["value"][wanted],
            distance=tensors["distance"][wanted],
            zero_grad_steps=tensors["zero_grad_steps"][wanted],
            nonfinite_grad_steps=tensors["nonfinite_grad_steps"][wanted],
            samples_forwarded=0,
            samples_backwarded=0,
        )
        rows = rows[wanted]
        if self._result is None:
            self._result = self._empty(part)
        self._result.take_over(rows, part, failures)
        hit = rows[success[wanted]]
        assert self._result.broken_by is not None
        self._result.broken_by[hit], self._broken[hit] = self._position[self.attacks[turn][0]], True
        self._done[turn, rows] = True
        self._knows_success = knows
        self._costs[next(name for name, _ in self.attacks[turn:] if name)] += cost

    def _empty(self, like: AttackResult) -> AttackResult:
        def fill(tensor: Tensor, value: float) -> Tensor:
            return tensor.new_full((self._n, *tensor.shape[1:]), value)

        assert like.success is not None and like.first_success is not None
        broken_by = like.first_success.new_full((self._n,), -1)
        return AttackResult(
            x_adv=fill(like.x_adv, 0),
            value=fill(like.value, float("nan")),
            success=fill(like.success, False),
            distance=fill(like.distance, 0),
            first_success=fill(like.first_success, -1),
            zero_grad_steps=fill(like.zero_grad_steps, 0),
            nonfinite_grad_steps=fill(like.nonfinite_grad_steps, 0),
            samples_forwarded=0,
            samples_backwarded=0,
            broken_by=broken_by,
        )

    def result(self) -> AttackResult | None:
        """Return the result for all samples, None if there are none."""
        if self._result is None or not self._n:
            return None
        found, knows = self._result, self._knows_success
        return dataclasses.replace(
            found,
            success=found.success if knows else None,
            first_success=found.first_success if knows else None,
            samples_forwarded=sum(cost.samples_forwarded for cost in self._costs.values()),
            samples_backwarded=sum(cost.samples_backwarded for cost in self._costs.values()),
            costs=self._costs,
        )


def _on(device: torch.device, result: AttackResult) -> AttackResult:
    """Move a result to a device."""
    moved = copy.copy(result)
    for f in dataclasses.fields(result):
        if isinstance(value := getattr(result, f.name), Tensor):
            setattr(moved, f.name, value.to(device))
    return moved
