"""Options that several commands share, and the numbers and paths that they take.

Numbers are checked by :func:`settled` before anything runs, so that the sentence names the option.
"""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

if TYPE_CHECKING:
    from advfeat.threat import Threat

Radii = TypeVar("Radii", float, tuple[float, ...])
# advfeat.threat.NORMS, which would import torch.
Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class Within:
    """The numbers that an option takes, both ends included. hint: what a user may have meant instead."""

    low: float
    high: float
    hint: str = ""


def parse_number(text: str) -> float:
    """A number as the field writes it: 0.03, .03, 3e-2 or 8/255. Errors: ValueError."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"should be a number such as 0.03, 3e-2 or 8/255, got {text!r}") from None


def _shown(value: float | None) -> str:
    return "None" if value is None else f"{value:g}"


def _number(optional: bool) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda given: parse_number(given[0]),
        is_instance=lambda value: isinstance(value, (int, float)) or (optional and value is None),
        str_from_instance=lambda value: [_shown(value)],
    )


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"should be a whole number, got {text!r}") from None


_NUMBERS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="[FLOAT ...]",
    instance_from_str=lambda given: tuple(parse_number(text) for text in given),
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda value: ["None"] if value is None else [f"{v:g}" for v in value],
)
_INTEGER = PrimitiveConstructorSpec(
    nargs=1,
    metavar="INT",
    instance_from_str=lambda given: _whole(given[0]),
    is_instance=lambda value: value is None or isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)


def _text(metavar: str, make: type) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda given: make(given[0]),
        is_instance=lambda value: value is None or isinstance(value, make),
        str_from_instance=lambda value: [str(value)],
    )


def _given_path(text: str) -> Path:
    if not text:  # of a variable of the shell that is not set: it would be the current folder
        raise ValueError("should be a path, got an empty text")
    return Path(text)


# Where nothing is the default, the help says in words what that means.
_QUIET = arg(help_behavior_hint=lambda default: "" if default == "None" else f"(default: {default})")

OptionalPath = Annotated[Path | None, _text("PATH", _given_path), _QUIET]
NeededPath = Annotated[Path, _text("PATH", _given_path)]
OptionalText = Annotated[str | None, _text("STR", str), _QUIET]
Number = Annotated[float, _number(optional=False), Within(0, 10**6)]
OptionalNumber = Annotated[float | None, _number(optional=True), _QUIET]
# Images lie in [0, 1]: beyond these there is nothing left to reach, and float32 ends somewhere.
_RADIUS = Within(0, 10_000, "radii are in pixel scale [0, 1], as in 8/255")
Radius = Annotated[float, _number(optional=False), _RADIUS]
OptionalRadius = Annotated[float | None, _number(optional=True), _RADIUS, _QUIET]
OptionalRadii = Annotated[tuple[float, ...] | None, _NUMBERS, _RADIUS, _QUIET]
Count = Annotated[int, _INTEGER, Within(1, 10**9)]
OptionalCount = Annotated[int | None, _INTEGER, Within(1, 10**9), _QUIET]
CountOrNone = Annotated[int, _INTEGER, Within(0, 10**9)]
OptionalCountOrNone = Annotated[int | None, _INTEGER, Within(0, 10**9), _QUIET]
OptionalMinutes = Annotated[float | None, _number(optional=True), Within(0, 10**7), _QUIET]
# Some seeds are made of others by adding a few; all have to be what torch takes.
Seed = Annotated[int, _INTEGER, Within(0, 2**62)]


def root_from_environment() -> Path | None:
    root = os.environ.get("ADVFEAT_DATA")
    return Path(root) if root else None


@dataclass(frozen=True)
class Data:
    """Which images."""

    dataset: str = "digits"
    """digits, planted, cifar10, cifar10.1, fashion-mnist, mnist, folder, or the folder of a constructed set."""
    root: OptionalPath = field(default_factory=root_from_environment)
    """Where the data set lies (default: the environment variable ADVFEAT_DATA); digits and planted need none."""
    limit: OptionalCount = None
    """Use a class-balanced part of this many images."""
    size: Annotated[int | tuple[int, int] | None, Within(1, 10_000), _QUIET] = None
    """Side in pixels, or height and width, to which the images of a folder are brought; a model's own by default."""
    holdout: OptionalNumber = None
    """Of a folder without test images: hold out this share of the training images, the same ones in every command."""

    def load(self, split: str, input_shape: tuple[int, ...] | None = None):
        """input_shape: what the model takes, (C, H, W); images of any size are brought to it unless a size is given."""
        from advfeat.datasets import sources

        fitting = {} if input_shape is None else sources.options_for(self.dataset, input_shape)
        return sources.load(self.dataset, split=split, root=self.root, limit=self.limit, **(fitting | self.options()))

    def options(self) -> dict:
        """What was given of how to read images, by name."""
        given = {"size": self.size, "holdout": self.holdout}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Runtime:
    """Where and how it runs."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, ...; the first GPU if there is one."""
    amp: Literal["none", "bf16"] = "none"
    """Run the model in bfloat16; iterates and projections stay in float32."""
    batch_size: Count = 250
    """Images at a time."""

    def torch_device(self):
        return torch_device(self.device)

    def autocast(self):
        import torch

        return torch.bfloat16 if self.amp == "bf16" else None


