"""What an experiment is to the command that lists and runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from advfeat.experiments.lab import Lab
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Result
from advfeat.experiments.steps import Measurement, Step, all_steps

Plan = dict[Any, list[Measurement]]


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    name: on the command line. title: what it is. source: where in the paper. paper: its numbers, in a line.
    plan: the measurements that it needs at a preset, by name. report: what they show, done in a lab where they are not
    done yet; a FileNotFoundError says what data of the user's is missing.
    dataset: the one it is about, where it is about one. needs: files of the user's, in words.
    """

    name: str
    title: str
    source: str
    paper: str
    plan: Callable[[Preset], Plan]
    report: Callable[[Lab, Preset, Plan], Result]
    dataset: str | None = None
    needs: str = ""

    def steps(self, preset: Preset) -> dict[str, Step]:
        """All that it rests on, by key, each after what it needs."""
        return all_steps(step for of_name in self.plan(preset).values() for step in of_name)

    def check(self, preset: Preset) -> None:
        """Raises FileNotFoundError for a preset on data that the experiment is not about."""
        if self.dataset not in (None, preset.dataset):
            raise FileNotFoundError(
                f"{self.name} is about {self.dataset}: the preset {preset.name} is on {preset.dataset}"
            )
