"""Reading of untrusted files: only regular files, no further than expected, with errors that name the file."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from advfeat._names import printable
from advfeat.files import kind_of


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading without blocking, as opening a FIFO would until a writer appears.

    Args:
        path: The file.

    Returns:
        The file, open, for the caller to close.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is a folder, FIFO, socket or device.
    """
    try:
        # The kind is that of the open file: the name may refer to another file by then.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            raise
        raise ValueError(f"{printable(path)} should be a regular file, got {kind_of(mode)}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ValueError(f"{printable(path)} should be a regular file, got {kind_of(mode)}")
    return os.fdopen(descriptor, "rb")


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def read_npy(path: Path, check: Callable[[np.dtype, tuple[int, ...]], None] | None = None) -> np.ndarray:
    """The array of a .npy file.

    Args:
        path: The file.
        check: Called with the dtype and shape in the header, before memory is allocated; should raise an error to
            refuse the array.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: As for :func:`open_regular`, or if the file is truncated, altered, or holds Python objects.
    """
    with open_regular(path) as file:
        try:
            # Not np.load, which tries other files as an archive or a pickle, and whose error suggests allow_pickle.
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
            expected, found = file.tell() + math.prod(shape) * dtype.itemsize, size_of(file)
        except Exception as error:  # a damaged header, a Python literal, raises all kinds of exceptions
            raise ValueError(f"{printable(path)} is truncated or altered: {error}") from error
        if check is not None:
            check(dtype, shape)
        if found != expected:
            raise ValueError(f"{printable(path)} is truncated or altered: {found:,} bytes, expected {expected:,}")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def what_is_in(folder: Path) -> str:
    """One sentence on what a folder holds, for an error message."""
    if not folder.is_dir():
        return f"{printable(folder)} is {'not a folder' if folder.exists() else 'not there either'}."
    names = sorted(printable(p.name) + ("/" if p.is_dir() else "") for p in folder.iterdir())
    if not names:
        return f"{printable(folder)} is empty."
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{printable(folder)} holds {', '.join(names[:8])}{more}."
