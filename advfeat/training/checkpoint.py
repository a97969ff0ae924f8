"""The run folder of a training run: its config, metrics, and checkpoints from which an interrupted run resumes exactly.

``config.json``         the resolved config, the data, and the software and hardware
``metrics.jsonl``       one line per epoch
``checkpoint.json``     the epoch reached, the history, and name and checksum of the file with weights and momentum
``checkpoint-*.safetensors``    weights and momentum
``model.safetensors``, ``model.json``    the trained model; the training is unfinished while they are missing

Only one process writes to the folder at a time, see :mod:`advfeat._locks`. A symbolic link with one of these names is
replaced, not followed, because its target may belong to another run.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat._json_fields import SHA256, check_fields
from advfeat._locks import Busy, Lock, hold
from advfeat.files import read_checked, sweep, write_bytes
from advfeat.json_files import append_json_line, read_json, write_json, write_json_lines
from advfeat.models.memory import fill
from advfeat.models.state import state_of, tensors_of
from advfeat.models.tensors import from_bytes, to_bytes

_FORMAT = "advfeat-checkpoint-1"
# Settings that do not affect the result and may differ when a run resumes.
_FREE = ("checkpoint_every",)
_RESTART = "resume=False (--restart)"
_TENSORS = re.compile(r"checkpoint-\d{5,}\.safetensors")
_SHARE = (None, float)
_EPOCH = {
    "epoch": int,
    "lr": float,
    "train_loss": float,
    "train_accuracy": float,
    "test_accuracy": _SHARE,
    "robust_accuracy": _SHARE,
    "seconds": float,
}
_STATE = {
    "format": str,
    "epoch": int,
    "tensors": (None, {"file": _TENSORS, "bytes": range(2**53), "sha256": SHA256}),
    "history": [_EPOCH],
}
_CONFIG = {"config": dict, "data": {"train": dict, "test?": (None, dict)}}


class RunFolder:
    """Reads and writes the folder of one training; every write is atomic.

    Args:
        path: The folder, which need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # a script may change its working directory
        self._lock: Lock | None = None

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder.

        Args:
            name: Name of the file.
        """
        return self.path / name

    @contextmanager
    def alone(self, resume: bool) -> Iterator[None]:
        """Keep other processes from training in the folder during the block.

        If another process is training in it, wait for that process and warn, naming it.

        Args:
            resume: Whether to wait and use what the other process makes; without it, that result would be discarded.

        Yields:
            None.

        Raises:
            Busy: If another process is training in the folder and ``resume`` is false.
        """

        def waiting(holder: str) -> None:
            if not resume:
                raise Busy(f"{self.path} is in use for training by {holder}: end that process first")
            warnings.warn(
                f"{self.path} is in use for training by {holder}; waiting for its model (if it is stopped, this "
                "process resumes the training)",
                stacklevel=7,
            )

        with hold(self.path, "training", waiting) as self._lock:
            try:
                sweep(self.path)
                yield
            finally:
                self._lock = None

    def check(self, description: dict) -> None:
        """Check that the run in the folder, if any, has the same settings.

        Args:
            description: ``{"config": ..., "data": ...}`` and anything else that goes into config.json.

        Raises:
            ValueError: Naming the settings that differ.
        """
        path = self.file("config.json")
        if not path.is_file():
            return
        differing = list(_differences(_identity(read_json(path, _CONFIG)), _identity(description)))
        if differing:
            raise ValueError(
                f"{self.path} holds another run ({'; '.join(differing[:4])}): take another folder, or {_RESTART} to "
                "replace it"
            )

    def is_finished(self) -> bool:
        """Return whether the folder holds a finished run."""
        return self.file("config.json").is_file() and self.file("model.json").is_file()

    def begin(self, description: dict, resume: bool) -> None:
        """Create the folder and write config.json.

        Args:
            description: Content of config.json, see :meth:`check`.
            resume: Keep an existing run, which :meth:`check` has found to match; otherwise it is removed.

        Raises:
            ValueError: If the folder has files with the names of a run's but no config.json.
        """
        ours = self.file("config.json").is_file()
        if ours and resume:
            return
        if not ours and (strangers := sorted(file.name for file in self._files())):
            raise ValueError(
                f"{self.path} holds {', '.join(strangers[:3])} but no config.json of a run, and a training would "
                "replace them: take another folder"
            )
        for file in self._files():  # model.json first: without it the old run is unfinished and can be repeated
            file.unlink()
        write_json(self.file("config.json"), description)

    def clear(self) -> None:
        """Remove the run in the folder."""
        for file in [*self._files(), self.file("config.json")]:
            file.unlink(missing_ok=True)

    def append(self, row: dict) -> None:
        """Append one epoch to the metrics.

        Args:
            row: Metrics of the epoch, JSON values.

        Raises:
            OSError: If the folder was removed, or another process has taken it over.
        """
        self._check_place()
        append_json_line(self.file("metrics.jsonl"), row)

    def history(self) -> list[dict]:
        """Return the metrics up to the last checkpoint; for a finished run, all of them.

        Raises:
            ValueError: If a file is damaged.
        """
        if self.file("checkpoint.json").is_file():
            return self._state()["history"]
        return _read_lines(self.file("metrics.jsonl"))

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict]) -> None:
        """Write a checkpoint.

        Args:
            model: Model whose weights to save.
            optimizer: Optimizer whose momentum to save.
            history: Metrics of the epochs so far.

        Raises:
            OSError: If the folder was removed, or another process has taken it over.
        """
        self._check_place()
        epoch = len(history)
        tensors = {f"model.{name}": tensor for name, tensor in tensors_of(model).items()}
        for name, parameter in model.named_parameters():
            momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        data = to_bytes(tensors)
        file = self.file(f"checkpoint-{epoch:05d}.safetensors")
        write_bytes(file, data, follow=False)
        self._write_state(history, {"file": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        self._drop_tensors(but=file.name)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict]:
        """Load the last checkpoint into model and optimizer.

        metrics.jsonl is truncated to the checkpoint. A finished run whose model.json is gone is repeated from the
        start, with a warning.

        Args:
            model: Model to fill.
            optimizer: Optimizer to fill.

        Returns:
            The history so far, empty if there is no checkpoint.

        Raises:
            FileNotFoundError: Naming the file that is missing.
            ValueError: Naming the file that is damaged or does not fit the model.
        """
        path = self.file("checkpoint.json")
        history: list[dict] = []
        if path.is_file():
            state = self._state()
            if state["tensors"] is None:
                warnings.warn(f"{self.path}: its model.json is gone; the training is repeated", stacklevel=4)
            else:
                entry, history = state["tensors"], state["history"]
                file = self.file(entry["file"])
                try:
                    tensors = from_bytes(read_checked(file, entry["bytes"], entry["sha256"]), file)
                except (FileNotFoundError, ValueError) as error:
                    raise type(error)(f"{error}; {_RESTART} trains from scratch") from error
                _restore(file, tensors, model, optimizer)
        write_json_lines(self.file("metrics.jsonl"), history)
        return history

    def finish(self, history: list[dict]) -> None:
        """Remove the checkpoint tensors after the model is saved, and keep the history.

        Args:
            history: Metrics of all epochs.
        """
        self._write_state(history, None)
        self._drop_tensors()

    def tidy(self) -> None:
        """Clean up after a finished run that was killed before its last step."""
        if self.file("checkpoint.json").is_file() and self._state()["tensors"] is not None:
            self.finish(self.history())

    def is_tidy(self) -> bool:
        """Return whether no temporary files or checkpoint tensors remain."""
        return not self._tensors() and not any(p.suffix in (".tmp", ".lock") for p in self.path.glob(".*"))

    def _state(self) -> dict:
        path = self.file("checkpoint.json")
        state = read_json(path)
        if state.get("format") != _FORMAT:
            raise ValueError(f"{path} should be a checkpoint of format {_FORMAT!r}, got {state.get('format')!r}")
        state = read_json(path, _STATE)
        epochs = [row["epoch"] for row in state["history"]]
        if len(epochs) != state["epoch"] or epochs != list(range(1, len(epochs) + 1)):
            raise ValueError(f"{path} is damaged: its history should be of the epochs 1 .. {state['epoch']}")
        return state

    def _check_place(self) -> None:
        """Raise OSError if the folder was removed or taken over by another process."""
        if self._lock is not None:
            self._lock.check()
        if not self.file("config.json").is_file():
            raise FileNotFoundError(f"{self.path} or its config.json was removed during the training")

    def _write_state(self, history: list[dict], tensors: dict | None) -> None:
        state = {"format": _FORMAT, "epoch": len(history), "tensors": tensors, "history": history}
        write_json(self.file("checkpoint.json"), state)

    def _drop_tensors(self, but: str = "") -> None:
        for file in self._tensors():
            if file.name != but:
                file.unlink(missing_ok=True)

    def _tensors(self) -> list[Path]:
        return [file for file in self.path.glob("checkpoint-*.safetensors") if _TENSORS.fullmatch(file.name)]

    def _files(self) -> list[Path]:
        """Return the files of a run other than config.json."""
        names = ("model.json", "model.safetensors", "checkpoint.json", "metrics.jsonl")
        return [*(file for name in names if (file := self.file(name)).is_file()), *self._tensors()]


def _read_lines(path: Path) -> list[dict]:
    """Read the rows of metrics; a damaged line raises ValueError naming file and line."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            row = json.loads(line)
            check_fields(row, _EPOCH)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged in line {number}: {error}; {_RESTART} trains from scratch") from error
        rows.append(row)
    return rows


def _restore(file: Path, tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: t.clone() for name, t in tensors.items() if name.startswith(prefix)}

    momentum = part("momentum.")
    try:
        fill(model, state_of(part("model.")))
        for name, parameter in model.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter)  # in the parameter's own memory format
                optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(momentum[name])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} does not fit the model: {error}") from error


def _identity(description: dict) -> dict:
    config = {key: value for key, value in description.get("config", {}).items() if key not in _FREE}
    # A data set is identified by its content: a constructed one is named after its folder, which may have moved.
    data = {
        split: entry and {key: value for key, value in entry.items() if key != "name"}
        for split, entry in (description.get("data") or {}).items()
    }
    # A round trip through JSON, so that values read back compare equal to those about to be written.
    return json.loads(json.dumps({"config": config, "data": data}))


def _differences(old: object, new: object, name: str = ""):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name.removeprefix('config.')} was {old!r} and is now {new!r}"
