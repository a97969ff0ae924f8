"""Standard output that never aborts a command: a failed write is reported at the end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

# Replacements for the typographic characters of tables and sentences on a terminal without Unicode.
_PLAIN = str.maketrans({"–": "-", "−": "-", "±": "~", "→": ">", "·": "*", "…": ".", "≈": "~", "≤": "<", "≥": ">"})


class StandardOutput:
    """Write to the current ``sys.stdout``.

    Characters that its encoding lacks are replaced by plain ones. After the first failed write (the reader of a pipe is
    gone, the disk is full, there is no stream), ``failure`` holds the error and nothing more is written.
    """

    def __init__(self) -> None:
        self.failure: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:
        """The encoding of the stream, UTF-8 if it has none."""
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write text unless an earlier write failed.

        Args:
            text: The text.

        Returns:
            Its length, whether or not it was written.
        """
        if self.failure is None and (stream := self._stream()) is not None:
            try:
                stream.write(self._encodable(text))
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self.fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream unless an earlier write failed."""
        if self.failure is None and (stream := self._stream()) is not None:
            try:
                stream.flush()
            except (OSError, ValueError) as error:
                self.fail(error)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        stream = self._stream()
        with suppress(AttributeError, ValueError):
            return stream is not None and stream.isatty()
        return False

    def fileno(self) -> int:
        """Return the file descriptor of ``sys.stdout``."""
        return sys.stdout.fileno()

    def take_failure(self) -> OSError | ValueError | None:
        """Return the error since the last call, and clear it.

        Returns:
            The error, None if there was none.
        """
        failure, self.failure = self.failure, None
        return failure

    def _stream(self) -> TextIO | None:
        # During a progress bar rich replaces sys.stdout by a proxy that would write back to this object.
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    def _encodable(self, text: str) -> str:
        encoding = self.encoding
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
        return text

    def fail(self, error: OSError | ValueError) -> None:
        """Record an error and stop writing.

        Args:
            error: What went wrong.
        """
        self.failure = error
        discard(self._stream())


def discard(stream: TextIO | None) -> None:
    """Send what a failing stream still buffers to the null device.

    Otherwise Python would flush it again at exit and report the error once more.

    Args:
        stream: The stream, which may be None.
    """
    if stream is None:
        return
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


stdout = StandardOutput()
