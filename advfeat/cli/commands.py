"""The options of each command, as dataclasses; each command is implemented in the module of its name.

tyro builds the help from the class docstrings and the string below each field. Heavy modules are imported only when a
command runs, so that ``advfeat --help`` does not wait for torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from advfeat.cli.options import (
    QUIET,
    Count,
    CountOrNone,
    Data,
    NeededPath,
    NeededPaths,
    Norm,
    Number,
    OptionalCount,
    OptionalCountOrNone,
    OptionalMinutes,
    OptionalPath,
    OptionalRadii,
    OptionalRadius,
    OptionalShare,
    OptionalStepSize,
    OptionalText,
    Radius,
    Runtime,
    Seed,
    Share,
    root_from_environment,
)
from advfeat.datasets.registry import PresetName


@dataclass(frozen=True)
class Train:
    """Train a classifier, by standard or by adversarial training, into a run folder."""

    out: NeededPath
    """Run folder for the model, config, metrics and checkpoint. An interrupted run resumes."""
    restart: bool = False
    """Discard the run in the folder, whatever its settings, and train from scratch."""
    data: Data = field(default_factory=Data)
    test_dataset: OptionalText = None
    """Data set to test on after each epoch (default: that of --dataset; for a constructed set, its original)."""
    arch: str = "small-convnet"
    """small-convnet, resnet18, resnet50, vgg16, inception_v3 or densenet121."""
    width: OptionalCount = None
    """Channels of the first layer; the others scale (default: 32 for small-convnet, inception_v3; else 64)."""
    epochs: Count = 20
    """Passes over the training data."""
    lr: Number = 0.1
    """Peak learning rate of the one-cycle schedule."""
    train_batch_size: Count = 128
    """Images per training step."""
    weight_decay: Number = 5e-4
    """Weight decay of SGD."""
    augment: Literal["none", "shift", "crop-flip"] = "none"
    """Data augmentation: random shifts, or random shifts and horizontal flips (crop-flip)."""
    allow_flip: bool = False
    """Allow flips for data sets whose classes are digits."""
    adversarial: Literal["none", "l2", "linf", "l1"] = "none"
    """Train on adversarial examples within a ball of this norm."""
    eps: OptionalRadius = None
    """Radius for adversarial training, in pixel scale [0, 1]; may be a fraction such as 8/255."""
    attack_steps: OptionalCountOrNone = None
    """Attack steps in adversarial training (default: 7)."""
    attack_step_size: OptionalRadius = None
    """Attack step size in adversarial training, or the first one if a schedule changes it (default: eps / 5, as in the
    paper; with --attack-steps 2.5 eps / steps; with cosine eps)."""
    attack_schedule: Annotated[Literal["constant", "cosine"] | None, QUIET] = None
    """Change of the attack's step size over its steps; cosine falls towards 0. None: constant."""
    same_classes: bool = False
    """Match classes by index instead of by name."""
    seed: Seed = 0
    """Seed of the weights, the order and the augmentation."""
    device: OptionalText = None
    """cpu, cuda, cuda:1, ... (default: the first GPU if there is one)."""
    amp: Literal["none", "bf16"] = "none"
    """Mixed precision: run the model under bfloat16 autocast."""

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import train

        train.run(self)


