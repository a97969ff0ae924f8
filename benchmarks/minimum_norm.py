"""How near the nearest adversarial examples of each attack are, at equal passes: python -m benchmarks.minimum_norm

The measure of AttackBench (Cinà et al. 2025, arXiv 2404.19460): an attack may pass each sample through the model 2,000
times, forward and backward counted alike, and every adversarial image it asks the model about counts, whether the
attack returns it or not. ``optimality`` is ``1 - (A - A*) / (c d - A*)``: A the area under robust accuracy against the
distance, A* that of the smallest distances of all attacks together, c clean accuracy, d the largest of those distances,
where areas end. 1 is as near as anything found, 0 is nothing found. No times are taken. On a standard and an
adversarially trained network (run folders, or trained on digits on the spot), for this library and adv-lib.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import APGD, DDN, FAB, FMN, PGD, Auto, RadiusSearch, Threat
from advfeat.evaluation import curve_attack
from advfeat.threat import NORMS
from benchmarks import subjects
from benchmarks.cycles import networks
from benchmarks.measure import RESULTS, machine, say, write_results
from benchmarks.peers import say_missing
from benchmarks.plots import Bar, about, bars
from benchmarks.stand_ins import load

BUDGET = 2000
RADII = 10  # of a search over radii
Run = Callable[[nn.Module, Tensor, Tensor], object]


class Watched(nn.Module):
    """A model that keeps the smallest distance of an adversarial image it was asked about, for each sample.

    An image belongs to the sample that it is nearest to, and its prediction is compared with that sample's label, so
    that whatever counts is an adversarial example. Images beyond the budget of their sample do not count.

    Args:
        model: The model, in eval mode.
        x: The samples [n, ...].
        y: Their labels [n].
        norm: Norm of the distances.
        budget: Passes per sample.

    Attributes:
        nearest: float64 [n], inf for none.
        passes: int64 [n], forward and backward.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, norm: str, budget: int) -> None:
        super().__init__()
        self.model, self.budget, self._order = model, budget, NORMS[norm].order
        self._x, self._y = x.flatten(1).double(), y
        self.nearest = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        self.passes = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def forward(self, z: Tensor) -> Tensor:
        logits = self.model(z)
        with torch.no_grad():
            flat = z.detach().flatten(1).double()
            rows = torch.cdist(flat, self._x).argmin(1)
            distance = torch.linalg.vector_norm(flat - self._x[rows], self._order, dim=1)
            # Of several images of one sample in a batch, the k-th is its k-th pass.
            earlier = (rows[:, None] == rows).tril(-1).sum(1)
            counts = (logits.argmax(1) != self._y[rows]) & (self.passes[rows] + earlier < self.budget)
            self.nearest.scatter_reduce_(0, rows, distance.where(counts, math.inf), "amin")
            self._count(rows)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count(rows))
        return logits

    def _count(self, rows: Tensor) -> None:
        self.passes.index_add_(0, rows, torch.ones_like(rows))


def largest(norm: str, x: Tensor) -> float:
    """The radius that holds every image."""
    return NORMS[norm].holds_the_box(1.0, x[0].numel())


