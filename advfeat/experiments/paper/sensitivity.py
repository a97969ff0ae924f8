"""Settings that the paper leaves open, or that are known to matter: do the conclusions depend on them?

The settings are the attack behind an accuracy, the learning rate of D_rand (Table 3: 0.01 on CIFAR-10, where all others
have 0.1), 8-bit images for D_det, the paper's radius where the preset has another, and whether D_R matches the
representation before or after the last ReLU (the authors' notebook lets the gradient pass through it).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.recipes import PRESETS as RECIPES
from advfeat.evaluation import pgd_attack
from advfeat.experiments.base import ModelStage
from advfeat.experiments.claims import Measured, failed, more_robust
from advfeat.experiments.experiment import Evaluations, Experiment
from advfeat.experiments.presets import Preset, perturbing
from advfeat.experiments.result import Cell, Finding, Plain, Result, Table, compare, worst
from advfeat.experiments.shared_stages import (
    TITLES,
    at_every_radius,
    attack,
    clean,
    constructed,
    data,
    describe_strong,
    evaluated,
    guessing,
    model,
    outcomes,
    robust,
    trained,
)
from advfeat.experiments.stages import Evaluated, Trained
from advfeat.models import Classifier
from advfeat.models.model import pooled
from advfeat.objectives import CW, CrossEntropy, Margin
from advfeat.training import TrainConfig, paper_attack

if TYPE_CHECKING:
    from advfeat.experiments.workspace import Workspace

ATTACKS = (
    "7 steps of ε/5",
    "20 steps",
    "100 steps",
    "20 steps, cross-entropy",
    "20 steps, CW",
    "20 steps, then Auto-PGD",
)
LEARNING_RATES = (0.1, 0.01)
PAPER_EPS = perturbing(RECIPES["cifar10"], "det").eps  # of D_rand and D_det on CIFAR-10


@dataclass(frozen=True)
class BeforeLastReLU(ModelStage):
    """The same model with its representation taken before the body's last ReLU.

    Attributes:
        model: The model.
    """

    kind: ClassVar[str] = "view"
    model: Trained

    def trained_with(self) -> TrainConfig:
        """See :meth:`ModelStage.trained_with`."""
        return self.model.config

    def open(self, workspace: Workspace) -> Classifier:
        """Load the model and move its representation.

        Args:
            workspace: The workspace.

        Returns:
            The model.

        Raises:
            ValueError: If the body does not end in a ReLU.
        """
        found = workspace.open(self.model)
        body = found.body
        if not isinstance(body, nn.Sequential) or not isinstance(body[-1], nn.ReLU):
            raise ValueError(f"the body of {found.arch} should end in a ReLU")
        return _BeforeLastReLU(found, copy.deepcopy(body[:-1]))


class _BeforeLastReLU(Classifier):
    def __init__(self, model: Classifier, body: nn.Sequential) -> None:
        mean = model.get_buffer("mean").tolist() if model.normalises else None
        std = model.get_buffer("std").tolist() if model.normalises else None
        super().__init__(body, copy.deepcopy(model.head), model.num_classes, model.input_shape, mean, std)
        # Changes the fingerprint, so that sets built with this model are told apart.
        self.register_buffer("before_last_relu", torch.ones((), dtype=torch.float32, device="cpu"))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.body(self.normalise(x)).relu()))


def plan(p: Preset) -> Evaluations:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    seed = p.seeds[0]
    test, eps = data(p, "test", limit=p.sweep_limit), p.radii[0]
    autocast = attack(p, eps).autocast
    attacks = (
        paper_attack(eps).replace(keep="best"),
        pgd_attack(eps, steps=20, objective=Margin(1.0), schedule="constant"),
        pgd_attack(eps, steps=100, objective=Margin(1.0), schedule="constant"),
        pgd_attack(eps, steps=20, objective=CrossEntropy(), schedule="constant"),
        pgd_attack(eps, steps=20, objective=CW(), schedule="constant"),
        attack(p, eps),
    )
    plans: dict[Any, list[Evaluated]] = {
        ("attack", key): [
            Evaluated(model(p, key, seed), test, (kind.replace(autocast=autocast),), label=f"{key}, {name}")
            for name, kind in zip(ATTACKS, attacks, strict=True)
        ]
        for key in ("standard", "robust")
    }
    for lr in LEARNING_RATES:
        config = p.on["rand"].replace(lr=lr)
        same = lr == p.on["rand"].lr
        label = f"D_rand, learning rate {lr:g}"
        one = model(p, "rand", seed) if same else trained(p, constructed(p, "rand", seed), config, label, seed)
        plans["lr", lr] = [evaluated(p, one, radii=())]
    eight = dataclasses.replace(constructed(p, "det", seed), dtype="uint8", label="D_det, 8 bits")
    if p.dataset == "cifar10" and perturbing(p.recipes, "det").eps != PAPER_EPS:
        for key in ("rand", "det"):
            label = f"{TITLES[key]}, radius {PAPER_EPS:g}"
            recipe = dataclasses.replace(perturbing(p.recipes, key), eps=PAPER_EPS)
            made = constructed(p, key, seed, recipe=recipe, label=label)
            plans["paper's radius", key] = [evaluated(p, trained(p, made, p.on[key], label, seed), radii=())]
    plans["8 bits"] = [evaluated(p, trained(p, eight, p.on["det"], "D_det, 8 bits", seed), radii=())]
    plans["float32"] = [evaluated(p, model(p, "det", seed), radii=())]
    plans["after the ReLU"] = [evaluated(p, model(p, "robust", seed))]
    if p.standard.arch == "small-convnet":  # a ResNet's last ReLU lies inside a block
        linear = BeforeLastReLU(model(p, "adversarial", seed))
        made = constructed(p, "robust", seed, source=linear, label="D_R, before the ReLU")
        plans["D"] = [evaluated(p, model(p, "standard", seed))]
        plans["before the ReLU"] = [evaluated(p, trained(p, made, p.on["robust"], "D_R, before the ReLU", seed))]
    return plans


def report(workspace: Workspace, p: Preset, steps: Evaluations) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    found = {row: outcomes(workspace, of_row) for row, of_row in steps.items()}
    eps, chance = p.radii[0], guessing(workspace, p)
    by_attack = {key: [robust([outcome], 0) for outcome in found["attack", key]] for key in ("standard", "robust")}
    tables = [
        Table(
            f"Robust accuracy at {eps:g} by attack",
            ("attack", "D, %", "D_R, %"),
            tuple(
                (name, (Cell(by_attack["standard"][i]), Cell(by_attack["robust"][i]))) for i, name in enumerate(ATTACKS)
            ),
            "The first is the attack of the paper's adversarial training; the others take steps of 2.5 ε / steps. "
            "Unless stated, the loss is the margin, whose direction is that of cross-entropy; CW is the loss of "
            f"Carlini and Wagner. The best iterate counts. The last is the attack of all other tables: "
            f"{describe_strong(p)}.",
        )
    ]
    rates = {lr: clean(found["lr", lr]) for lr in LEARNING_RATES}
    bits = {name: clean(found[name]) for name in ("float32", "8 bits")}
    moved = {name: workspace.open(steps[name][0].model.data) for name in bits}
    papers = {key: row for key in ("rand", "det") if (row := ("paper's radius", key)) in steps}
    tables.append(
        Table(
            "Training on D_rand and D_det",
            ("set and setting", "accuracy on D, %", "source predicts the label, %"),
            (
                *((f"D_rand, learning rate {lr:g}", (Cell(rates[lr]), Cell())) for lr in LEARNING_RATES),
                *((f"D_det, stored as {name}", (Cell(bits[name]), Cell(_success(moved[name])))) for name in bits),
                *(
                    (
                        f"{TITLES[key]}, radius {PAPER_EPS:g} instead of {perturbing(p.recipes, key).eps:g}",
                        (Cell(clean(found[row])), Cell(_success(workspace.open(steps[row][0].model.data)))),
                    )
                    for key, row in papers.items()
                ),
            ),
            "8-bit images are rounded inside the ball; the source's prediction is for the rounded image.",
        )
    )
    findings = [
        Finding(
            "That D_R's model is more robust than D's does not depend on the attack.",
            "One of these attacks under which it is not.",
            "; ".join(
                f"{name}: {b.mean:.1f} against {a.mean:.1f} %"
                for name, a, b in zip(ATTACKS, by_attack["standard"], by_attack["robust"], strict=True)
            )
            + ".",
            worst([compare(b, a) for a, b in zip(by_attack["standard"], by_attack["robust"], strict=True)])
            if not any(failed(clean(found["attack", key][:1]), chance) for key in by_attack)
            else "inconclusive",
            seeds=1,
        ),
        Finding(
            "Training on D_rand generalises at either learning rate.",
            "Accuracy no more than twice chance at one of them: replications with a ResNet-18 stayed at chance.",
            ", ".join(f"{n} at {lr:g}" for lr, n in rates.items()) + ".",
            worst([compare(n, 2 * chance) for n in rates.values()]),
            seeds=1,
        ),
        Finding(
            "D_det still teaches the true classes after rounding to 8 bits.",
            "Accuracy no more than twice chance from the rounded set.",
            f"{bits['8 bits']} rounded, {bits['float32']} in float32.",
            compare(bits["8 bits"], 2 * chance),
            seeds=1,
        ),
    ]
    if "before the ReLU" in found:
        tables.append(_relu_table(p, found))
        linear, base = (
            Measured(name, clean(found[row]), at_every_radius(p, found[row]))
            for row, name in (("before the ReLU", "D_R, matched before the ReLU"), ("D", "D"))
        )
        findings.append(
            more_robust(
                "The robustness from D_R does not depend on where the representation is taken.",
                "D_R matched before the last ReLU giving no more robustness than D.",
                linear,
                base,
                p.radii,
                chance,
            )
        )
    return Result(tables=tables, findings=findings, notes=["One seed."])


def _relu_table(p: Preset, found: dict) -> Table:
    rows = [
        (f"D_R, matched {row}", (Cell(clean(found[row])), *(Cell(robust(found[row], i)) for i in range(len(p.radii)))))
        for row in ("after the ReLU", "before the ReLU")
    ]
    return Table(
        "Where the representation is taken",
        ("trained on", "accuracy, %", *(f"robust at {eps:g}, %" for eps in p.radii)),
        tuple(rows),
        "The representation is averaged over the image. After the ReLU it has zeros, through which no gradient flows.",
    )


def _success(made: ConstructedSet) -> Plain:
    return Plain((100 * float(made.target_success.float().mean()),), 1)


EXPERIMENT = Experiment(
    name="settings",
    title="Settings on which the conclusions do not depend",
    source="Settings left open by Appendix C",
    paper="Table 7's 4.49 % without its attack; on CIFAR-10 a learning rate of 0.01 for D_rand alone",
    plan=plan,
    report=report,
)
