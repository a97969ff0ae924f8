"""The base classes of all attacks: settings that can be copied and serialised, and runs over batches and data sets."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from advfeat._arguments import check_autocast, flag, number, whole_number
from advfeat.attacks.context import Run, undisturbed
from advfeat.attacks.inputs import check_inputs, check_tensor
from advfeat.attacks.result import AttackResult
from advfeat.objectives import Objective
from advfeat.ops import Number
from advfeat.random import fresh_seed
from advfeat.settings import as_json, settings_of
from advfeat.threat import Threat


class Attack:
    """Base class of the attacks: frozen dataclasses with a ``threat``, ``targeted`` and ``autocast``.

    A subclass implements :meth:`_run`, whose inputs are checked and copied. Its settings are the fields of the
    dataclass; one that does not affect the result is ``field(metadata=advfeat.settings.CHANGES_NO_RESULT)``.

    Attributes:
        threat: the ball and the box, such as :class:`advfeat.L2`.
        targeted: whether the attack moves towards ``target`` instead of away from it.
        autocast: the dtype in which the model runs under autocast; None for no autocast.
        takes_start: whether :meth:`run` accepts a ``start``.
        objectives: those that a user may have written, which can hold modules of their own.
    """

    if TYPE_CHECKING:  # read-only: a subclass has a field of a frozen dataclass or a property of each name

        @property
        def threat(self) -> Threat:
            """The ball and the box."""

        @property
        def targeted(self) -> bool:
            """Whether the attack moves towards its target."""

        @property
        def autocast(self) -> torch.dtype | None:
            """The dtype of autocast, or None."""

        @property
        def takes_start(self) -> bool:
            """Whether a start is accepted."""

        @property
        def objectives(self) -> tuple[Objective, ...]:
            """The objectives that a user may have written."""

    else:
        takes_start = True
        objectives = ()

    def to_dict(self) -> dict:
        """The settings as JSON values, as recorded beside every result; cached results are found by them.

        Returns:
            A dict from setting names to JSON values.
        """
        found: dict = {"attack": type(self).__name__}
        for name, value in settings_of(self).items():
            if isinstance(value, Threat):
                found |= value.to_dict()
            else:
                found[name] = value.name if isinstance(value, Objective) else as_json(value)
        return found

    def _run(self, run: Run) -> AttackResult:
        """Runs the attack on a batch whose tensors must not be changed; the model is in eval mode."""
        raise NotImplementedError

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """Checks the inputs of a call.

        Args:
            x: [B, ...] floating-point images.
            target: [B, ...].
            start: the first iterate, like x, or None.
            sample_ids: int64 [B], or None.

        Returns:
            The largest label; None if ``target`` holds no labels.

        Raises:
            ValueError: an input cannot be attacked.
            TypeError: an input is not a tensor.
        """
        raise NotImplementedError

    def replace(self, **changes):
        """A copy with some settings changed.

        Args:
            **changes: new values by setting name.

        Returns:
            The copy; this attack is unchanged.
        """
        return dataclasses.replace(self, **changes)

    def run(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        *,
        start: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> AttackResult:
        """The adversarial examples with their statistics.

        Args:
            model: any callable that returns logits [B, classes], as a tensor or as an output with ``.logits``.
            x: [B, ...] floating-point, the centre of the ball; in the box up to rounding, which is clipped.
            target: the labels to move away from, or with ``targeted`` towards, int64 [B]; in general, whatever the
                objective takes.
            start: the first iterate, which is projected; None for x itself or a random point.
            sample_ids: int64 [B], the identities of the samples, which key the random starts; None for 0 ... B-1.

        Returns:
            The examples with success, objective, distance and counts.

        Raises:
            ValueError: an argument is invalid; the message names it.
            TypeError: the model does not return logits.
        """
        return self._call(model, x, target, start, sample_ids, statistics=True)

    def __call__(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        *,
        start: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """The adversarial examples alone.

        Skips the last forward pass of :meth:`run` if the examples do not depend on it.

        Args:
            model: as for :meth:`run`.
            x: as for :meth:`run`.
            target: as for :meth:`run`.
            start: as for :meth:`run`.
            sample_ids: as for :meth:`run`.

        Returns:
            The adversarial examples [B, ...].

        Raises:
            ValueError: as for :meth:`run`.
            TypeError: as for :meth:`run`.
        """
        return self._call(model, x, target, start, sample_ids, statistics=False).x_adv

    def _call(
        self,
        model: Callable,
        x: Tensor,
        target: Tensor,
        start: Tensor | None,
        sample_ids: Tensor | None,
        statistics: bool,
    ) -> AttackResult:
        check_tensor("x", x, "a floating-point batch [B, ...]")
        attack = self._seeded(fresh=sample_ids is None)
        with undisturbed(attack, model, x.device):
            return attack._run(Run(attack, model, x, target, start, sample_ids, statistics=statistics))

    def part_of(self, run: Run) -> AttackResult:
        """The result as part of another attack, with statistics.

        Args:
            run: a run, or some rows of one.

        Returns:
            The result for the samples of ``run``.
        """
        run.statistics = True
        per_sample = isinstance(self.threat.eps, Tensor) and self.threat.eps.dim() > 0
        return (self.replace(threat=run.threat) if per_sample else self)._run(run)

    @property
    def lacks_seed(self) -> bool:
        """Whether the attack has random starts without a fixed seed."""
        return False

    def with_seed(self, seed: int) -> Attack:
        """A copy whose unseeded random starts use this seed.

        Args:
            seed: the seed.

        Returns:
            The copy, or the attack itself if it needs no seed.
        """
        return self

    def _seeded(self, fresh: bool) -> Attack:
        """The attack for one call; with ``fresh``, unseeded random starts get a new seed."""
        return self.with_seed(fresh_seed()) if fresh and self.lacks_seed else self

    def over(self, model: Callable, batches: Iterable[Any]) -> Iterator[tuple[Any, AttackResult]]:
        """Attacks a whole data set; yields each batch, as it was given, with its result, in order.

        Some attacks start several batches before they yield the first result.

        Args:
            model: as for :meth:`run`; it must not change before the last result.
            batches: tuples or lists ``(x, target)``, ``(x, target, sample_ids)`` or ``(x, target, sample_ids, ...)``;
                anything after the ids is only passed through. ``sample_ids`` may be None: samples are then numbered
                consecutively, so that random starts do not depend on the batch size.

        Yields:
            Pairs of a batch and its result.

        Raises:
            TypeError: a batch has another form, or as for :meth:`run`.
            ValueError: as for :meth:`run`.

        Example:
            for (x, y), result in attack.over(model, loader):
                ...
        """
        queued = _numbered(batches)
        for first in queued:
            attack = self._seeded(fresh=not first.has_ids)
            yield from attack._over(model, itertools.chain([first], queued))

    def _over(self, model: Callable, batches: Iterator[Batch]) -> Iterator[tuple[Any, AttackResult]]:
        """:meth:`over`, for an attack whose seeds are set."""
        for batch in batches:
            yield batch.given, self.run(model, batch.x, batch.target, sample_ids=batch.ids)


if TYPE_CHECKING:

    class GivenObjective:
        """A field that takes an objective or a function, and holds the objective that ``__post_init__`` makes of it.

        A default comes as Any: type checkers compare it with the class itself, not with what the field takes.
        """

        def __get__(self, attack: object, owner: object) -> Objective: ...
        def __set__(self, attack: object, given: Objective | Callable) -> None: ...

else:
    GivenObjective = Objective | Callable


class GradientAttack(Attack):
    """An attack that follows the gradient of one objective from one or more starts.

    Attributes:
        steps: gradient steps, at least 0.
        objective: maximised, or minimised with ``targeted``.
        random_start: whether starts are random points of the ball.
        restarts: number of starts, at least 1.
        seed: of the random starts; None for a new one at every call without sample ids.
        step_size: as given, or the name of a rule; None for the attack's own choice.
    """

    steps: int
    objective: GivenObjective
    random_start: bool
    restarts: int
    seed: int | None
    step_size: Number | str | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objective, as a tuple of one."""
        return (self.objective,)

    @property
    def step_length(self) -> Number | None:
        """The size of the first step, a float or a tensor [B]; None if it depends on the gradient."""
        raise NotImplementedError

    def check(self, x: Tensor, target: Tensor, start: Tensor | None, sample_ids: Tensor | None) -> int | None:
        """See :meth:`Attack.check`."""
        return check_inputs(self, x, target, start, sample_ids)

    @property
    def lacks_seed(self) -> bool:
        """See :attr:`Attack.lacks_seed`."""
        return self.random_start and self.seed is None

    def with_seed(self, seed: int) -> GradientAttack:
        """See :meth:`Attack.with_seed`."""
        return self.replace(seed=seed) if self.lacks_seed else self