@dataclass(frozen=True)
class Build:
    """Build D_R, D_NR, D_rand or D_det with a trained model. An interrupted build resumes."""

    recipe: Positional[Literal["robust", "nonrobust", "rand", "det"]]
    """Data set to build: robust (D_R), nonrobust (D_NR), rand (D_rand) or det (D_det)."""
    model: NeededPath
    """Run folder of advfeat train; adversarially trained for robust, standard training for the others."""
    out: NeededPath
    """Folder for the constructed set."""
    data: Data = field(default_factory=Data)
    preset: Annotated[PresetName | None, QUIET] = None
    """Named steps, radii and starts; cifar10 has the paper's. None: that of the data set, if it has one of its own."""
    fast: bool = False
    """Take the preset's fast version: about a tenth (robust, nonrobust) or a fifth (rand, det) of the steps, with step
    sizes that fall and momentum. docs/performance.md compares the sets."""
    eps: OptionalRadius = None
    """Radius of the perturbation, in pixel scale [0, 1] (rand and det only; default: the preset's)."""
    steps: OptionalCountOrNone = None
    """Gradient steps per image (default: the preset's)."""
    step_size: OptionalStepSize = None
    """Size of a gradient step, in pixel scale [0, 1], or of the first one if a schedule changes it (default: the
    preset's). polyak: Polyak's step (robust and nonrobust only)."""
    schedule: Annotated[Literal["constant", "cosine"] | None, QUIET] = None
    """Change of the step size over the steps; cosine falls towards 0. None: the preset's."""
    momentum: OptionalShare = None
    """Share of the last movement that each step repeats, at least 0 and below 1 (default: the preset's)."""
    start: Annotated[Literal["image", "noise"] | None, QUIET] = None
    """Starting point of the optimisation (robust and nonrobust only). None: the preset's."""
    converge: bool = False
    """Stop a sample once its distance falls by less than 5 % in 50 steps (robust and nonrobust only; not with --fast or
    another falling schedule, where fewer --steps are better)."""
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    """Storage type of the images; uint8 values are rounded so that they stay inside the ball."""
    shard_size: Count = 2000
    """Images per shard file."""
    same_classes: bool = False
    """Match classes by index instead of by name."""
    seed: Seed = 0
    """Seed of the starts, targets and attacks."""
    compile: bool = False
    """Compile the model with torch.compile."""
    any_source: bool = False
    """Accept a model that was not trained in the way the recipe requires."""
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import build

        build.run(self)


@dataclass(frozen=True)
class Evaluate:
    """Clean and robust accuracy of a trained model, with confidence intervals."""

    model: NeededPaths
    """Run folder of advfeat train; several are compared side by side."""
    data: Data = field(default_factory=Data)
    split: Literal["train", "test"] = "test"
    """Split of the data set to evaluate on."""
    norm: Norm = "l2"
    """Norm of the threat model."""
    eps: OptionalRadii = None
    """Radii, in pixel scale [0, 1]; may be fractions (default: 0.25 0.5 for l2, 4/255 8/255 for linf, 12 for l1)."""
    curve: bool = False
    """Search for the nearest adversarial example of each sample: robust accuracy at every radius from one run.
    Each sample has its own radii; with --curve, strong means ddn or fmn, followed by auto at up to six radii."""
    radii: OptionalRadii = None
    """Radii to print with --curve (default: those of --eps)."""
    attack: Literal["strong", "pgd", "apgd", "auto", "square", "autoattack", "fmn", "ddn"] = "strong"
    """strong: 20 steps of PGD, then the first two attacks of AutoAttack on the remaining samples;
    autoattack: AutoAttack, standard version, the number that papers print: Auto-PGD, targeted Auto-PGD, FAB-T, Square;
    auto: its first two attacks alone; apgd: the first of them; square: its last one, which takes no gradients;
    pgd: PGD started at the sample, which can overestimate robust accuracy by far;
    fmn, ddn (l2 only): look for the nearest adversarial example, fast with --curve, weaker than strong."""
    steps: OptionalCountOrNone = None
    """Attack steps (default: 40 for pgd, 100 for fmn, ddn and each run of Auto-PGD, 30 for strong with --curve, 5,000
    queries for square)."""
    step_size: OptionalRadius = None
    """Size of the first step (pgd only; default: 2 * eps, or 2.5 * eps / steps with a constant schedule)."""
    schedule: Annotated[Literal["constant", "cosine"] | None, QUIET] = None
    """Change of the step size over the steps (pgd only). None: cosine, which falls towards 0."""
    momentum: OptionalShare = None
    """Share of the last movement that each step repeats, at least 0 and below 1 (pgd only; default: 0)."""
    restarts: Count = 1
    """Number of random starts. With 1, pgd starts at the sample itself, apgd and auto at one random point."""
    stop: bool = False
    """Stop each sample at its first success (pgd only): same accuracy, several times faster, no final margins."""
    diagnose: bool = False
    """Look for masked gradients, on at most 64 samples per check: Square and a longer attack on the survivors, the
    attack with another seed, and probes of the gradient. The verdict below the table says what they found."""
    transfer: OptionalPath = None
    """Run folder of another model, whose adversarial examples are tried on the survivors of the attack."""
    out: OptionalPath = None
    """JSON file for the results and all settings; per-sample outcomes go to NAME.samples.jsonl beside it. With --curve
    the file itself holds them, and the picture is NAME.png."""
    examples: OptionalPath = None
    """File for the adversarial examples with labels, flags and distances: .safetensors or .npz."""
    state: OptionalPath = None
    """Folder in which the attacks save what they have found: the same command, if killed, resumes from it, also with
    another --batch-size. A kill loses the last batch of one attack, or the last ten seconds if they are more."""
    table: OptionalPath = None
    """File for a table: one row per model and radius, with the robust accuracy after each attack in turn. Its suffix is
    the format: .csv, .md (Markdown), .tex (LaTeX with booktabs) or .json."""
    same_classes: bool = False
    """Match classes by index instead of by name."""
    seed: Seed = 0
    """Seed of the random starts."""
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import curve, evaluate

        (curve if self.curve else evaluate).run(self)


