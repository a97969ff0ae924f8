"""JSON files of a run or a data set: written atomically, and validated when read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from advfeat._json_fields import check_depth, check_fields
from advfeat.files import append_line, write_bytes

_LARGEST = 256 << 20  # bytes of a JSON file


def to_json(value: object) -> bytes:
    """A value as JSON with an indent of two spaces and keys in insertion order.

    Args:
        value: JSON values.

    Returns:
        UTF-8 bytes that end with a newline.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Writes a value atomically as JSON to a file of a run or a data set; a link is replaced.

    Args:
        path: the file.
        value: as for :func:`to_json`.

    Raises:
        ValueError: as for :func:`to_json`.
        OSError: the file cannot be written.
    """
    write_bytes(path, to_json(value), follow=False)


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object per line, atomically, to a file of a run; a link is replaced.

    Args:
        path: the file.
        rows: the objects.

    Raises:
        ValueError: a number is NaN or infinite.
        OSError: the file cannot be written.
    """
    write_bytes(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode(), follow=False)


def append_json_line(path: Path, row: dict) -> None:
    """Appends one JSON object as a line, completely or not at all.

    Args:
        path: the file.
        row: the object.

    Raises:
        ValueError: a number is NaN or infinite.
        OSError: the file cannot be written; the message names it.
    """
    append_line(path, json.dumps(row, allow_nan=False))


def read_json(path: Path, form: object = dict) -> dict:
    """Reads a JSON object.

    Args:
        path: the file.
        form: the expected contents, see :func:`advfeat._json_fields.check_fields`.

    Returns:
        The object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such JSON; the message names the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"{path} is too large for a description: {size / 2**20:.0f} MiB, at most {_LARGEST >> 20}")
    try:
        value = json.loads(path.read_bytes())
        check_depth(value)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON (truncated or altered?): {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold a JSON object, got {type(value).__name__}")
    try:
        check_fields(value, form)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return value
