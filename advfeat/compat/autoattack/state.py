"""The state of an evaluation by AutoAttack on disk, in JSON, with the keys of the authors' ``autoattack.state``.

Theirs cannot be read back: a set is written as its text, and a state that has no flags yet is refused. Here the attacks
are lists, and the adversarial examples lie beside the file, as ``NAME.safetensors``.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from advfeat.files import write_together
from advfeat.json_files import read_json, to_json

_SAVE_TIMEOUT = 60  # seconds


class EvaluationState:
    """Which attacks have run, and which samples are still robust.

    Args:
        set_of_attacks: the names of the attacks, in order.
        path: the file; None saves nothing.
        robust_flags: bool [N], once the clean samples have been classified.
    """

    def __init__(
        self, set_of_attacks: Iterable[str], path: Path | str | None = None, robust_flags: Tensor | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        self._attacks_to_run = list(set_of_attacks)
        self._run_attacks: list[str] = []
        self._robust_flags = robust_flags
        self._clean_accuracy = float("nan")
        self._last_saved = datetime.datetime.min
        self.x_adv: Tensor | None = None

    @property
    def attacks_to_run(self) -> set[str]:
        """The names of all attacks."""
        return set(self._attacks_to_run)

    @property
    def run_attacks(self) -> set[str]:
        """The names of the attacks that have run."""
        return set(self._run_attacks)

    @property
    def robust_flags(self) -> Tensor | None:
        """Which samples are still robust, bool [N]."""
        return self._robust_flags

    @robust_flags.setter
    def robust_flags(self, robust_flags: Tensor) -> None:
        self._robust_flags = robust_flags
        self.to_disk(force=True)

    @property
    def clean_accuracy(self) -> float:
        """The share of samples that are classified correctly."""
        return self._clean_accuracy

    @clean_accuracy.setter
    def clean_accuracy(self, accuracy: float) -> None:
        self._clean_accuracy = accuracy
        self.to_disk(force=True)

    @property
    def robust_accuracy(self) -> float:
        """The share of samples that are still robust.

        Raises:
            ValueError: The samples have not been classified, or attacks are left to run.
        """
        if self._robust_flags is None:
            raise ValueError("robust_flags should be set before the robust accuracy is asked for, got None")
        if left := [name for name in self._attacks_to_run if name not in self._run_attacks]:
            warnings.warn(f"the robust accuracy is without {', '.join(left)}", RuntimeWarning, stacklevel=2)
        return float(self._robust_flags.double().mean())

    def add_run_attack(self, attack: str) -> None:
        """Records an attack as run.

        Args:
            attack: its name.
        """
        self._run_attacks.append(attack)
        self.to_disk(force=True)

    def to_disk(self, force: bool = False) -> None:
        """Writes the state, both files whole or not at all.

        Args:
            force: also within a minute of the last time.
        """
        now = datetime.datetime.now()
        if self.path is None or (not force and (now - self._last_saved).total_seconds() < _SAVE_TIMEOUT):
            return
        self._last_saved = now
        values = {
            "_attacks_to_run": self._attacks_to_run,
            "path": str(self.path),
            "_run_attacks": self._run_attacks,
            "_robust_flags": None if self._robust_flags is None else self._robust_flags.tolist(),
            "_last_saved": now.isoformat(),
            "_SAVE_TIMEOUT": _SAVE_TIMEOUT,
            "_clean_accuracy": None if self._clean_accuracy != self._clean_accuracy else self._clean_accuracy,
        }
        files: list[tuple[Path, bytes]] = []
        if self.x_adv is not None:
            files.append((self._images, save({"x_adv": self.x_adv.detach().cpu().contiguous()})))
        write_together([*files, (self.path, to_json(values))])

    @property
    def _images(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.safetensors")

    @classmethod
    def from_disk(cls, path: Path | str) -> EvaluationState:
        """Reads a state.

        Args:
            path: the file.

        Returns:
            The state, with the adversarial examples found so far if they lie beside the file.

        Raises:
            ValueError: The file is damaged.
            OSError: It cannot be read.
        """
        path = Path(path)
        values = read_json(path, {"_attacks_to_run": [str], "_run_attacks": [str], "path": str})
        if values["path"] != str(path):
            warnings.warn(f"{path} was written as {values['path']}", RuntimeWarning, stacklevel=2)
        state = cls(values["_attacks_to_run"], path)
        state._run_attacks = values["_run_attacks"]
        if values.get("_robust_flags") is not None:
            state._robust_flags = torch.tensor(values["_robust_flags"], dtype=torch.bool)
        if values.get("_clean_accuracy") is not None:
            state._clean_accuracy = float(values["_clean_accuracy"])
        if state._images.is_file():
            state.x_adv = load_file(state._images)["x_adv"]
        return state
