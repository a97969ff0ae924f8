"""Interface of an experiment to the command that lists and runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from advfeat.experiments.base import Measurement, MissingData, Stage, all_stages
from advfeat.experiments.presets import Preset
from advfeat.experiments.result import Result
from advfeat.experiments.stages import Evaluated
from advfeat.experiments.workspace import Workspace

Plan = Mapping[Any, Sequence[Measurement]]
Evaluations = Mapping[Any, Sequence[Evaluated]]  # a plan of accuracies alone
_P = TypeVar("_P", bound=Plan)


@dataclass(frozen=True)
class Experiment(Generic[_P]):
    """A table or figure of the paper.

    Attributes:
        name: Name on the command line.
        title: Title of its page.
        source: Where it is in the paper.
        paper: The paper's numbers, in one line.
        plan: Function that returns the measurements needed at a preset, by name.
        report: Function that evaluates them, running those that are missing. It raises MissingData if data that the
            user has to provide is missing.
        setting: Function that adapts a preset to the experiment.
        dataset: Data set that the experiment is about; None if it applies to any.
        needs: Files that the user has to provide, in words.
    """

    name: str
    title: str
    source: str
    paper: str
    plan: Callable[[Preset], _P]
    report: Callable[[Workspace, Preset, _P], Result]
    setting: Callable[[Preset], Preset] = lambda p: p
    dataset: str | None = None
    needs: str = ""

    def stages(self, preset: Preset) -> dict[str, Stage]:
        """Return all stages that the experiment rests on.

        Args:
            preset: The preset.

        Returns:
            The stages by key, each after those it needs.
        """
        return all_stages(stage for of_name in self.plan(self.setting(preset)).values() for stage in of_name)

    def concerns(self, preset: Preset) -> bool:
        """Return whether the experiment applies to a preset's data set.

        Args:
            preset: The preset.
        """
        return self.dataset in (None, preset.dataset)

    def check(self, preset: Preset) -> None:
        """Check that the experiment applies to a preset's data set.

        Args:
            preset: The preset.

        Raises:
            MissingData: If it is about another data set.
        """
        if not self.concerns(preset):
            raise MissingData(
                f"{self.name} is about {self.dataset}, but the preset {preset.name} uses {preset.dataset}: take "
                "--preset cifar10-cpu or cifar10"
            )
