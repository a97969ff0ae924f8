"""Exit status of a command, and its one-line message on standard error for errors that the user can fix.

====  ===========================================================================================
0     success
1     an error explained in one sentence; ADVFEAT_TRACEBACK=1 shows the traceback
2     invalid command line
75    time limit reached; the same command resumes
130   interrupted by Ctrl-C
143   terminated by SIGTERM
====  ===========================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TypeGuard

from advfeat.cli.output import discard, stdout

# Errors that a user can cause and fix; anything else is a defect and shows its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, OverflowError, RuntimeError)
_OF_SIZE = ("batch_size", "limit", "size", "width", "samples", "dim")
_NOTHING: Mapping[str, str] = MappingProxyType({})


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch scheduler sends it when it reclaims the machine."""


@contextlib.contextmanager
def in_order(command: str, options: Mapping[str, str] = _NOTHING, interrupted: str = "") -> Iterator[None]:
    """Turn errors in the block into one line on standard error and a SystemExit.

    Args:
        command: Name that starts the line, such as ``advfeat evaluate``.
        options: Maps the library's argument names to the options of the command line, which replace them in messages.
            It may be filled inside the block.
        interrupted: Text to append to ``interrupted`` after Ctrl-C.

    Yields:
        None.

    Raises:
        SystemExit: With the status of the module's table, unless it is 0.
        Exception: A defect, or any error if ADVFEAT_TRACEBACK is set, is raised again as it is.
    """
    stdout.take_failure()
    status: object = 0
    try:
        with warnings.catch_warnings(), _terminable(), _any_encoding():
            warnings.showwarning = _told(command, options, warnings.showwarning)
            yield
    except SystemExit as error:
        status = error.code
    except KeyboardInterrupt as error:
        _tell(f"\ninterrupted{interrupted}")
        status = 143 if isinstance(error, _Terminated) else 130
    except Exception as error:
        sentence = explanation(error, options)
        if sentence is None or os.environ.get("ADVFEAT_TRACEBACK"):
            raise
        if _is_of_printing(error):
            stdout.fail(error)
        else:
            _tell(f"{command}: {in_options(sentence, options)}")
        status = 1
    _flush()
    if (failure := stdout.take_failure()) is not None:
        why = getattr(failure, "strerror", None) or failure
        _tell(f"{command}: the output could not be printed: {why}")
        status = status or 1
    if status:
        raise SystemExit(status)


def explanation(error: Exception, options: Mapping[str, str] = _NOTHING) -> str | None:
    """Explain an error in one line.

    Args:
        error: The error.
        options: As in :func:`in_order`.

    Returns:
        The message for an error that the user can fix; None for a defect.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _is_of_memory(error, text):
        names = [options[name] for name in _OF_SIZE if name in options]
        return "out of memory" + (f": less is needed with smaller values of {', '.join(names)}" if names else "")
    if not isinstance(error, _USER_ERRORS) or isinstance(error, (NotImplementedError, RecursionError)):
        return None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}: the disk is full; make room, and give the same command again"
    if isinstance(error, UnicodeError):
        return f"a name that is not text: {text}"
    if not text:
        return type(error).__name__
    if isinstance(error, RuntimeError) and type(error).__module__ == "builtins":
        return f"{text[:300]} (ADVFEAT_TRACEBACK=1 shows where)"
    return text


def in_options(sentence: str, options: Mapping[str, str]) -> str:
    """Replace argument names in a message by command-line options: ``root=x`` becomes ``--root x``.

    Args:
        sentence: Message of the library.
        options: Maps argument names to options.

    Returns:
        The message in terms of the command line.
    """
    if not options:
        return sentence
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    sentence = re.sub(rf"^({names})(?= (should|has|is|needs)\b)", lambda m: options[m[1]], sentence)
    sentence = re.sub(rf"(?<![^\s(])({names})=(True\b|False\b)?", lambda m: _written(options[m[1]], m[2]), sentence)
    return re.sub(r"(--[a-z-]+) ?\(\1\)", r"\1", sentence)


def _written(option: str, switch: str | None) -> str:
    return option if switch else f"{option} "


def _is_of_printing(error: Exception) -> TypeGuard[OSError]:
    """Return whether an error is of standard output: file errors name their file, and nothing else is a pipe."""
    # Only the system's own message: errors raised by this library name their file.
    return (
        isinstance(error, OSError)
        and error.filename is None
        and error.errno is not None
        and error.strerror == os.strerror(error.errno)
        and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)
    )


def _is_of_memory(error: Exception, text: str) -> bool:
    # Does not import torch: if it is not loaded, the error cannot be torch's.
    torch = sys.modules.get("torch")
    own = getattr(torch, "OutOfMemoryError", None)
    if own is not None and isinstance(error, own):
        return True
    return isinstance(error, RuntimeError) and ("allocate memory" in text or "out of memory" in text)


def _told(command: str, options: Mapping[str, str], otherwise):
    """Print warnings as one line, without the code location, which means nothing to a command-line user."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if issubclass(category, (UserWarning, RuntimeWarning)) and file is None:
            _tell(f"{command}: warning: {in_options(' '.join(str(message).split()), options)}")
        else:
            otherwise(message, category, filename, lineno, file, line)

    return show


def _tell(text: str) -> None:
    """Write to standard error, which may itself be closed or full."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            # Class names come from untrusted files: escape everything that a terminal would interpret.
            shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
            print(shown, file=sys.stderr, flush=True)


def _flush() -> None:
    """Flush what others printed, such as the help, here where a failure can be reported."""
    stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
        return
    discard(sys.stderr)


@contextlib.contextmanager
def _any_encoding() -> Iterator[None]:
    """Let others, such as the help, print characters that the encoding of standard output lacks."""
    stream = sys.stdout
    if not hasattr(stream, "reconfigure"):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # closed, or the disk is full and the buffer is not empty
            stream.reconfigure(errors=before)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end the block as Ctrl-C does: locks are released and no partial file remains."""

    def terminated(*_: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminated)
    except ValueError:  # only the main thread can handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
