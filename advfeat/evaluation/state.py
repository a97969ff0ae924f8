"""The folder in which a long evaluation keeps what it has found, so that a killed one resumes.

``evaluation.json`` says what the folder was made for; another evaluation is refused. Each ``part-NNNNN.safetensors``
holds the outcome of one attack for some samples: their ids, success, values, distances and counts, and the examples of
those that were broken. Files are written whole or not at all, and nothing is ever changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from advfeat._locks import hold
from advfeat.attacks.breakdown import Cost
from advfeat.files import check_writable_folder, make_folder, write_bytes
from advfeat.json_files import read_json, write_json

_FILE, _PART = "evaluation.json", re.compile(r"part-(\d{5,})\.safetensors")
_SHOWN = 3  # differences in a message


@dataclass(frozen=True)
class Part:
    """The outcome of one attack for some samples, on disk.

    Attributes:
        path: The file.
        key: Name of the attack, and of the round of an evaluation, see :meth:`State.parts`.
        turn: Number of the attack among those that run in turn.
        cost: What it cost.
    """

    path: Path
    key: str
    turn: int
    cost: Cost

    def tensors(self) -> dict[str, Tensor]:
        """Read the tensors.

        Returns:
            The tensors by name.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except SafetensorError as error:
            raise _damaged(self.path, error) from error


class State:
    """An open state; see :func:`open_state`."""

    def __init__(self, folder: Path, made_for: dict) -> None:
        self.folder = folder
        here = json.loads(json.dumps(made_for))
        if (folder / _FILE).is_file():
            differences = _differences(read_json(folder / _FILE), here)
            # A setting of an ensemble is one of each of its attacks: it is said once.
            differences = [d for d in differences if ".in turn[" not in d] or differences
            if differences:
                more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
                raise ValueError(
                    f"state should be a folder of this evaluation or a new one, got {folder}, which was made for "
                    f"another: {'; '.join(differences[:_SHOWN])}{more}"
                )
        else:
            found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
            if found:
                raise ValueError(
                    f"state should be a folder of this evaluation or a new one, got {folder} with {found[0]}"
                )
            write_json(folder / _FILE, here)
        self._parts = [_opened(path) for path in sorted(folder.iterdir()) if _PART.fullmatch(path.name)]
        self._next = 1 + max((int(part.path.stem.partition("-")[2]) for part in self._parts), default=-1)

    def parts(self, key: str) -> list[Part]:
        """Return what has been found, in the order in which it was.

        Args:
            key: Name of the attack and of the round of the evaluation.

        Returns:
            The parts.
        """
        return [part for part in self._parts if part.key == key]

    def add(self, key: str, turn: int, cost: Cost, tensors: dict[str, Tensor]) -> None:
        """Write an outcome.

        Args:
            key: As for :meth:`parts`.
            turn: Number of the attack among those that run in turn.
            cost: What it cost.
            tensors: The tensors by name, on the CPU.

        Raises:
            OSError: If it cannot be written.
        """
        path = self.folder / f"part-{self._next:05}.safetensors"
        passes = {"samples_forwarded": cost.samples_forwarded, "samples_backwarded": cost.samples_backwarded}
        about = json.dumps({"key": key, "turn": turn, **passes, "seconds": cost.seconds})
        own = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_bytes(path, save(own, {"about": about}), follow=False)
        self._next += 1


@contextmanager
def open_state(folder: str | Path, made_for: dict) -> Iterator[State]:
    """Open the state of an evaluation, or begin a new one.

    Args:
        folder: The folder; created if it is missing.
        made_for: What the evaluation depends on, as JSON values.

    Yields:
        The state. No other process can open it meanwhile.

    Raises:
        ValueError: If the folder holds the state of another evaluation, or something else, or is in use, or a file in
            it is damaged.
        OSError: If it cannot be written.
    """
    folder = check_writable_folder(folder)
    make_folder(folder)

    def in_use(holder: str) -> None:
        raise ValueError(f"state should be a folder that no other evaluation uses, got {folder}, in use by {holder}")

    with hold(folder, "evaluation", in_use):
        yield State(folder, made_for)


def _opened(path: Path) -> Part:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
        cost = Cost(int(about["samples_forwarded"]), int(about["samples_backwarded"]), float(about["seconds"]))
        return Part(path, str(about["key"]), int(about["turn"]), cost)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({error}): remove it, and the evaluation repeats what it held")


def _differences(there: object, here: object, name: str = "") -> list[str]:
    """Name what differs between two JSON values."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = list(dict.fromkeys([*there, *here]))
        found = [_differences(there.get(k), here.get(k), f"{name}.{k}" if name else k) for k in keys]
        return [difference for some in found for difference in some]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        found = [_differences(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(zip(there, here, strict=True))]
        return [difference for some in found for difference in some]
    return [] if there == here else [f"{name} is {_short(there)} there and {_short(here)} here"]


def _short(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"{'a list' if isinstance(value, list) else 'given'} ({len(value)} entries)"
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f'{text[:12]}..."'
