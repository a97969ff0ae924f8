"""Standard output that never costs a command its work: what cannot be written is told at the end, not in the middle."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

# What a terminal without Unicode gets for the characters that tables and sentences are made of.
_PLAIN = str.maketrans({"–": "-", "−": "-", "±": "~", "→": ">", "·": "*", "…": ".", "≈": "~", "≤": "<", "≥": ">"})


class StandardOutput:
    """Writes to what ``sys.stdout`` is at the time.

    A character that its encoding lacks becomes a plain one. Once a write fails (the reader of a pipe has gone, the disk
    is full, there is none), ``failure`` holds the error, and nothing more is written.
    """

    def __init__(self) -> None:
        self.failure: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self.failure is None and (stream := self._stream()) is not None:
            try:
                stream.write(self._encodable(text))
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self.fail(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None and (stream := self._stream()) is not None:
            try:
                stream.flush()
            except (OSError, ValueError) as error:
                self.fail(error)

    def isatty(self) -> bool:
        with suppress(AttributeError, ValueError):
            return self._stream().isatty()
        return False

    def fileno(self) -> int:
        return sys.stdout.fileno()

    def take_failure(self) -> OSError | ValueError | None:
        """What went wrong since this was asked last."""
        failure, self.failure = self.failure, None
        return failure

    def _stream(self) -> TextIO | None:
        # While a progress bar is shown rich puts a stream of its own there, which would write to this one again.
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    def _encodable(self, text: str) -> str:
        encoding = self.encoding
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
        return text

    def fail(self, error: OSError | ValueError) -> None:
        """From here on nothing is written."""
        self.failure = error
        discard(self._stream())


def discard(stream: TextIO | None) -> None:
    """Sends what a failing stream still holds to nowhere, else Python tries once more as it ends, and says so."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


stdout = StandardOutput()