def ours(norm: str, x: Tensor, classes: int, budget: int) -> dict[str, Run]:
    """This library's attacks, with as many steps as the budget allows."""
    threat = Threat.of(norm, largest(norm, x))
    steps = budget // 2 - 1
    each = max(budget // (2 * RADII) - 1, 1)  # at each radius
    short = FMN(threat, steps=steps // 5)
    rest = max((budget - 2 * (steps // 5 + 1)) // (2 * RADII) - 1, 1)
    pgd = PGD(threat, steps=each, schedule="cosine", keep="best")
    # A step of FAB is one pass forward and one backward per class, or two of each where it crosses the boundary; what
    # exceeds the budget does not count.
    found = {
        "FMN": FMN(threat, steps=steps),
        "FAB": FAB(threat, steps=max(budget // (classes + 1) - 1, 1), minimise=True),
        "PGD at 10 radii": RadiusSearch(pgd, rounds=RADII),
        "Auto-PGD at 10 radii": RadiusSearch(APGD(threat, steps=each), rounds=RADII),
        "FMN, Auto-PGD at 10 radii": RadiusSearch(APGD(threat, steps=rest), rounds=RADII, first=short),
        "FMN, Auto at 10 radii": RadiusSearch(Auto(threat, steps=max(rest // 5, 1)), rounds=RADII, first=short),
        "curve_attack": curve_attack(norm, dim=x[0].numel()),
    }
    if norm == "l2":
        found["DDN"] = DDN(threat, steps=steps)
    return {name: lambda model, x, y, attack=attack: attack.run(model, x, y) for name, attack in found.items()}


def adv_lib(norm: str, x: Tensor, classes: int, budget: int) -> dict[str, Run]:
    """adv-lib's attacks, called as its documentation says, with the same steps. Errors: ImportError."""
    order, steps, far = NORMS[norm].order, budget // 2 - 1, largest(norm, x)
    each = max(budget // (2 * RADII) - 1, 1)
    fmn = load("adv_lib.attacks.fast_minimum_norm").fmn
    fab = load("adv_lib.attacks.fast_adaptive_boundary").fab
    apgd = load("adv_lib.attacks.auto_pgd").minimal_apgd
    ddn = load("adv_lib.attacks.decoupled_direction_norm").ddn
    found: dict[str, Run] = {
        "FMN": lambda model, x, y: fmn(model, x, y, norm=order, steps=steps),
        "FAB": lambda model, x, y: fab(model, x, y, norm=order, n_iter=max(budget // (classes + 1) - 1, 1)),
        "Auto-PGD at 10 radii": lambda model, x, y: apgd(
            model,
            x,
            y,
            norm=order,
            max_eps=far / 2,  # its first radius
            n_iter=each,
            binary_search_steps=RADII,
            use_large_reps=norm == "l1",
        ),
    }
    if norm == "l2":
        found["DDN"] = lambda model, x, y: ddn(model, x, y, steps=steps, levels=None)
    return found


def measure(model: nn.Module, x: Tensor, y: Tensor, norm: str, classes: int, budget: int) -> list[dict]:
    """A row for each attack, with its optimality on this model."""
    runs = {("advfeat", name): run for name, run in ours(norm, x, classes, budget).items()}
    try:
        runs |= {("adv-lib", name): run for name, run in adv_lib(norm, x, classes, budget).items()}
    except ImportError as error:
        say_missing({"adv-lib": f"not installed: {error}"})
    with torch.no_grad():
        correct = model(x).argmax(1) == y
    distances, passes = {}, {}
    for key, run in runs.items():
        watched = Watched(model, x, y, norm, budget).eval()
        torch.manual_seed(0)
        run(watched, x.clone(), y.clone())
        distances[key] = torch.where(correct, watched.nearest, 0.0)
        passes[key] = watched.passes[correct].double().mean().item()
    best = torch.stack(list(distances.values())).amin(0)
    return [
        {
            "library": library,
            "attack": name,
            "optimality": optimality(found, best),
            "found": (found < math.inf)[correct].double().mean().item(),
            "median_distance": found[correct].median().item(),
            "passes": passes[library, name],
        }
        for (library, name), found in distances.items()
    ]


def optimality(found: Tensor, best: Tensor) -> float:
    """The local optimality of distances [n]: 0 for a misclassified sample, inf where nothing was found.

    Args:
        found: Distances of one attack.
        best: The smallest ones of all attacks.

    Returns:
        At most 1, NaN if no sample was broken by any attack.
    """
    finite = best[best < math.inf]
    end = finite.max() if len(finite) else best.new_zeros(())
    area, smallest = found.clamp(max=end).mean(), best.clamp(max=end).mean()
    full = (best > 0).double().mean() * end
    return float(1 - (area - smallest) / (full - smallest)) if full > smallest else math.nan


def figure(rows: list[dict], result: dict):
    """Optimality by attack, a panel for each model and norm, the best first."""
    panels: dict[str, list[Bar]] = {}
    for row in sorted(rows, key=lambda row: -row["optimality"]):
        note = f"{row['optimality']:.3f}, median {row['median_distance']:.3g}"
        bar = Bar(f"{row['library']}: {row['attack']}", row["optimality"], note=note, ours=row["library"] == "advfeat")
        panels.setdefault(f"{row['model']}, {row['norm']}", []).append(bar)
    subject = result["subject"]
    title = f"Optimality within {subject['budget']:,} passes; {subject['samples']} images of {subject['images']}\n"
    return bars(dict(sorted(panels.items())), title + about(result["machine"]), "optimality", columns=2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects.add_arguments(parser)
    parser.add_argument("--standard", type=Path, help="a run folder, instead of --model")
    parser.add_argument("--robust", type=Path, help="a run folder of an adversarially trained model")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--norms", nargs="+", default=list(NORMS), choices=list(NORMS))
    parser.add_argument("--budget", type=int, default=BUDGET, help="passes per sample, forward and backward")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.standard = options.standard or options.model
    device = torch.device(options.device)
    source = subjects.images(options, options.samples, "digits")
    x, y = source.images().contiguous().to(device), source.labels.to(device)
    rows = []
    for name, model in networks(options, source, device).items():
        for norm in options.norms:
            for row in measure(model, x, y, norm, len(source.classes), options.budget):
                rows.append({"model": name, "norm": norm, **row})
                say(rows[-1])
    subject = {
        "images": f"{source.name} {source.split}",
        "samples": len(x),
        "budget": options.budget,
        "made for this run": [name for name in ("standard", "robust") if getattr(options, name) is None],
    }
    result = {"machine": machine(device), "subject": subject}
    write_results(options.out, f"minimum_norm_{options.device}", result, {"": rows}, {"": figure(rows, result)})


if __name__ == "__main__":
    main()