@dataclass(frozen=True)
class Attack:
    """Attack the images of a data set with PGD and save the adversarial examples, their statistics and a picture."""

    model: NeededPath
    """Run folder of advfeat train."""
    out: NeededPath
    """Folder for adversarial.safetensors, attack.json and samples.png."""
    data: Data = field(default_factory=Data)
    split: Literal["train", "test"] = "test"
    """Split of the data set to attack."""
    norm: Norm = "l2"
    """Norm of the threat model."""
    eps: OptionalRadius = None
    """Radius, in pixel scale [0, 1]; may be a fraction (default: 0.5 for l2, 8/255 for linf)."""
    steps: CountOrNone = 40
    """PGD steps."""
    step_size: OptionalRadius = None
    """Size of the first step (default: 2 * eps, or 2.5 * eps / steps with a constant schedule)."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Change of the step size over the steps; cosine falls towards 0."""
    momentum: Share = 0.0
    """Share of the last movement that each step repeats, at least 0 and below 1."""
    restarts: Count = 1
    """Number of random starts; 1 starts at the sample itself."""
    target: Literal["none", "next"] = "none"
    """none: any class but the label; next: the class after the label."""
    same_classes: bool = False
    """Match classes by index instead of by name."""
    seed: Seed = 0
    """Seed of the random starts."""
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import attack

        attack.run(self)


@dataclass(frozen=True)
class Features:
    """Measure the usefulness of each feature of a model's representation, with and without an adversary (Section 2)."""

    model: NeededPath
    """Run folder of advfeat train."""
    data: Data = field(default_factory=lambda: Data(limit=500))
    split: Literal["train", "test"] = "test"
    """Split of the data set to measure on."""
    norm: Norm = "l2"
    """Norm of the threat model."""
    eps: OptionalRadius = None
    """Radius, in pixel scale [0, 1]; may be a fraction (default: 0.25 for l2, 4/255 for linf)."""
    steps: CountOrNone = 10
    """PGD steps for each end of a feature's range."""
    step_size: OptionalRadius = None
    """Size of the first step (default: 2 * eps, or 2.5 * eps / steps with a constant schedule)."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Change of the step size over the steps; cosine falls towards 0."""
    momentum: Share = 0.0
    """Share of the last movement that each step repeats, at least 0 and below 1."""
    show: CountOrNone = 20
    """Rows of the table; the most useful features come first."""
    out: OptionalPath = None
    """Folder for features.json (every feature and setting) and features.png (gamma against rho)."""
    same_classes: bool = False
    """Match classes by index instead of by name."""
    seed: Seed = 0
    """Seed of the random starts."""
    runtime: Runtime = field(default_factory=Runtime)

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import features

        features.run(self)


