"""JSON files of a run or a set: written whole, read with their form checked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from advfeat._json_fields import check_depth, check_fields
from advfeat.files import append_line, write_bytes

_LARGEST = 256 << 20  # bytes of a JSON file


def to_json(value: object) -> bytes:
    """JSON with two spaces, keys in order of insertion. Errors: ValueError for NaN and infinity."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Writes :func:`to_json` of a value atomically, to a run's or a set's own file: a link is replaced."""
    write_bytes(path, to_json(value), follow=False)


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object a line, atomically, to a run's own file: a link is replaced."""
    write_bytes(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode(), follow=False)


def append_json_line(path: Path, row: dict) -> None:
    """Appends one JSON object as a line, whole or not at all. Errors: OSError naming the file."""
    append_line(path, json.dumps(row, allow_nan=False))


def read_json(path: Path, form: object = dict) -> dict:
    """Reads a JSON object.

    form: what it should hold, see :func:`advfeat._json_fields.check_fields`. Errors: FileNotFoundError; ValueError for
    what is no such JSON, naming the file and the key.
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
