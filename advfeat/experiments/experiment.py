"""What an experiment is to the command that lists and runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Result
from advfeat.experiments.stages import Measurement, MissingData, Stage, all_stages
from advfeat.experiments.workspace import Workspace

Plan = dict[Any, list[Measurement]]


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    name: on the command line. title: what it is. source: where in the paper. paper: its numbers, in a line.
    plan: the measurements that it needs at a preset, by name. report: what they show, done in a workspace where they
    are not done yet; a MissingData says what data of the user's there is none of.
    setting: the preset as it is used here. dataset: the one it is about, where it is about one. needs: files of the
    user's, in words.
    """

    name: str
    title: str
    source: str
    paper: str
    plan: Callable[[Preset], Plan]
    report: Callable[[Workspace, Preset, Plan], Result]
    setting: Callable[[Preset], Preset] = lambda p: p
    dataset: str | None = None
    needs: str = ""

    def stages(self, preset: Preset) -> dict[str, Stage]:
        """All that it rests on, by key, each after what it needs."""
        return all_stages(stage for of_name in self.plan(self.setting(preset)).values() for stage in of_name)

    def concerns(self, preset: Preset) -> bool:
        """Whether it is about the preset's data set."""
        return self.dataset in (None, preset.dataset)

    def check(self, preset: Preset) -> None:
        """Raises MissingData for a preset on data that the experiment is not about."""
        if not self.concerns(preset):
            raise MissingData(
                f"{self.name} is about {self.dataset}, and the preset {preset.name} is on {preset.dataset}: take "
                "--preset cifar10-cpu or cifar10"
            )
