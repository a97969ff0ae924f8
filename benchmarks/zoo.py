"""Models on digits that mask their gradients, each in one known way, and honest ones: python -m benchmarks.zoo

    python -m benchmarks.zoo --limit 100

The verdict of ``evaluate(diagnose=True)`` has to name the fault of each masked model and to find none in the others,
whatever the norm and the radius. Its numbers stand beside AutoAttack's in docs/verdict.md.

All models are small and trained here, in plain torch, in seconds each. The masked ones wrap an adversarially trained
network where they can, so that there is something left to overestimate.
"""

from __future__ import annotations

import argparse
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advfeat
from advfeat.datasets import load
from advfeat.datasets.base import ArraySource
from advfeat.evaluation import Evaluation, evaluate, probes
from benchmarks import measure

EPS = 0.1  # L-inf; about half of the samples of the adversarially trained network are left at it
LEVELS, SHARE, TEMPERATURE, DEVIATION = 8, 0.2, 100.0, 0.1


def digits(split: str, limit: int | None = None) -> ArraySource:
    return load("digits", split, limit=limit)


def convnet(act: Callable[[], nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if norm else []), act()]

    return nn.Sequential(
        *layer(1, 12), *layer(12, 24), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(384, 48), act(), nn.Linear(48, 10)
    )


class PatchTransformer(nn.Module):
    """A vision transformer in small: 16 patches of 2 x 2, two blocks of attention with GELU and LayerNorm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


class WinnersTakeAll(nn.Module):
    """k-winners-take-all (Xiao et al. 2020): the largest activations of an image stay, the others become 0."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, round(SHARE * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0).view_as(x)


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str = "") -> None:
        super().__init__()
        self.function, self.name = function, name or function.__name__

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


def to_levels(x: Tensor) -> Tensor:
    return (x * (LEVELS - 1)).round() / (LEVELS - 1)


def _dct() -> Tensor:
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    basis = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def jpeg_like(x: Tensor) -> Tensor:
    """Rounds the coefficients of the cosine transform of the 8 x 8 image, coarser at high frequencies."""
    basis = _dct().to(x)
    step = 0.15 * (1 + torch.arange(8.0)[:, None] + torch.arange(8.0)[None]).to(x)
    return basis.T @ ((basis @ x @ basis.T / step).round() * step) @ basis


def noisy(x: Tensor) -> Tensor:
    return x + DEVIATION * torch.randn_like(x)


def with_dropout(x: Tensor) -> Tensor:
    return F.dropout(x, 0.3, training=True)


def fit(
    model: nn.Module, *, epochs: int = 12, attack: advfeat.PGD | None = None, teacher: nn.Module | None = None, t=1.0
) -> nn.Module:
    """Trains on digits; ``t`` is the temperature, at which ``teacher`` gives soft labels."""
    source = digits("train")
    x, y = source.images(), source.labels
    g = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * -(-len(x) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=g).split(64):
            batch = x[rows] if attack is None else attack(model, x[rows], y[rows])
            with torch.no_grad():
                soft = y[rows] if teacher is None else (teacher(batch) / t).softmax(1)
            model.train()
            optimiser.zero_grad()
            F.cross_entropy(model(batch) / t, soft).backward()
            optimiser.step()
            schedule.step()
    return model.eval().requires_grad_(False)


