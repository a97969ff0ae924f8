"""Figures 3 and 13: architectures that learn more from D_det are fooled more by adversarial examples of its source."""

from __future__ import annotations

import math
from collections.abc import Sequence

from advfeat import plots
from advfeat.attacks import PGD
from advfeat.experiments.experiment import Experiment, Plan
from advfeat.experiments.measurements import Transferred
from advfeat.experiments.presets import ARCHS, Preset
from advfeat.experiments.result import Cell, Finding, Number, Picture, Plain, Result, Table, Verdict
from advfeat.experiments.shared_stages import clean, constructed, data, evaluated, model, outcomes, trained
from advfeat.experiments.workspace import Workspace
from advfeat.objectives import Margin
from advfeat.threat import L2

# Accuracy on D trained on D_det, untargeted and targeted transfer rate; read off the vector figures.
PAPER = {
    "VGG-16": (27.94, 65.67, 9.15),
    "Inception-v3": (39.39, 82.75, 23.01),
    "ResNet-18": (40.84, 92.12, 32.42),
    "DenseNet": (41.70, 92.72, 36.51),
    "ResNet-50": (44.70, 98.70, 71.57),
}


def plan(p: Preset) -> Plan:
    """Return the measurements at a preset.

    Args:
        p: The preset.
    """
    seed, own = p.seeds[0], _name(p.standard.arch)
    det = constructed(p, "det", seed)
    on_d = {name: trained(p, data(p), config, f"{name} on D", seed) for name, config in p.others.items()}
    on_det = {
        name: trained(p, det, config.replace(augment="none"), f"{name} on D_det", seed)
        for name, config in p.others.items()
    }
    # The source's own architecture: another model with fresh weights, trained as long as the others.
    config = p.standard.replace(epochs=max(other.epochs for other in p.others.values()))
    on_d[own] = trained(p, data(p), config, f"{own} on D, again", seed)
    config = p.on["det"].replace(epochs=config.epochs)
    on_det[own] = model(p, "det", seed) if config == p.on["det"] else trained(p, det, config, f"{own} on D_det", seed)
    transfers = [
        Transferred(
            model(p, "standard", seed),
            tuple(on_d.values()),
            data(p, "test"),
            PGD(L2(p.transfer_eps), steps=p.attack_steps, objective=Margin(1.0), targeted=targeted),
            label="targeted" if targeted else "untargeted",
        )
        for targeted in (False, True)
    ]
    return {
        "on D": [evaluated(p, m, radii=()) for m in on_d.values()],
        "on D_det": [evaluated(p, m, radii=()) for m in on_det.values()],
        "transfer": transfers,
    }


