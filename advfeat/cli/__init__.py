"""The command line."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the ``advfeat`` command.

    Args:
        arguments: the words after the command's name; those of the process if None.

    Raises:
        SystemExit: with the exit status, unless the command succeeds.
    """
    try:
        from advfeat.cli import command_line
    except KeyboardInterrupt:  # before there is anything that says so
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(130) from None
    command_line.main(arguments)