def torch_device(name: str | None):
    """The device of an option ``--device``; of None the process's own GPU, else the CPU.

    Errors: ValueError for a name that is none, and for a GPU that is not there.
    """
    import torch

    from advfeat._checks import from_environment  # with torch, which the options alone do without

    own = from_environment("LOCAL_RANK", 0)  # torchrun gives each process a GPU
    if name is None:
        return torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"--device should be cpu, cuda or cuda:NUMBER, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds none"
            raise ValueError(f"--device {name} needs a GPU, and {why}; --device cpu runs everywhere")
        if device.index is not None and device.index >= count:
            raise ValueError(f"--device should be one of {count} GPU(s), cuda:0 to cuda:{count - 1}, got {name}")
    return device


def settled(command: Any) -> Any:
    """The command with its numbers checked and ``~`` in its paths resolved. Errors: ValueError naming the option."""
    hints = typing.get_type_hints(type(command), include_extras=True)
    changed = {}
    for f in dataclasses.fields(command):
        value, option = getattr(command, f.name), option_of(f.name)
        if dataclasses.is_dataclass(value):
            changed[f.name] = settled(value)
        elif isinstance(value, Path):
            changed[f.name] = _path(option, value)
        for wanted in getattr(hints[f.name], "__metadata__", ()):
            if isinstance(wanted, Within):
                for number in value if isinstance(value, tuple) else (value,):
                    _check(option, number, wanted)
    return dataclasses.replace(command, **changed)


def option_of(name: str) -> str:
    """A field's name as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _check(option: str, value: float | None, wanted: Within) -> None:
    if value is None or wanted.low <= value <= wanted.high:
        return
    what = f"at least {wanted.low}" if value < wanted.low else f"at most {wanted.high}"
    if math.isnan(value):
        what = "a number"
    hint = f" ({wanted.hint})" if wanted.hint else ""
    raise ValueError(f"{option} should be {what}, got {f'{value:g}' if isinstance(value, float) else value}{hint}")


def _path(option: str, path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError(f"{option} should be a path, got one with a zero byte: {str(path)!r}")
    try:
        return path.expanduser()
    except RuntimeError:  # ~somebody
        raise ValueError(f"{option} should be a path, got {str(path)!r}: there is no such user") from None


def radii(option: str, given: Radii | None, norm: type[Threat], usual: Radii | None = None) -> Radii:
    """The radius or radii of an option, or the usual ones.

    Errors: ValueError for a radius whose ball holds every image from each, as an 8 that was meant as 8/255, where that
    does not hang on the size of the images; and for one radius twice.
    """
    eps = usual if given is None else given
    several = eps if isinstance(eps, tuple) else (eps,)
    for one in several:
        if math.isinf(norm.order) and one > norm.holds_the_box(1, 1):
            raise ValueError(
                f"{option} should be at most 1 for {norm.norm}, as images lie in [0, 1], got {one:g}; is {one:g}/255 "
                "meant?"
            )
        if several.count(one) > 1:
            raise ValueError(f"{option} should be different radii, got {one:g} twice")
    return eps
