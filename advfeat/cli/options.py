"""Options that several commands share, and the types of numbers and paths they accept.

Numbers are checked by :func:`settled` before anything runs, so that the message names the option.
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

from advfeat.datasets.registry import NAMES, WITHOUT_ROOT, listed

if TYPE_CHECKING:
    from advfeat.threat import Threat

Radii = TypeVar("Radii", float, tuple[float, ...])
# The names in advfeat.threat.NORMS, spelled out because that module imports torch.
Norm = Literal["l2", "linf", "l1"]


@dataclass(frozen=True)
class Within:
    """Range of numbers that an option accepts.

    Attributes:
        low: Smallest value accepted.
        high: Largest value accepted.
        hint: What the user may have meant instead.
    """

    low: float
    high: float
    hint: str = ""


def parse_number(text: str) -> float:
    """Parse a number in a usual notation: 0.03, .03, 3e-2 or 8/255.

    Args:
        text: The text.

    Returns:
        Its value.

    Raises:
        ValueError: If the text is not a number.
    """
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


_STEP_SIZE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="FLOAT|polyak",
    instance_from_str=lambda given: given[0] if given[0] == "polyak" else parse_number(given[0]),
    is_instance=lambda value: value is None or value == "polyak" or isinstance(value, (int, float)),
    str_from_instance=lambda value: [value if isinstance(value, str) else _shown(value)],
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
    if not text:  # such as an unset shell variable, which would mean the current folder
        raise ValueError("should be a path, got an empty text")
    return Path(text)


def _given_paths(texts: list[str]) -> tuple[Path, ...]:
    if not texts:
        raise ValueError("should be at least one path")
    return tuple(map(_given_path, texts))


_PATHS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="PATH [PATH ...]",
    instance_from_str=_given_paths,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [str(path) for path in value],
)

# If the default is None, the help text says what that means.
QUIET = arg(help_behavior_hint=lambda default: "" if default == "None" else f"(default: {default})")

OptionalPath = Annotated[Path | None, _text("PATH", _given_path), QUIET]
NeededPath = Annotated[Path, _text("PATH", _given_path)]
NeededPaths = Annotated[tuple[Path, ...], _PATHS]
OptionalText = Annotated[str | None, _text("STR", str), QUIET]
Number = Annotated[float, _number(optional=False), Within(0, 10**6)]
Share = Annotated[float, _number(optional=False), Within(0, 1)]
OptionalShare = Annotated[float | None, _number(optional=True), Within(0, 1), QUIET]
OptionalNumber = Annotated[float | None, _number(optional=True), QUIET]
# Images lie in [0, 1]: a larger radius reaches nothing new and would eventually overflow float32.
_RADIUS = Within(0, 10_000, "radii are in pixel scale [0, 1], as in 8/255")
Radius = Annotated[float, _number(optional=False), _RADIUS]
OptionalStepSize = Annotated[float | Literal["polyak"] | None, _STEP_SIZE, _RADIUS, QUIET]
OptionalRadius = Annotated[float | None, _number(optional=True), _RADIUS, QUIET]
OptionalRadii = Annotated[tuple[float, ...] | None, _NUMBERS, _RADIUS, QUIET]
Count = Annotated[int, _INTEGER, Within(1, 10**9)]
OptionalCount = Annotated[int | None, _INTEGER, Within(1, 10**9), QUIET]
CountOrNone = Annotated[int, _INTEGER, Within(0, 10**9)]
OptionalCountOrNone = Annotated[int | None, _INTEGER, Within(0, 10**9), QUIET]
OptionalMinutes = Annotated[float | None, _number(optional=True), Within(0, 10**7), QUIET]
# Some seeds are derived by adding small numbers; all have to stay within torch's range.
Seed = Annotated[int, _INTEGER, Within(0, 2**62)]


def root_from_environment() -> Path | None:
    """Return the data folder from the environment variable ADVFEAT_DATA, None if it is unset or empty."""
    root = os.environ.get("ADVFEAT_DATA")
    return Path(root) if root else None


_DataSetName = Annotated[str, arg(help=f"{', '.join(NAMES)}, or the path of a constructed set.")]
_Root = Annotated[
    OptionalPath,
    arg(
        help="Folder with the data set (default: the environment variable ADVFEAT_DATA); not needed for "
        f"{listed(WITHOUT_ROOT)}."
    ),
]


@dataclass(frozen=True)
class Data:
    """Images to use."""

    dataset: _DataSetName = "digits"
    root: _Root = field(default_factory=root_from_environment)
    limit: OptionalCount = None
    """Use a class-balanced subset of this many images."""
    size: Annotated[int | tuple[int, int] | None, Within(1, 10_000), QUIET] = None
    """Resize images of a folder to this side, or height and width, in pixels (default: the model's input size)."""
    holdout: OptionalNumber = None
    """Share of training images held out as the test set of a folder without one; the same images in every command."""

    def load(self, split: str, input_shape: tuple[int, ...] | None = None):
        """Load the chosen data set.

        Args:
            split: ``"train"`` or ``"test"``.
            input_shape: Input shape (C, H, W) of the model; images of an image folder are resized to it unless a size
                is given.

        Returns:
            The data set.
        """
        from advfeat.datasets import sources

        fitting = {} if input_shape is None else sources.options_for(self.dataset, input_shape)
        return sources.load(self.dataset, split=split, root=self.root, limit=self.limit, **(fitting | self.options()))

    def options(self) -> dict:
        """Return the given options for reading images, by name."""
        given = {"size": self.size, "holdout": self.holdout}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Runtime:
    """Device, precision and batch size."""

    device: OptionalText = None
    """cpu, cuda, cuda:1, ... (default: the first GPU if there is one)."""
    amp: Literal["none", "bf16"] = "none"
    """Mixed precision: run the model under bfloat16 autocast; iterates and projections stay in float32."""
    batch_size: Count = 250
    """Images per batch."""

    def torch_device(self):
        """Return the chosen device, see :func:`torch_device`."""
        return torch_device(self.device)

    def autocast(self):
        """Return the autocast dtype: ``torch.bfloat16`` or None."""
        import torch

        return torch.bfloat16 if self.amp == "bf16" else None


def torch_device(name: str | None):
    """Resolve the option ``--device``.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:NUMBER``; None takes the GPU of this process (LOCAL_RANK), or the CPU if there
            is no GPU.

    Returns:
        The torch device.

    Raises:
        ValueError: If the name is not a device, or the GPU does not exist.
    """
    import torch

    from advfeat._checks import from_environment  # imports torch

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
    """Check the numbers of a command and expand ``~`` in its paths.

    Args:
        command: Dataclass of options, which may hold others.

    Returns:
        The command with expanded paths.

    Raises:
        ValueError: Naming the option whose value is out of range, or whose path is invalid.
    """
    hints = typing.get_type_hints(type(command), include_extras=True)
    changed = {}
    for f in dataclasses.fields(command):
        value, option = getattr(command, f.name), option_of(f.name)
        if dataclasses.is_dataclass(value):
            changed[f.name] = settled(value)
        elif isinstance(value, Path):
            changed[f.name] = _path(option, value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Path):
            changed[f.name] = tuple(_path(option, path) for path in value)
        for wanted in getattr(hints[f.name], "__metadata__", ()):
            if isinstance(wanted, Within):
                for number in value if isinstance(value, tuple) else (value,):
                    _check(option, number, wanted)
    return dataclasses.replace(command, **changed)


def option_of(name: str) -> str:
    """Spell the name of a field as an option of the command line.

    Args:
        name: Such as ``step_size``.

    Returns:
        Such as ``--step-size``.
    """
    return f"--{name.replace('_', '-')}"


def _check(option: str, value: float | str | None, wanted: Within) -> None:
    if value is None or isinstance(value, str) or wanted.low <= value <= wanted.high:
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
    """Return the radius or radii of an option, or the usual ones.

    Args:
        option: Name of the option, for messages.
        given: Radius or radii in pixel scale [0, 1]; None takes ``usual``.
        norm: Class of the threat model.
        usual: Default.

    Returns:
        The radius or radii.

    Raises:
        ValueError: If one radius is given twice, or an L-infinity radius exceeds 1, so that the ball around any image
            contains every image (such as 8 where 8/255 was meant). Other norms are not checked, because their bound
            depends on the image size.
    """
    eps = usual if given is None else given
    if eps is None:
        raise ValueError(f"{option} should be given: the radius, in pixel scale [0, 1]")
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
