"""The ``advfeat`` command: parsing, dispatch and shell completion."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shutil
import sys
from typing import TYPE_CHECKING

import tyro
from tyro.conf import OmitArgPrefixes

from advfeat._version import __version__
from advfeat.cli import ending, options
from advfeat.cli.commands import Command, Train
from advfeat.cli.options import Data

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_COMMANDS = ("train", "build", "evaluate", "attack", "features", "demo", "reproduce", "theory", "info")
_Unprefixed = OmitArgPrefixes[Command]
_NARROWEST = 20  # columns
_GOING_ON = ("train", "build", "demo", "reproduce")
_EXTRA_OPTIONS: dict[type, dict[str, str]] = {
    Data: {"name": "dataset"},
    Train: {
        "batch_size": "train_batch_size",
        "attack": "adversarial",
        "resume": "restart",
        "name": "dataset or --test-dataset",
    },
}
_DESCRIPTION = """Robust and non-robust features: attacks, data sets, training, evaluation.

advfeat COMMAND --help lists the options of a command, advfeat --version prints the version, and advfeat --completion
bash | zsh | tcsh prints a completion script for that shell. Exit status: 0 success, 1 error, 2 invalid command line,
75 time limit reached (run the same command again to resume), 130 interrupted."""


def main(arguments: list[str] | None = None) -> None:
    """Run the ``advfeat`` command.

    Args:
        arguments: Command-line arguments without the program name; None takes ``sys.argv``.

    Raises:
        SystemExit: With the exit status described in :mod:`advfeat.cli.ending`, unless it is 0.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    names: dict[str, str] = {}
    first = arguments[0] if arguments else ""
    with ending.in_order(f"advfeat {first}" if first in _COMMANDS else "advfeat", names, _after(first, arguments)):
        if first in ("--version", "-V"):
            ending.stdout.write(f"advfeat {__version__}\n")
            return
        if first == "--completion":
            if arguments[1:] not in (["bash"], ["zsh"], ["tcsh"]):
                raise ValueError(
                    f"--completion should be bash, zsh or tcsh, got {' '.join(arguments[1:]) or 'nothing'}"
                )
            arguments[0] = "--tyro-print-completion"
        elif first and not first.startswith("-") and first not in _COMMANDS:
            _unknown(first)
        _widen()
        command = tyro.cli(_Unprefixed, prog="advfeat", description=_DESCRIPTION, args=arguments)
        names |= _option_names(command)
        options.settled(command).run()


def _widen() -> None:
    """Ensure a minimum terminal width for the help: tyro never returns with five columns or fewer."""
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)


def _after(command: str, arguments: list[str]) -> str:
    if command not in _COMMANDS:
        return ""
    keeps = any(word == "--state" or word.startswith("--state=") for word in arguments)
    again = "resumes" if command in _GOING_ON or keeps else "starts again"
    return f"; the same command {again}"


def _unknown(command: str) -> None:
    near = difflib.get_close_matches(command, _COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}, and advfeat --help"
    print(f"advfeat: there is no command {command!r}; {hint}", file=sys.stderr)
    raise SystemExit(2)


def _option_names(command: DataclassInstance) -> dict[str, str]:
    """Map the library's argument names to the options of the command line."""
    names: dict[str, str] = {}
    for f in dataclasses.fields(command):
        value = getattr(command, f.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names |= _option_names(value)
        else:
            names[f.name] = options.option_of(f.name)
    return names | {k: options.option_of(v) for k, v in _EXTRA_OPTIONS.get(type(command), {}).items()}
