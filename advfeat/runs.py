"""JSON files of a run, and what was used to make them; files themselves are in :mod:`advfeat.files`."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

from advfeat._version import __version__
from advfeat.files import (
    append_line,
    check_writable_file,
    check_writable_folder,
    read_checked,
    write_bytes,
    write_together,
)
from advfeat.json_fields import check_depth, check_fields

__all__ = [
    "append_json_line",
    "check_writable_file",
    "check_writable_folder",
    "git_revision",
    "plain",
    "provenance",
    "read_checked",
    "read_json",
    "to_json",
    "write_bytes",
    "write_json",
    "write_json_lines",
    "write_together",
]

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

    form: what it should hold, see :func:`advfeat.json_fields.check_fields`. Errors: FileNotFoundError; ValueError for
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


def plain(value: object) -> object:
    """A setting as JSON values: dataclasses and objects with ``to_dict`` as dicts, infinity as "inf", paths as text."""
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def provenance(device: torch.device | str = "cpu") -> dict:
    """What a result was made with: versions, git revision (None outside a checkout), device and threads."""
    device = torch.device(device)
    return {
        "versions": {"advfeat": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "git": git_revision(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def git_revision() -> dict | None:
    """The commit that this package's code is at, and whether files differ from it; None where that is not known.

    Only a checkout of this project counts, which has its repository beside the package, and only if it tracks this very
    file: a virtual environment often lies inside another repository. Git is not asked there, for what it is told by the
    settings of a stranger's repository may be a program.
    """
    here = Path(__file__).resolve()
    if not (here.parents[1] / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
