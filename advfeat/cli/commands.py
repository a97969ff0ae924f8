"""The options of each command, as dataclasses; what a command does is in the module of its name.

Nothing heavy is imported before a command runs, so that ``advfeat --help`` need not wait for torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from advfeat.cli.options import (
    Count,
    CountOrNone,
    Data,
    NeededPath,
    Norm,
    Number,
    OptionalCount,
    OptionalCountOrNone,
    OptionalMinutes,
    OptionalPath,
    OptionalRadii,
    OptionalRadius,
    OptionalText,
    Radius,
    Runtime,
    Seed,
    root_from_environment,
)


@dataclass(frozen=True)
class Train:
    """Train a classifier, by standard or by adversarial training, into a run folder."""

    out: NeededPath
    """The run folder: model, config, metrics, checkpoint. A run that was interrupted goes on."""
    restart: bool = False
    """Train anew, in the place of the run that is there, whatever its settings were."""
    data: Data = field(default_factory=Data)
    test_dataset: OptionalText = None
    """What to test on after each epoch; for a constructed set, the data set it was built from."""
    arch: str = "small-convnet"
    """small-convnet, resnet18, resnet50, vgg16, inception_v3 or densenet121."""
    width: OptionalCount = None
    """Channels of the first layer, which the others follow; default 32 for small-convnet and inception_v3, else 64."""
    epochs: Count = 20
    lr: Number = 0.1
    """The highest of the one-cycle schedule."""
    train_batch_size: Count = 128
    weight_decay: Number = 5e-4
    augment: Literal["none", "shift", "crop-flip"] = "none"
    allow_flip: bool = False
    """Also flip images whose classes are named like digits."""
    adversarial: Literal["none", "l2", "linf"] = "none"
    """Train on adversarial examples of this norm."""
    eps: OptionalRadius = None
    """Radius of adversarial training, in pixel scale [0, 1], also as 8/255."""
    attack_steps: OptionalCountOrNone = None
    """Steps of its attack (default: 7)."""
    attack_step_size: OptionalRadius = None
    """Default eps / 5, the paper's."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: Seed = 0
    device: OptionalText = None
    """cpu, cuda, cuda:1, ...; the first GPU if there is one."""
    amp: Literal["none", "bf16"] = "none"
    """Run the model in bfloat16."""

    def run(self) -> None:
        from advfeat.cli import train

        train.run(self)


@dataclass(frozen=True)
class Build:
    """Build D_R, D_NR, D_rand or D_det with a trained model. Goes on where it was interrupted."""

    recipe: Positional[Literal["robust", "nonrobust", "rand", "det"]]
    model: NeededPath
    """A run folder of advfeat train; an adversarially trained one for "robust", a standard one for the others."""
    out: NeededPath
    """The folder of the set."""
    data: Data = field(default_factory=Data)
    preset: Literal["cifar10", "restricted-imagenet", "digits", "cifar10-cpu"] | None = None
    """Settings; by default those of the data set (cifar10: the paper's)."""
    eps: OptionalRadius = None
    """Radius of the perturbation (rand and det)."""
    steps: OptionalCountOrNone = None
    step_size: OptionalRadius = None
    start: Literal["image", "noise"] | None = None
    """What the robust and nonrobust sets start from."""
    converge: bool = False
    """Of robust and nonrobust: end a sample's steps once its distance has stopped falling, by 5 % in 50 steps."""
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    """How images are stored; uint8 is rounded inside the ball."""
    shard_size: Count = 2000
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: Seed = 0
    compile: bool = False
    """torch.compile the model."""
    any_source: bool = False
    """Take a model that was trained in another way than the recipe asks for."""
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat.cli import build

        build.run(self)


@dataclass(frozen=True)
class Evaluate:
    """Clean and robust accuracy of a trained model, with confidence intervals."""

    model: NeededPath
    """A run folder of advfeat train."""
    data: Data = field(default_factory=Data)
    split: Literal["train", "test"] = "test"
    norm: Norm = "l2"
    eps: OptionalRadii = None
    """Radii, in pixel scale [0, 1], also as 8/255; default 0.25 0.5 for l2, 4/255 8/255 for linf."""
    attack: Literal["strong", "pgd", "apgd", "auto"] = "strong"
    """strong: 20 steps of PGD, then the first two attacks of AutoAttack on what is left; these two alone (auto), the
    first of them (apgd), or PGD from the sample, which can leave much more standing (pgd)."""
    steps: OptionalCountOrNone = None
    """Default 40 for pgd, 100 for each run of Auto-PGD."""
    step_size: OptionalRadius = None
    """Of pgd; default 2.5 * eps / steps."""
    restarts: Count = 1
    """From so many random points; 1: from the sample itself (pgd), from one (apgd, auto)."""
    stop: bool = False
    """Of pgd: leave a sample once it is broken. The same accuracy, several times faster; no margins of the broken."""
    out: OptionalPath = None
    """Also write the results, with every setting, as JSON; sample by sample beside it, as NAME.samples.jsonl."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: Seed = 0
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat.cli import evaluate

        evaluate.run(self)


@dataclass(frozen=True)
class Attack:
    """Adversarial examples for the images of a data set, saved with their statistics and a picture."""

    model: NeededPath
    """A run folder of advfeat train."""
    out: NeededPath
    """A folder for adversarial.safetensors, attack.json and samples.png."""
    data: Data = field(default_factory=Data)
    split: Literal["train", "test"] = "test"
    norm: Norm = "l2"
    eps: OptionalRadius = None
    """Radius, in pixel scale [0, 1], also as 8/255; default 0.5 for l2, 8/255 for linf."""
    steps: CountOrNone = 40
    step_size: OptionalRadius = None
    restarts: Count = 1
    target: Literal["none", "next"] = "none"
    """Leave the label, or reach the next class."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: Seed = 0
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat.cli import attack

        attack.run(self)