class Batch(NamedTuple):
    """A batch of a data set under attack.

    Attributes:
        x: images [B, ...].
        target: [B, ...].
        ids: int64 [B].
        has_ids: whether the caller gave the ids.
        given: the batch as the caller gave it.
    """

    x: Tensor
    target: Tensor
    ids: Tensor
    has_ids: bool
    given: Any


def _numbered(batches: Iterable[Any]) -> Iterator[Batch]:
    """The batches with ids; samples without ids are numbered consecutively."""
    seen = 0
    for given in batches:
        if not isinstance(given, (tuple, list)) or len(given) < 2:
            what = f"{type(given).__name__}" + (f" of {len(given)}" if isinstance(given, (tuple, list)) else "")
            keys = f" with {', '.join(map(repr, given))}" if isinstance(given, dict) else ""
            raise TypeError(f"batches should be (x, target) or (x, target, sample_ids, ...), got a {what}{keys}")
        x, target, ids = given[0], given[1], given[2] if len(given) > 2 else None
        check_tensor("x", x, "a floating-point batch [B, ...]")
        if isinstance(target, int):
            raise TypeError(
                f"batches should hold target as a tensor [B, ...], got the number {target}: a data set gives single "
                "samples, a torch.utils.data.DataLoader of it gives batches"
            )
        if ids is not None and not isinstance(ids, Tensor):
            raise TypeError(
                f"the third entry of a batch should be sample_ids, an int64 tensor [B], got {type(ids).__name__}: give "
                "(x, target) where there are none, or (x, target, None, ...)"
            )
        numbers = torch.arange(seen, seen + x.shape[0], device=x.device) if ids is None else ids
        yield Batch(x, target, numbers, ids is not None, given)
        seen += x.shape[0]


