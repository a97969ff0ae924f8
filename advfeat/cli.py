"""The command line: ``advfeat train | build | evaluate | attack | features | demo | reproduce | theory | info``.

Settings come from dataclasses, so ``advfeat COMMAND --help`` shows every one of them with its default. Nothing heavy is
imported before a command runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, subcommand


def _root_from_environment() -> Path | None:
    root = os.environ.get("ADVFEAT_DATA")
    return Path(root) if root else None


@dataclass(frozen=True)
class Data:
    """Which images."""

    dataset: str = "digits"
    """digits, planted, cifar10, cifar10.1, fashion-mnist, mnist, folder, or the folder of a constructed set."""
    root: Path | None = field(default_factory=_root_from_environment)
    """Where the data set lies (default: the environment variable ADVFEAT_DATA); digits and planted need none."""
    limit: int | None = None
    """Use a class-balanced part of this many images."""
    size: int | tuple[int, int] | None = None
    """Side in pixels, or height and width, to which the images of a folder are brought; a model's own by default."""
    holdout: float | None = None
    """Of a folder without test images: hold out this share of the training images, the same ones in every command."""

    def load(self, split: str, input_shape: tuple[int, ...] | None = None):
        """input_shape: what the model takes, (C, H, W); images of any size are brought to it unless a size is given."""
        from advfeat.datasets import sources

        fitting = {} if input_shape is None else sources.options_for(self.dataset, input_shape)
        return sources.load(self.dataset, split=split, root=self.root, limit=self.limit, **(fitting | self.options()))

    def options(self) -> dict:
        """What was given of how to read images, by name."""
        given = {"size": self.size, "holdout": self.holdout}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Runtime:
    """Where and how it runs."""

    device: str | None = None
    """cpu, cuda, cuda:1, ...; the first GPU if there is one."""
    amp: Literal["none", "bf16"] = "none"
    """Run the model in bfloat16; iterates and projections stay in float32."""
    batch_size: int = 250

    def torch_device(self):
        import torch

        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # torchrun gives each process a GPU
        return torch.device(self.device or (own if torch.cuda.is_available() else "cpu"))

    def autocast(self):
        import torch

        return torch.bfloat16 if self.amp == "bf16" else None