@dataclass(frozen=True)
class Features:
    """How useful each feature of a model's representation is, and how much of it an adversary leaves (Section 2)."""

    model: NeededPath
    """A run folder of advfeat train."""
    data: Data = field(default_factory=lambda: Data(limit=500))
    split: Literal["train", "test"] = "test"
    norm: Norm = "l2"
    eps: OptionalRadius = None
    """Radius, in pixel scale [0, 1], also as 8/255; default 0.25 for l2, 4/255 for linf."""
    steps: CountOrNone = 10
    step_size: OptionalRadius = None
    """Default 2.5 * eps / steps."""
    show: CountOrNone = 20
    """Rows of the table, the most useful features first."""
    out: OptionalPath = None
    """A folder for features.json (every feature and setting) and features.png (gamma against rho)."""
    same_classes: bool = False
    """Classes are compared by name; take those of the same number for the same, whatever their names are."""
    seed: Seed = 0
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        from advfeat.cli import features

        features.run(self)


@dataclass(frozen=True)
class Demo:
    """The paper's main experiment on scikit-learn's digits: six models, four sets, one report."""

    out: NeededPath = Path("report")
    """The folder of the report; steps that are already done there are not done again."""
    preset: Literal["digits", "cifar10-cpu"] = "digits"
    """cifar10-cpu takes about 40 minutes on two cores and needs --root."""
    root: OptionalPath = field(default_factory=root_from_environment)
    """Where CIFAR-10 lies (default: the environment variable ADVFEAT_DATA)."""
    seed: Seed = 0

    def run(self) -> None:
        from advfeat.cli import reproduce

        reproduce.demo(self)


@dataclass(frozen=True)
class Reproduce:
    """The paper's tables and figures, one name each: our numbers, the paper's, verdicts, and a page of a report."""

    name: Positional[OptionalText] = None
    """table1, figure2, ... or all; without a name, the list."""
    list: bool = False
    """Show the experiments with the paper's numbers and the expected times."""
    measure: bool = False
    """The list with the times that this machine will take for the preset, from a few batches of each network."""
    preset: Literal["digits", "cifar10-cpu", "cifar10"] = "digits"
    """digits: minutes; cifar10-cpu: small networks, for two cores; cifar10: the paper's network, for a GPU."""
    arch: OptionalText = None
    """Another network in the place of the preset's own, as resnet18 with cifar10."""
    seeds: OptionalCount = None
    """So many seeds, 0, 1, ..."""
    out: OptionalPath = None
    """The folder of models, sets and pages (default: reproduction/PRESET); what is done there is not done again."""
    root: OptionalPath = field(default_factory=root_from_environment)
    """Where data sets lie (default: the environment variable ADVFEAT_DATA)."""
    minutes: OptionalMinutes = None
    """Stop after so many minutes and what is under way, an epoch or a shard, with exit status 75; the same command
    goes on."""
    device: OptionalText = None
    """cpu, cuda, cuda:1, ...; the first GPU if there is one."""

    def run(self) -> None:
        from advfeat.cli import reproduce

        reproduce.reproduce(self)


@dataclass(frozen=True)
class Info:
    """What was built and what it runs on; or what a run folder or a constructed set is."""

    path: Positional[OptionalPath] = None
    """A run folder or the folder of a constructed set."""

    def run(self) -> None:
        from advfeat.cli import info

        info.run(self)


@dataclass(frozen=True)
class Theory:
    """Theorems 1-3 on a Gaussian task: closed forms, numerical values, sampling, verdicts; and Figures 4 and 14."""

    dim: OptionalCount = None
    """Dimension; by default the number of variances given."""
    eps: Radius = 0.8
    """Radius of the adversary."""
    covariance: str = "3,0.7,0.2"
    """Variances "3,0.7,0.2", "isotropic:2", "geometric:1e4", or a .npy, .csv or .txt file."""
    seed: Seed = 0
    out: NeededPath = Path("theory-report")
    """The folder of the figures."""
    samples: Count = 100_000
    """Of each Monte Carlo estimate."""

    def run(self) -> None:
        from advfeat.theory import command

        report = command.run(command.TheoryConfig(**dataclasses.asdict(self)))
        if not report.ok:
            raise SystemExit(1)


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
