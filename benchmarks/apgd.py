"""Auto-PGD (Croce and Hein 2020) as each library has it, for robust evaluation; python -m benchmarks.apgd

Same model, images (those that it gets right), steps and loss; the random starts are each library's own, so success
agrees up to those. ``apgd-ce`` and ``apgd-dlr``: one run on the cross-entropy (advfeat: the margin, the same direction
without its saturation) or on DLR. ``auto``: the first of them, then a targeted run for each of the strongest other
classes, solved samples leaving in between, as in AutoAttack.

A margin is comparable among samples that fell; where none was found auto-attack, torchattacks and adv-lib give back the
clean image, advfeat its best iterate.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat import APGD, DLR, Auto, Margin
from advfeat.threat import NORMS, Threat
from benchmarks import subjects
from benchmarks.attacks import quality
from benchmarks.measure import RESULTS, Kept, machine, say, take_turns, write_results
from benchmarks.peers import Attack, Job, available, load_auto_attack, say_missing
from benchmarks.plots import Bar, about, bars
from benchmarks.stand_ins import load


@dataclass(frozen=True)
class ApgdJob:
    """One robust evaluation. targets: so many targeted runs after it, 0 for none."""

    model: nn.Module
    norm: str
    eps: float
    steps: int
    loss: str = "ce"
    restarts: int = 1
    targets: int = 0
    classes: int = 10
    shape: tuple[int, ...] = (3, 32, 32)

    @property
    def capital(self) -> str:
        return NORMS[self.norm].__name__


def advfeat(job: ApgdJob) -> Attack:
    threat = Threat.of(job.norm, job.eps)
    if job.targets:
        attack = Auto(threat, steps=job.steps, target_classes=job.targets, restarts=job.restarts)
    else:
        objective = Margin(1.0) if job.loss == "ce" else DLR()
        attack = APGD(threat, steps=job.steps, restarts=job.restarts, objective=objective)
    return lambda x, y: attack(job.model, x, y)


def auto_attack(job: ApgdJob) -> Attack:
    library = load_auto_attack("autopgd_base")
    # a logger: without one its check for vanishing gradients fails where it would only have warned
    common = {"n_iter": job.steps, "norm": job.capital, "eps": job.eps, "seed": 0, "logger": _Silent()}
    first = library.APGDAttack(job.model, loss=job.loss, n_restarts=job.restarts, **common)
    if not job.targets:
        return first.perturb
    second = library.APGDAttack_targeted(job.model, n_restarts=1, n_target_classes=job.targets, **common)
    return lambda x, y: _one_after_the_other(job.model, (first.perturb, second.perturb), x, y)


def torchattacks(job: ApgdJob) -> Attack:
    library = load("torchattacks")
    common = {"norm": job.capital, "eps": job.eps, "steps": job.steps, "seed": 0}
    first = library.APGD(job.model, loss=job.loss, n_restarts=job.restarts, **common)
    if not job.targets:
        return first
    second = library.APGDT(job.model, n_restarts=1, n_classes=job.targets + 1, **common)
    return lambda x, y: _one_after_the_other(job.model, (first, second), x, y)


def adv_lib(job: ApgdJob) -> Attack:
    library = load("adv_lib.attacks.auto_pgd")
    common = {"eps": job.eps, "norm": 2 if job.norm == "l2" else float("inf"), "n_iter": job.steps}

    def first(x: Tensor, y: Tensor) -> Tensor:
        return library.apgd(job.model, x, y, loss_function=job.loss, n_restarts=job.restarts, **common)

    if not job.targets:
        return first

    def second(x: Tensor, y: Tensor) -> Tensor:
        return library.apgd_targeted(job.model, x, y, num_targets=job.targets, **common)

    return lambda x, y: _one_after_the_other(job.model, (first, second), x, y)


APGDS: dict[str, Callable[[ApgdJob], Attack]] = {
    "advfeat": advfeat,
    "auto-attack": auto_attack,
    "torchattacks": torchattacks,
    "adv-lib": adv_lib,
}


class _Silent:
    def log(self, *_) -> None:
        pass

    warning = info = debug = log


def _one_after_the_other(model: nn.Module, attacks: tuple[Attack, ...], x: Tensor, y: Tensor) -> Tensor:
    """Each attack on what the ones before have left standing, as AutoAttack runs them."""
    x_adv = x.clone()
    with torch.no_grad():
        standing = (model(x).argmax(1) == y).nonzero()[:, 0]
    for attack in attacks:
        if standing.numel() == 0:
            break
        found = attack(x[standing], y[standing]).detach()
        with torch.no_grad():
            fell = model(found).argmax(1) != y[standing]
        x_adv[standing[fell]] = found[fell]
        standing = standing[~fell]
    return x_adv


def compare(
    job: ApgdJob, x: Tensor, y: Tensor, what: str, rounds: int, device: torch.device, names: list[str] | None = None
) -> list[dict]:
    """Time and quality of each library on one job; ``to_advfeat`` is their time over advfeat's, round by round."""
    attacks, missing = available(job, names, APGDS)  # type: ignore[arg-type]
    if "advfeat" not in attacks:
        raise ValueError("advfeat should be among the libraries: times are compared with its time")
    plain = Job(job.model, job.norm, job.eps, 0.0, job.steps)
    calls = {name: Kept(partial(_quietly, attack, x, y)) for name, attack in attacks.items()}
    timed = take_turns(calls, rounds=rounds, seconds=0.0, device=device, warm_up=1)
    rows = []
    for name, call in calls.items():
        ratio, low, high = timed[name].over(timed["advfeat"])
        row = {
            "library": name,
            "attack": what,
            "norm": job.norm,
            "eps": job.eps,
            "steps": job.steps,
            "samples": len(x),
            "seconds": timed[name].median,
            "to_advfeat": ratio,
            "low": low,
            "high": high,
            **quality(job.model, x, call.result, y, plain),
        }
        rows.append(row)
        say(row)
    say_missing(missing)
    return rows