def report(workspace: Workspace, p: Preset, steps: Plan) -> Result:
    """Evaluate the measurements.

    Args:
        workspace: The workspace.
        p: The preset.
        steps: The measurements of :func:`plan`.

    Returns:
        Tables, claims with verdicts, and pictures.
    """
    names = [*p.others, _name(p.standard.arch)]
    plain, learned = (
        {name: clean(outcomes(workspace, [step])) for name, step in zip(names, steps[row], strict=True)}
        for row in ("on D", "on D_det")
    )
    rates = {}
    for step in (s for s in steps["transfer"] if isinstance(s, Transferred)):
        targeted = step.attack.targeted
        found = workspace.open(step)["targets"]
        which = "reached" if targeted else "fooled"
        rates[targeted] = {n: Number((f[which],), max(f["right"], 1)) for n, f in zip(names, found, strict=True)}
    rows = tuple(
        (
            name,
            (
                Cell(plain[name]),
                Cell(learned[name], _paper(name)[0], True),
                Cell(rates[False][name], _paper(name)[1], True),
                Cell(rates[True][name], _paper(name)[2], True),
            ),
        )
        for name in names
    )
    points = {
        targeted: [(name, learned[name].mean, rates[targeted][name].mean) for name in names] for targeted in rates
    }
    papers = {targeted: [(v[0], v[2 if targeted else 1]) for v in PAPER.values()] for targeted in rates}
    correlations = Table(
        "Correlation over architectures",
        ("transfer", "of the values", "of the ranks"),
        tuple(
            (
                "targeted" if targeted else "untargeted",
                (
                    Cell(
                        Plain((pearson(*_columns(points[targeted])),)),
                        round(pearson(*zip(*papers[targeted], strict=True)), 2),
                    ),
                    Cell(
                        Plain((spearman(*_columns(points[targeted])),)),
                        round(spearman(*zip(*papers[targeted], strict=True)), 2),
                    ),
                ),
            )
            for targeted in rates
        ),
        "The paper's values are computed from its five points.",
    )
    return Result(
        tables=[
            Table(
                "Transfer and learnability",
                ("architecture", "trained on D, %", "trained on D_det, %", "fooled, %", "classified as target, %"),
                rows,
                f"Accuracy is on the test set. Transfer: of the test images that the model trained on D classifies "
                f"correctly, the share whose adversarial example, made on the source model at L2 {p.transfer_eps:g}, "
                "it misclassifies, or classifies as the attack's target, the class after the label. One seed.",
            ),
            correlations,
        ],
        findings=[
            _finding("untargeted", points[False], "Figure 3"),
            _finding("targeted", points[True], "Figure 13"),
        ],
        pictures=[
            Picture(
                name,
                f"{title} transfer against accuracy after training on D_det",
                plots.scatter_fit(
                    [
                        ("here", points[targeted], "#0072b2"),
                        ("paper", [(n, v[0], v[2 if targeted else 1]) for n, v in PAPER.items()], "#c44e00"),
                    ],
                    "test accuracy after training on D_det, %",
                    "transfer rate, %",
                ),
            )
            for name, title, targeted in (("figure3", "Untargeted", False), ("figure13", "Targeted", True))
        ],
        why_different=["The paper does not state radius, steps and target of its transfer attacks."],
    )


def _name(arch: str) -> str:
    """Return the source's architecture as a row of the table."""
    return f"{ARCHS[arch]}, as the source"


def _finding(kind: str, points: list[tuple[str, float, float]], where: str) -> Finding:
    x, y = _columns(points)
    rank, chance = spearman(x, y), permutation_p(x, y)
    verdict: Verdict = "inconclusive"
    if chance <= 0.05:
        verdict = "supported"
    elif permutation_p(x, [-v for v in y]) <= 0.05:
        verdict = "contradicted"
    return Finding(
        f"Architectures that learn more from D_det are fooled more by {kind} examples of its source ({where}).",
        "No rank correlation between the two, or a negative one.",
        f"Rank correlation {rank:.2f} over {len(points)} architectures; probability by chance {100 * chance:.0f} %.",
        verdict,
        seeds=1,
    )


def _paper(name: str) -> tuple[float | None, ...]:
    return PAPER.get(name.removesuffix(", as the source"), (None,) * 3)


def _columns(points: list[tuple[str, float, float]]) -> tuple[list[float], list[float]]:
    return [x for _, x, _ in points], [y for _, _, y in points]


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the correlation coefficient of two sequences, 0 if one is constant.

    Args:
        x: Values.
        y: Values.
    """
    mx, my = sum(x) / len(x), sum(y) / len(y)
    dx, dy = [v - mx for v in x], [v - my for v in y]
    scale = math.sqrt(sum(v * v for v in dx) * sum(v * v for v in dy))
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / scale if scale else 0.0


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the rank correlation of two sequences; ties get their mean rank.

    Args:
        x: Values.
        y: Values.
    """
    from scipy.stats import rankdata

    return pearson(rankdata(x).tolist(), rankdata(y).tolist())


def permutation_p(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exact one-sided permutation p-value of the rank correlation, for few points.

    Args:
        x: Values.
        y: Values.

    Returns:
        The share of all orders of y whose rank correlation with x is at least the observed one.
    """
    from itertools import permutations

    seen = spearman(x, y) - 1e-12
    orders = [spearman(x, order) >= seen for order in permutations(y)]
    return sum(orders) / len(orders)


EXPERIMENT = Experiment(
    name="figure3",
    title="Adversarial examples transfer to models that learn the same features",
    source="Figures 3 and 13, Section 3.3 and Appendix D.9",
    paper="from VGG-16 (27.9 % learned, 65.7 % fooled) to ResNet-50 (44.7, 98.7); targeted 9.2 to 71.6",
    plan=plan,
    report=report,
)
