"""Files of a run: written whole or not at all, and what was used to make them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

from advfeat._version import __version__


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: beside it, synced to the disk, then renamed over it.

    Errors: OSError naming the file (a full disk, say); the old file stays and no half of the new one is left.
    """
    write_together([(Path(path), data)])


def write_together(files: list[tuple[Path, bytes]]) -> None:
    """Writes files of one folder: all beside their places first, so that a full disk changes none, then renamed.

    The last one describes the others: it is removed before the first rename and comes last, so that it never stands
    beside files that are not its own. Errors as :func:`write_bytes` has them.
    """
    beside = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path, _ in files]
    current = files[0][0]
    try:
        current.parent.mkdir(parents=True, exist_ok=True)
        for (path, data), temporary in zip(files, beside, strict=True):
            current = path
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if len(files) > 1:
            files[-1][0].unlink(missing_ok=True)
        for (path, _), temporary in zip(files, beside, strict=True):
            current = path
            os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {current}: {error.strerror or error}") from error
    finally:
        for temporary in beside:
            temporary.unlink(missing_ok=True)
    _sync_folder(current.parent)


def to_json(value: object) -> bytes:
    """JSON with two spaces, keys in order of insertion. Errors: ValueError for NaN and infinity."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: object) -> None:
    """Writes :func:`to_json` of a value atomically."""
    write_bytes(path, to_json(value))


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """Writes one JSON object a line, atomically."""
    write_bytes(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())


def append_json_line(path: Path, row: dict) -> None:
    """Appends one JSON object as a line. Errors: OSError naming the file."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error


def read_json(path: Path) -> dict:
    """Reads a JSON object. Errors: FileNotFoundError and ValueError naming the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON (truncated or altered?): {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold a JSON object, got {type(value).__name__}")
    return value


def read_checked(path: Path, size: int, sha256: str) -> bytes:
    """The bytes of a file whose length and SHA-256 (hex) are known. Errors name the file and what is wrong with it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    data = path.read_bytes()
    if len(data) != size:
        what = "truncated" if len(data) < size else "longer than it was written"
        raise ValueError(f"{path} is {what}: {len(data)} bytes, expected {size}")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} was altered: its sha256 is {found[:16]}..., expected {sha256[:16]}...")
    return data


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

    Only a checkout that tracks this very file counts: a virtual environment often lies inside another repository.
    """
    here = Path(__file__).resolve()

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


def _sync_folder(folder: Path) -> None:
    # So that the rename itself survives a power cut; some file systems refuse, and then there is nothing to do.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