def _quietly(attack: Attack, x: Tensor, y: Tensor) -> Tensor:
    # The random seeds that libraries set globally are put back, and what they print is not wanted in between.
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        return attack(x, y)


def figure(rows: list[dict], machine: dict):
    panels: dict[str, list[Bar]] = {}
    for row in rows:
        panel = f"{row['attack']}, {row['norm']} {row['eps']:.3g}, {row['steps']} steps, {row['samples']} samples"
        note = f"{row['to_advfeat']:.1f} x, {row['seconds']:.2f} s, robust accuracy {1 - row['success']:.3f}"
        bar = Bar(row["library"], row["to_advfeat"], row["low"], row["high"], note, row["library"] == "advfeat")
        panels.setdefault(panel, []).append(bar)
    title = f"Auto-PGD, whiskers: quartiles\n{about(machine)}"
    return bars(panels, title, "time over that of advfeat", columns=2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--eps", type=float, help="L2 radius, default 0.5, of digits 1.5; L-inf: a sixteenth of it")
    parser.add_argument("--targets", type=int, default=9, help="of auto; 0 leaves it out")
    parser.add_argument("--libraries", nargs="*", help="only these, advfeat among them")
    parser.add_argument("--out", type=Path, default=RESULTS)
    subjects.add_arguments(parser)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    source = subjects.images(options, options.samples, otherwise="digits")
    model = subjects.standard(options, source, device)
    x, y = source.images().contiguous().to(device), source.labels.to(device)
    with torch.no_grad():  # wrong already: some libraries do not attack those, which would make them look fast
        right = model(x).argmax(1) == y
    if not right.any():
        parser.error("the model is wrong about all of the samples: nothing is left to attack")
    x, y = x[right], y[right]
    classes = len(source.classes)
    rows = []
    radius = subjects.radius(options, source)
    for norm, eps in (("l2", radius), ("linf", radius / 16)):
        base = {"classes": classes, "shape": tuple(x.shape[1:])}
        cases = {"apgd-ce": {}, "apgd-dlr": {"loss": "dlr"}}
        if options.targets:
            targets = min(options.targets, classes - 1)
            cases[f"auto (apgd-ce, then apgd towards {targets} classes)"] = {"targets": targets}
        for what, more in cases.items():
            job = ApgdJob(model, norm, eps, options.steps, **base, **more)
            rows += compare(job, x, y, what, options.rounds, device, options.libraries)
    about_it = machine(device)
    subject = subjects.described(options, source, model) | {"clean_accuracy": float(right.float().mean())}
    result = {"machine": about_it, "rounds": options.rounds, "subject": subject}
    write_results(options.out, f"apgd_{options.device}", result, {"": rows}, {"": figure(rows, about_it)})


if __name__ == "__main__":
    main()