class Settings(Protocol):
    """The settings that :func:`check_settings` compares, of a gradient attack or of several in one."""

    @property
    def threat(self) -> Threat:
        """The ball and the box."""

    @property
    def targeted(self) -> bool:
        """Whether the attack moves towards its target."""

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast, or None."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives that a user may have written."""

    @property
    def random_start(self) -> bool:
        """Whether starts are random points of the ball."""

    @property
    def restarts(self) -> int:
        """The number of starts."""

    @property
    def seed(self) -> int | None:
        """Of the random starts."""


def take_integer(attack: object, name: str, least: int | None) -> None:
    """Converts a setting to a Python integer, as JSON needs it.

    Args:
        attack: the attack, whose field is set.
        name: the name of the setting.
        least: the smallest allowed value; None for no limit.

    Raises:
        TypeError: the setting is not an integer.
        ValueError: the setting is below ``least``.
    """
    object.__setattr__(attack, name, whole_number(name, getattr(attack, name), least))


def take_number_below(attack: object, name: str, most: float) -> None:
    """Converts a setting to a Python float between 0 and a limit, both excluded.

    Args:
        attack: the attack, whose field is set.
        name: the name of the setting.
        most: the limit.

    Raises:
        TypeError: the setting is not a number.
        ValueError: the setting is out of range.
    """
    value = float(number(name, getattr(attack, name)))
    object.__setattr__(attack, name, value)
    if not 0 < value < most:
        raise ValueError(f"{name} should be above 0 and below {most:g}, got {value:g}")


def check_settings(attack: Settings) -> None:
    """Checks the settings that all attacks share, and converts integers and flags (NumPy's too) to Python's.

    Args:
        attack: the attack, whose fields are set.

    Raises:
        TypeError: the threat, or another setting, has the wrong type.
        ValueError: steps, restarts, seed or autocast is out of range; ``restarts`` is given without ``random_start``;
            ``random_start`` with an infinite eps; or ``targeted`` with an objective that would lead away from the
            target.
    """
    if not isinstance(attack.threat, Threat) or type(attack.threat) is Threat:
        raise TypeError(f"threat should be advfeat.L2(eps) or advfeat.Linf(eps), got {attack.threat!r}")
    for name in ("targeted", "random_start", "graph"):
        object.__setattr__(attack, name, flag(name, getattr(attack, name)))
    check_autocast(attack.autocast)
    take_integer(attack, "steps", 0)
    take_integer(attack, "restarts", 1)
    if attack.restarts > 1 and not attack.random_start:
        raise ValueError(f"restarts={attack.restarts} needs random_start=True: all restarts would be the same")
    if attack.seed is not None:
        take_integer(attack, "seed", None)
    for objective in attack.objectives:
        if attack.targeted and objective.untargeted_only:
            raise ValueError(
                f"targeted should be False for {objective.name}, which an untargeted attack pushes up, got True"
            )
    if attack.random_start and not isinstance(attack.threat.eps, Tensor) and not math.isfinite(attack.threat.eps):
        raise ValueError("random_start needs a finite eps")
