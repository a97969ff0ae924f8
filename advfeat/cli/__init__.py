"""The command line."""

from advfeat.cli.command_line import main

__all__ = ["main"]