@functools.cache
def trained(kind: str) -> nn.Module:
    """A network by name, trained once per process."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        return _trained(kind)
    finally:
        torch.set_rng_state(state)


def _trained(kind: str) -> nn.Module:
    inner = advfeat.PGD(advfeat.Linf(EPS), steps=5, step_size=EPS / 2, random_start=True, seed=0)
    if kind == "adversarially trained":
        return fit(convnet(), attack=inner)
    if kind == "sibling":  # as the adversarially trained one, of other weights
        torch.manual_seed(1)
        return fit(convnet(), attack=inner)
    if kind == "distilled":
        teacher = fit(convnet(), t=TEMPERATURE)
        return fit(convnet(), teacher=teacher, t=TEMPERATURE)
    if kind == "k-winners-take-all":
        return fit(convnet(WinnersTakeAll), attack=inner)
    if kind == "batch statistics":
        net = fit(convnet(norm=True))
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = layer.running_var = None
        return net
    plain = {
        "standard": convnet,
        "BatchNorm": lambda: convnet(norm=True),
        "GELU": lambda: convnet(nn.GELU),
        "softplus": lambda: convnet(nn.Softplus),
        "MLP": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        ),
        "transformer": PatchTransformer,
        "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    }
    return fit(plain[kind]())


HONEST = ("standard", "adversarially trained", "BatchNorm", "GELU", "softplus", "MLP", "transformer", "linear")


def honest(name: str) -> nn.Module:
    return trained(name)


def _robust() -> nn.Sequential:
    return trained("adversarially trained")


def _after(layers: int, wrap: Callable[[nn.Module], nn.Module], module: nn.Module) -> nn.Sequential:
    """The adversarially trained network with a module in between, after its first ``layers``."""
    net = list(_robust())
    return nn.Sequential(*net[:layers], wrap(module), *net[layers:])


def _winners(wrap: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    """The network trained with k-winners-take-all, with its activations wrapped."""
    layers = list(trained("k-winners-take-all"))
    return nn.Sequential(*(wrap(layer) if isinstance(layer, WinnersTakeAll) else layer for layer in layers))


# Name -> the model, given what wraps the offending module (advfeat.bpda, or nothing), and the code of the finding that
# has to name it.
MASKED: dict[str, tuple[Callable[[Callable], nn.Module], str]] = {
    "logits times 10,000": (lambda wrap: _after(9, wrap, Calls(lambda z: 1e4 * z, "times 1e4")), "saturated"),
    "distillation, temperature 100": (lambda wrap: trained("distilled"), "saturated"),
    "input of 8 levels": (lambda wrap: _after(0, wrap, Calls(to_levels)), "quantised"),
    "input as by JPEG": (lambda wrap: _after(0, wrap, Calls(jpeg_like)), "quantised"),
    "activations of 8 levels": (lambda wrap: _after(2, wrap, Calls(to_levels)), "quantised"),
    "logits rounded to 0.5": (lambda wrap: _after(9, wrap, Calls(lambda z: (2 * z).round() / 2, "to .5")), "quantised"),
    "k-winners-take-all": (lambda wrap: _winners(wrap), "discontinuous"),
    "noise on the input": (lambda wrap: _after(0, wrap, Calls(noisy)), "random"),
    "dropout left on": (lambda wrap: _after(5, wrap, Calls(with_dropout)), "random"),
    "softmax at the end": (lambda wrap: _after(9, wrap, nn.Softmax(1)), "probabilities"),
    "tanh at the end": (lambda wrap: _after(9, wrap, Calls(lambda z: z.tanh(), "tanh")), "saturated"),
    "tanh of 10 times the logits": (
        lambda wrap: _after(9, wrap, Calls(lambda z: (10 * z).tanh(), "tanh of 10 z")),
        "no-gradient",
    ),
    "BatchNorm by the batch": (lambda wrap: trained("batch statistics"), "batch-dependent"),
}


def masked(name: str, wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> nn.Module:
    """A masked model; ``wrap`` may give its offending module another gradient, as ``advfeat.bpda`` does."""
    return MASKED[name][0](wrap).eval()


# Those that advfeat.bpda(module) with the identity repairs, and those that an average over draws does.
REPAIRED = (
    "input of 8 levels",
    "input as by JPEG",
    "activations of 8 levels",
    "logits rounded to 0.5",
    "k-winners-take-all",
)
AVERAGED = ("noise on the input", "dropout left on")


# Name -> attacks and norm of an evaluation: where the honest models must raise no alarm.
SETTINGS: dict[str, tuple[str, tuple[float, ...]]] = {
    "linf": ("linf", (0.03, EPS)),
    "linf, large": ("linf", (0.2, 0.4)),
    "l2": ("l2", (0.25, 0.5)),
    "l2, large": ("l2", (1.0, 2.0)),
    "l1": ("l1", (1.0, 2.0)),
}


def judged(model: nn.Module, source: ArraySource, norm: str, radii: tuple[float, ...], draws: int = 1) -> Evaluation:
    """An evaluation with the strong attack and all checks, transfer from the sibling network included."""
    attacks = [advfeat.Auto(advfeat.L1(eps)) for eps in radii] if norm == "l1" else radii
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return evaluate(
            model, source, attacks=attacks, norm=norm, draws=draws, diagnose=True, transfer=trained("sibling")
        )


def autoattack(model: nn.Module, source: ArraySource, eps: float) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = evaluate(model, source, attacks=[advfeat.AutoAttack(advfeat.Linf(eps))])
    return found.robustness[0].accuracy.value


def between_images(model: nn.Module, source: ArraySource) -> tuple[float, float]:
    """The share of the change of logits that gradients miss between images, and the median jump; see probes.Way."""
    x, y = source.images(), source.labels
    first, second = probes.partners(y)
    way = probes.measure_way(model, x[first], y[first], x[second], y[second])
    return way.missed, float(way.jump.median())


def row(
    name: str,
    found: Evaluation,
    probed: tuple[float, float] | None,
    standard: float | None = None,
    expected: str | None = None,
) -> dict:
    """A row of the table: accuracies at the largest radius, what gradients miss, and the names of faults and notes."""
    faults, notes = ({f.name for f in kind} for kind in (found.verdict.faults, found.verdict.notes))
    return {
        "model": name,
        "clean": found.clean.value,
        "strong attack": found.robustness[-1].accuracy.value,
        "autoattack": standard,
        "missed": None if probed is None else probed[0],
        "jump": None if probed is None else probed[1],
        "faults": " ".join(sorted(faults)),
        "notes": " ".join(sorted(notes - faults)),
        "as expected": expected in faults | notes if expected else not faults,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=100, help="test images of each evaluation")
    parser.add_argument("--only", nargs="+", help="models by their names in the table")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS], help="of the honest models")
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    source = digits("test", options.limit)
    rows: list[dict] = []

    def wanted(name: str) -> bool:
        return options.only is None or name in options.only

    def add(name: str, model: nn.Module, setting: str, expected: str | None = None, draws: int = 1) -> None:
        found = judged(model, source, *SETTINGS[setting], draws)
        probed = between_images(model, source) if found.deterministic and not found.depends_on_batch else None
        standard = autoattack(model, source, EPS) if setting == "linf" and draws == 1 else None
        rows.append(row(name, found, probed, standard, expected))
        measure.say(rows[-1])

    for name in filter(wanted, MASKED):
        add(name, masked(name), "linf", MASKED[name][1])
    for name in filter(wanted, REPAIRED):
        add(f"{name}, with advfeat.bpda", masked(name, advfeat.bpda), "linf")
    for name in filter(wanted, HONEST):
        for setting in options.settings:
            add(f"{name}, {setting}", honest(name), setting)
    source = digits("test", max(options.limit // 4, 1))  # each pass is one of ten
    for name in filter(wanted, AVERAGED):
        add(f"{name}, 10 draws, {len(source)} images", masked(name), "linf", draws=10)
    result = {"machine": measure.machine(), "eps": EPS, "settings": SETTINGS, "samples": options.limit}
    measure.write_results(options.out, "zoo", result, {"": rows})


if __name__ == "__main__":
    main()