@dataclass(frozen=True)
class Demo:
    """Run the paper's main experiment on scikit-learn's digits: six models, four data sets, one report."""

    out: NeededPath = Path("report")
    """Folder for the report; completed stages in it are reused."""
    preset: Literal["digits", "cifar10-cpu", "digits-fast", "cifar10-cpu-fast"] = "digits"
    """digits needs no download; cifar10-cpu takes about 40 minutes on two cores and needs --root."""
    root: OptionalPath = field(default_factory=root_from_environment)
    """Folder with CIFAR-10 (default: the environment variable ADVFEAT_DATA)."""
    seed: Seed = 0
    """Seed of the models and data sets."""

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import reproduce

        reproduce.demo(self)


@dataclass(frozen=True)
class Reproduce:
    """Reproduce the paper's tables and figures: our numbers beside the paper's, verdicts, and an HTML report."""

    name: Positional[OptionalText] = None
    """Experiment to run: table1, figure2, ..., or all. Without a name, list the experiments."""
    list: bool = False
    """List the experiments with the paper's numbers and the expected times."""
    measure: bool = False
    """List the experiments with times estimated for this machine and preset, from a few batches of each network."""
    preset: Literal["digits", "cifar10-cpu", "cifar10", "digits-fast", "cifar10-cpu-fast", "cifar10-fast"] = "digits"
    """digits: takes minutes; cifar10-cpu: small networks, for two cores; cifar10: the paper's network, for a GPU.
    With -fast: constructed sets in about a tenth (D_R, D_NR) or a fifth (D_rand, D_det) of the passes."""
    arch: OptionalText = None
    """Network to use instead of the preset's, such as resnet18 with cifar10."""
    seeds: OptionalCount = None
    """Number of seeds, counted from 0 (default: the preset's)."""
    out: OptionalPath = None
    """Folder for models, data sets and pages (default: reproduction/PRESET); completed stages are reused."""
    root: OptionalPath = field(default_factory=root_from_environment)
    """Folder with the data sets (default: the environment variable ADVFEAT_DATA)."""
    minutes: OptionalMinutes = None
    """Time limit; stops after the current epoch or shard with exit status 75. The same command resumes."""
    device: OptionalText = None
    """cpu, cuda, cuda:1, ... (default: the first GPU if there is one)."""

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import reproduce

        reproduce.reproduce(self)


@dataclass(frozen=True)
class Info:
    """Describe the installation, a run folder or a constructed set."""

    path: Positional[OptionalPath] = None
    """Run folder or folder of a constructed set; without it, describe the installation."""

    def run(self) -> None:
        """Run the command."""
        from advfeat.cli import info

        info.run(self)


@dataclass(frozen=True)
class Theory:
    """Check Theorems 1-3 on a Gaussian task, in closed form, numerically and by sampling; draw Figures 4 and 14."""

    dim: OptionalCount = None
    """Dimension (default: the number of variances)."""
    eps: Radius = 0.8
    """Radius of the adversary."""
    covariance: str = "3,0.7,0.2"
    """Covariance: variances such as 3,0.7,0.2, or isotropic:2, geometric:1e4, or a .npy, .csv or .txt file."""
    seed: Seed = 0
    """Seed of the Monte Carlo samples."""
    out: NeededPath = Path("theory-report")
    """Folder for the figures."""
    samples: Count = 100_000
    """Samples per Monte Carlo estimate."""

    def run(self) -> None:
        """Run the command; exit with status 1 unless every verdict holds."""
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
