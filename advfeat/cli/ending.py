"""How a command ends: with an exit status, and one line on standard error for what its user can mend.

====  ===========================================================================================
0     all done
1     an error that a sentence explains; ADVFEAT_TRACEBACK=1 shows where it came from
2     the command line itself is wrong
75    the time that was given is over; the same command goes on
130   interrupted by Ctrl-C
143   ended by SIGTERM
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

from advfeat.cli.output import discard, stdout

# What a user can cause and mend; anything else is a defect and shows its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, OverflowError, RuntimeError)
_OF_SIZE = ("batch_size", "limit", "size", "width", "samples", "dim")
_NOTHING: Mapping[str, str] = MappingProxyType({})


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as of a scheduler that wants the machine for somebody else."""


@contextlib.contextmanager
def in_order(command: str, options: Mapping[str, str] = _NOTHING, interrupted: str = "") -> Iterator[None]:
    """A block whose errors are told in a line on standard error and end the process by SystemExit.

    command: as in ``advfeat evaluate``. options: what the library's arguments are called on the command line, by which
    its messages are told; may be filled inside the block. interrupted: what to say after Ctrl-C.
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
        _tell(f"{command}: what it had to say could not be printed: {why}")
        status = status or 1
    if status:
        raise SystemExit(status)


def explanation(error: Exception, options: Mapping[str, str] = _NOTHING) -> str | None:
    """One line for what a user can mend; None for a defect. options: as of :func:`in_order`."""
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
    """A message of the library with its arguments named as the command line has them: ``root=x`` as ``--root x``."""
    if not options:
        return sentence
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    sentence = re.sub(rf"^({names})(?= (should|has|is|needs)\b)", lambda m: options[m[1]], sentence)
    sentence = re.sub(rf"(?<![^\s(])({names})=(True\b|False\b)?", lambda m: _written(options[m[1]], m[2]), sentence)
    return re.sub(r"(--[a-z-]+) ?\(\1\)", r"\1", sentence)


def _written(option: str, switch: str | None) -> str:
    return option if switch else f"{option} "


def _is_of_printing(error: Exception) -> bool:
    """Of a stream that others print to: errors of files name them, and none but standard output is a pipe."""
    unnamed = isinstance(error, OSError) and error.filename is None and error.errno is not None
    # The system's words alone: those of this library's own errors say of which file they are.
    return (
        unnamed
        and error.strerror == os.strerror(error.errno)
        and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)
    )


def _is_of_memory(error: Exception, text: str) -> bool:
    # Without importing torch for it: where it is not loaded, the error is not its own.
    torch = sys.modules.get("torch")
    own = getattr(torch, "OutOfMemoryError", None)
    if own is not None and isinstance(error, own):
        return True
    return isinstance(error, RuntimeError) and ("allocate memory" in text or "out of memory" in text)


def _told(command: str, options: Mapping[str, str], otherwise):
    """Warnings as one line without the place in the code, which says nothing to a user of the command line."""

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if issubclass(category, (UserWarning, RuntimeWarning)) and file is None:
            _tell(f"{command}: warning: {in_options(' '.join(str(message).split()), options)}")
        else:
            otherwise(message, category, filename, lineno, file, line)

    return show


def _tell(text: str) -> None:
    """On standard error, which may be closed or full as well."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            # A stranger's file names its classes: nothing that a terminal would carry out.
            shown = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
            print(shown, file=sys.stderr, flush=True)


def _flush() -> None:
    """What others printed, such as the help, reaches standard output here, where its failing can be told."""
    stdout.flush()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
        return
    discard(sys.stderr)


@contextlib.contextmanager
def _any_encoding() -> Iterator[None]:
    """What others print, such as the help, may hold characters that standard output has no bytes for."""
    stream = sys.stdout
    if not hasattr(stream, "reconfigure"):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # it may be closed, or full and not empty
            stream.reconfigure(errors=before)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: locks are given back and nothing half-written stays."""

    def terminated(*_: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminated)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