@dataclass(frozen=True)
class Train:
    """Train a classifier, by standard or by adversarial training, into a run folder."""

    out: Path
    """The run folder: model, config, metrics, checkpoint. A run that was interrupted goes on."""
    restart: bool = False
    """Train anew, in the place of the run that is there, whatever its settings were."""
    data: Data = field(default_factory=Data)
    test_dataset: str | None = None
    """What to test on after each epoch; for a constructed set, the data set it was built from."""
    arch: str = "small-convnet"
    """small-convnet, resnet18, resnet50, vgg16, inception_v3 or densenet121."""
    width: int | None = None
    """Channels of the first layer, which the others follow; default 32 for small-convnet and inception_v3, else 64."""
    epochs: int = 20
    lr: float = 0.1
    """The highest of the one-cycle schedule."""
    train_batch_size: int = 128
    weight_decay: float = 5e-4
    augment: Literal["none", "shift", "crop-flip"] = "none"
    allow_flip: bool = False
    """Also flip images whose classes are named like digits."""
    adversarial: Literal["none", "l2", "linf"] = "none"
    """Train on adversarial examples of this norm."""
    eps: float | None = None
    """Radius of adversarial training, in pixel scale [0, 1]."""
    attack_steps: int = 7
    attack_step_size: float | None = None
    """Default eps / 5, the paper's."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: int = 0
    device: str | None = None
    amp: Literal["none", "bf16"] = "none"

    def run(self) -> None:
        from advfeat import commands

        commands.train(self)


@dataclass(frozen=True)
class Build:
    """Build D_R, D_NR, D_rand or D_det with a trained model. Goes on where it was interrupted."""

    recipe: Positional[Literal["robust", "nonrobust", "rand", "det"]]
    model: Path
    """A run folder of advfeat train; an adversarially trained one for "robust", a standard one for the others."""
    out: Path
    """The folder of the set."""
    data: Data = field(default_factory=Data)
    preset: Literal["cifar10", "restricted-imagenet", "digits", "cifar10-cpu"] | None = None
    """Settings; by default those of the data set (cifar10: the paper's)."""
    eps: float | None = None
    """Radius of the perturbation (rand and det)."""
    steps: int | None = None
    step_size: float | None = None
    start: Literal["image", "noise"] | None = None
    """What the robust and nonrobust sets start from."""
    converge: bool = False
    """Of robust and nonrobust: end a sample's steps once its distance has stopped falling, by 5 % in 50 steps."""
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    """How images are stored; uint8 is rounded inside the ball."""
    shard_size: int = 2000
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: int = 0
    compile: bool = False
    """torch.compile the model."""
    any_source: bool = False
    """Take a model that was trained in another way than the recipe asks for."""
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat import commands

        commands.build(self)


@dataclass(frozen=True)
class Evaluate:
    """Clean and robust accuracy of a trained model, with confidence intervals."""

    model: Path
    """A run folder of advfeat train."""
    data: Data = field(default_factory=Data)
    split: Literal["train", "test"] = "test"
    norm: Literal["l2", "linf"] = "l2"
    eps: tuple[float, ...] = (0.25, 0.5)
    """Radii, in pixel scale [0, 1]."""
    attack: Literal["strong", "pgd", "apgd", "auto"] = "strong"
    """strong: 20 steps of PGD, then the first two attacks of AutoAttack on what is left; these two alone (auto), the
    first of them (apgd), or PGD from the sample, which can leave much more standing (pgd)."""
    steps: int | None = None
    """Default 40 for pgd, 100 for each run of Auto-PGD."""
    step_size: float | None = None
    """Of pgd; default 2.5 * eps / steps."""
    restarts: int = 1
    stop: bool = False
    """Of pgd: leave a sample once it is broken. The same accuracy, several times faster; no margins of the broken."""
    out: Path | None = None
    """Also write the results, with every setting, as JSON."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat import commands

        commands.evaluate(self)


@dataclass(frozen=True)
class Attack:
    """Adversarial examples for the images of a data set, saved with their statistics and a picture."""

    model: Path
    """A run folder of advfeat train."""
    out: Path
    """A folder for adversarial.safetensors, attack.json and samples.png."""
    data: Data = field(default_factory=Data)
    split: Literal["train", "test"] = "test"
    norm: Literal["l2", "linf"] = "l2"
    eps: float = 0.5
    """Radius, in pixel scale [0, 1]."""
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    target: Literal["none", "next"] = "none"
    """Leave the label, or reach the next class."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat import commands

        commands.attack(self)


@dataclass(frozen=True)
class Features:
    """How useful each feature of a model's representation is, and how much of it an adversary leaves (Section 2)."""

    model: Path
    """A run folder of advfeat train."""
    data: Data = field(default_factory=lambda: Data(limit=500))
    split: Literal["train", "test"] = "test"
    norm: Literal["l2", "linf"] = "l2"
    eps: float = 0.25
    """Radius, in pixel scale [0, 1]."""
    steps: int = 10
    step_size: float | None = None
    """Default 2.5 * eps / steps."""
    show: int = 20
    """Rows of the table, the most useful features first."""
    out: Path | None = None
    """A folder for features.json (every feature and setting) and features.png (gamma against rho)."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat import commands

        commands.features(self)


@dataclass(frozen=True)
class Demo:
    """The paper's main experiment on scikit-learn's digits: six models, four sets, one report."""

    out: Path = Path("report")
    """The folder of the report; steps that are already done there are not done again."""
    preset: Literal["digits", "cifar10-cpu"] = "digits"
    """cifar10-cpu takes about 40 minutes on two cores and needs --root."""
    root: Path | None = field(default_factory=_root_from_environment)
    """Where CIFAR-10 lies (default: the environment variable ADVFEAT_DATA)."""
    seed: int = 0

    def run(self) -> None:
        from advfeat import reproduce

        reproduce.demo(self)


@dataclass(frozen=True)
class Reproduce:
    """The paper's tables and figures, one name each: our numbers, the paper's, verdicts, and a page of a report."""

    name: Positional[str | None] = None
    """table1, figure2, ... or all; without a name, the list."""
    list: bool = False
    """Show the experiments with the paper's numbers and the expected times."""
    measure: bool = False
    """The list with the times that this machine will take for the preset, from a few batches of each network."""
    preset: Literal["digits", "cifar10-cpu", "cifar10"] = "digits"
    """digits: minutes; cifar10-cpu: small networks, for two cores; cifar10: the paper's network, for a GPU."""
    arch: str | None = None
    """Another network in the place of the preset's own, as resnet18 with cifar10."""
    seeds: int | None = None
    """So many seeds, 0, 1, ..."""
    out: Path | None = None
    """The folder of models, sets and pages (default: reproduction/PRESET); what is done there is not done again."""
    root: Path | None = field(default_factory=_root_from_environment)
    """Where data sets lie (default: the environment variable ADVFEAT_DATA)."""
    minutes: float | None = None
    """Stop after so many minutes and what is under way, an epoch or a shard, with exit status 75; the same command
    goes on."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; the first GPU if there is one."""

    def run(self) -> None:
        from advfeat import reproduce

        reproduce.reproduce(self)


@dataclass(frozen=True)
class Info:
    """What was built and what it runs on; or what a run folder or a constructed set is."""

    path: Positional[Path | None] = None
    """A run folder or the folder of a constructed set."""

    def run(self) -> None:
        from advfeat import commands

        commands.info(self)


@dataclass(frozen=True)
class Theory:
    """Theorems 1-3 on a Gaussian task: closed forms, numerical values, sampling, verdicts; and Figures 4 and 14."""

    dim: int | None = None
    """Dimension; by default the number of variances given."""
    eps: float = 0.8
    """Radius of the adversary."""
    covariance: str = "3,0.7,0.2"
    """Variances "3,0.7,0.2", "isotropic:2", "geometric:1e4", or a .npy, .csv or .txt file."""
    seed: int = 0
    out: Path = Path("theory-report")
    """The folder of the figures."""
    samples: int = 100_000
    """Of each Monte Carlo estimate."""

    def run(self) -> None:
        from advfeat.theory import command

        report = command.run(command.TheoryConfig(**dataclasses.asdict(self)))
        if not report.ok:
            raise SystemExit(2)


Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Build, subcommand("build")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Attack, subcommand("attack")]
    | Annotated[Features, subcommand("features")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Reproduce, subcommand("reproduce")]
    | Annotated[Theory, subcommand("theory")]
    | Annotated[Info, subcommand("info")]
)

# What a user can cause and mend; anything else is a defect and shows its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as of a scheduler that wants the machine for somebody else."""


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: locks are given back and nothing half-written stays."""

    def terminated(*_: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminated)
    except ValueError:  # not the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> None:
    """The ``advfeat`` command. ADVFEAT_TRACEBACK=1 shows where an error came from."""
    command = tyro.cli(
        OmitArgPrefixes[Command],
        prog="advfeat",
        description="Robust and non-robust features: attacks, data sets, training, evaluation.",
        args=arguments,
    )
    try:
        with _orderly_end():
            command.run()
    except KeyboardInterrupt as error:
        goes_on = isinstance(command, (Train, Build, Demo, Reproduce))
        how = "goes on where it stopped" if goes_on else "starts again"
        print(f"\ninterrupted; the same command {how}", file=sys.stderr)
        raise SystemExit(143 if isinstance(error, _Terminated) else 130) from None
    except _USER_ERRORS as error:
        if os.environ.get("ADVFEAT_TRACEBACK"):
            raise
        print(f"advfeat {type(command).__name__.lower()}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
