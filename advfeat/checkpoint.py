"""The folder of a training: its config, its metrics, and checkpoints from which it goes on as if nothing had happened.

``config.json``         the resolved config, the data, and what it ran with
``metrics.jsonl``       one line an epoch
``checkpoint.json``     the epoch reached and the history; names the file with weights and momentum, and its checksum
``checkpoint-*.safetensors``
``model.safetensors``, ``model.json``    the trained model; while they are missing, the training is not finished
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from advfeat.runs import append_json_line, read_checked, read_json, write_bytes, write_json, write_json_lines

_FORMAT = "advfeat-checkpoint-1"
# Of the config, what does not change the result and may differ when a run goes on.
_FREE = ("checkpoint_every",)
_TENSORS = re.compile(r"checkpoint-\d{5,}\.safetensors")


class RunFolder:
    """Reads and writes the folder of one training; every write is atomic."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def file(self, name: str) -> Path:
        return self.path / name

    def is_finished(self, description: dict) -> bool:
        """Whether a run with this config and this data is there and finished; writes nothing.

        description: {"config": ..., "data": ...}, and whatever else goes into config.json. Errors: ValueError naming
        the settings that differ from those of the run that is there.
        """
        path = self.file("config.json")
        if not path.is_file():
            return False
        differing = list(_differences(_identity(read_json(path)), _identity(description)))
        if differing:
            raise ValueError(
                f"{self.path} holds another run ({'; '.join(differing[:4])}): take another folder, or resume=False to "
                "replace it"
            )
        return self.file("model.json").is_file()

    def begin(self, description: dict, resume: bool) -> None:
        """Makes the folder; with ``resume`` what is in it stays, as :meth:`is_finished` has seen that it fits.

        Errors: ValueError for files of these names that are no run's.
        """
        ours = self.file("config.json").is_file()
        if ours and resume:
            return
        if not ours and (strangers := sorted(file.name for file in self._files())):
            raise ValueError(
                f"{self.path} holds {', '.join(strangers[:3])} but no config.json of a run, and a training would "
                "replace them: take another folder"
            )
        for file in self._files():
            file.unlink()
        write_json(self.file("config.json"), description)

    def append(self, row: dict) -> None:
        """One more line of metrics."""
        append_json_line(self.file("metrics.jsonl"), row)

    def history(self) -> list[dict]:
        """The metrics of the last checkpoint; for a finished run all of them."""
        path = self.file("checkpoint.json")
        return read_json(path)["history"] if path.is_file() else []

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict]) -> None:
        """A checkpoint after the epochs in the history."""
        epoch = len(history)
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        data = safetensors.torch.save(
            {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        )
        file = self.file(f"checkpoint-{epoch:05d}.safetensors")
        write_bytes(file, data)
        self._write_state(history, {"file": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        self._drop_tensors(but=file.name)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict]:
        """Puts the last checkpoint into model and optimizer; the history so far, empty if there is no checkpoint.

        metrics.jsonl is cut back to the checkpoint. Errors: FileNotFoundError and ValueError naming the file.
        """
        path = self.file("checkpoint.json")
        history: list[dict] = []
        if path.is_file():
            state = read_json(path)
            if state.get("format") != _FORMAT:
                raise ValueError(f"{path} should be a checkpoint of format {_FORMAT!r}, got {state.get('format')!r}")
            if state.get("tensors") is None:
                raise ValueError(
                    f"{path}: the training was finished, but its model.json is gone; resume=False repeats it"
                )
            entry, history = state["tensors"], state["history"]
            file = self.file(Path(entry["file"]).name)
            tensors = safetensors.torch.load(read_checked(file, entry["bytes"], entry["sha256"]))
            _restore(file, tensors, model, optimizer)
        write_json_lines(self.file("metrics.jsonl"), history)
        return history

    def finish(self, history: list[dict]) -> None:
        """The model is saved: the checkpoint's tensors go, the history stays."""
        self._write_state(history, None)
        self._drop_tensors()

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
        """What a run leaves in its folder beside config.json."""
        names = ("model.json", "model.safetensors", "checkpoint.json", "metrics.jsonl")
        return [*(file for name in names if (file := self.file(name)).is_file()), *self._tensors()]


def _restore(file: Path, tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: t.clone() for name, t in tensors.items() if name.startswith(prefix)}

    momentum = part("momentum.")
    try:
        model.load_state_dict(part("model."), strict=True)
        for name, parameter in model.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter)  # in the parameter's own memory format
                optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(momentum[name])
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the model: {error}") from error


def _identity(description: dict) -> dict:
    config = {key: value for key, value in description.get("config", {}).items() if key not in _FREE}
    # A data set is what it holds: a constructed one is named after its folder, which may have moved.
    data = {
        split: entry and {key: value for key, value in entry.items() if key != "name"}
        for split, entry in (description.get("data") or {}).items()
    }
    # Through JSON, so that what was read compares with what is about to be written.
    return json.loads(json.dumps({"config": config, "data": data}))


def _differences(old: object, new: object, name: str = ""):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name.removeprefix('config.')} was {old!r} and is now {new!r}"
