"""Other libraries' PGD behind one signature, each called as its documentation says: what the benchmarks compare.

A library that is missing, or has no such attack, is left out and named; README.md says how each is installed. None of
them starts at random here, so all but adv-lib and (in L2) ART compute the iterates that advfeat computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from advfeat import PGD, Margin
from advfeat.threat import Threat
from benchmarks.stand_ins import load

# (x, labels) -> adversarial examples
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """One attack that every library is asked for: the model takes [0, 1] images of ``shape`` and is in eval mode."""

    model: nn.Module
    norm: str
    eps: float
    step_size: float
    steps: int
    targeted: bool = False
    classes: int = 10
    shape: tuple[int, ...] = (3, 32, 32)

    @property
    def device(self) -> torch.device:
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device


def advfeat(job: Job) -> Attack:
    threat = Threat.of(job.norm, job.eps)
    pgd = PGD(threat, steps=job.steps, step_size=job.step_size, targeted=job.targeted, objective=Margin(1.0))
    return lambda x, y: pgd(job.model, x, y)


def torchattacks(job: Job) -> Attack:
    library = load("torchattacks")
    kind = library.PGDL2 if job.norm == "l2" else library.PGD
    attack = kind(job.model, eps=job.eps, alpha=job.step_size, steps=job.steps, random_start=False)
    if job.targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack


def foolbox(job: Job) -> Attack:
    library = load("foolbox")
    kind = library.attacks.L2PGD if job.norm == "l2" else library.attacks.LinfPGD
    attack = kind(abs_stepsize=job.step_size, steps=job.steps, random_start=False)
    model = library.PyTorchModel(job.model, bounds=(0, 1), device=job.device)
    criterion = library.criteria.TargetedMisclassification if job.targeted else library.criteria.Misclassification
    return lambda x, y: attack(model, x, criterion(y), epsilons=job.eps)[0]


def robustness(job: Job, use_best: bool = False) -> Attack:
    attacker = robustness_attacker(job.model)
    options = {"constraint": "2" if job.norm == "l2" else "inf", "eps": job.eps, "step_size": job.step_size}
    options |= {"iterations": job.steps, "targeted": job.targeted, "use_best": use_best, "do_tqdm": False}
    options |= {"random_start": False}  # on by default in Attacker, off in what its documentation shows
    return lambda x, y: attacker(x, y, **options)


def robustness_best(job: Job) -> Attack:
    """As its users run it: the best iterate of each sample, at the price of a forward pass and masked copies."""
    return robustness(job, use_best=True)


def adv_lib(job: Job) -> Attack:
    """Keeps the last *successful* iterate and gives the clean image where there is none; tests one step fewer."""
    pgd_linf = load("adv_lib.attacks.projected_gradient_descent").pgd_linf
    if job.norm != "linf":
        raise NotImplementedError("it has no L2 PGD")
    options = {"ε": job.eps, "steps": job.steps, "random_init": False, "restarts": 1, "loss_function": "ce"}
    options |= {"absolute_step_size": job.step_size}
    return lambda x, y: pgd_linf(job.model, x, y, targeted=job.targeted, **options)


def art(job: Job) -> Attack:
    """Takes and gives numpy arrays; its L2 step goes to the box first and to the ball after that."""
    evasion, classification = load("art.attacks.evasion"), load("art.estimators.classification")
    classifier = classification.PyTorchClassifier(
        job.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=job.shape,
        nb_classes=job.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if job.device.type == "cuda" else "cpu",
    )
    attack = evasion.ProjectedGradientDescentPyTorch(
        classifier,
        norm=2 if job.norm == "l2" else np.inf,
        eps=job.eps,
        eps_step=job.step_size,
        max_iter=job.steps,
        targeted=job.targeted,
        batch_size=1_000_000,
        verbose=False,
    )

    def run(x: Tensor, y: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(y, job.classes).float().cpu().numpy()
        return torch.from_numpy(attack.generate(x.cpu().numpy(), one_hot)).to(x.device)

    return run


def auto_attack(job: Job) -> Attack:
    load_auto_attack("autopgd_base")
    raise NotImplementedError("it has no PGD but APGD, which benchmarks.apgd compares")


LIBRARIES: dict[str, Callable[[Job], Attack]] = {
    "advfeat": advfeat,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "robustness": robustness,
    "robustness, best": robustness_best,
    "adv-lib": adv_lib,
    "art": art,
    "auto-attack": auto_attack,
}


def available(
    job: Job, names: list[str] | None = None, libraries: dict[str, Callable[[Job], Attack]] | None = None
) -> tuple[dict[str, Attack], dict[str, str]]:
    """The libraries that take this job, and why the others do not. Errors: ValueError for a name that is none."""
    libraries = LIBRARIES if libraries is None else libraries
    if unknown := [name for name in names or () if name not in libraries]:
        raise ValueError(f"libraries should be among {', '.join(libraries)}; got {', '.join(unknown)}")
    found, missing = {}, {}
    for name in names or libraries:
        try:
            found[name] = libraries[name](job)
        except ImportError as error:
            missing[name] = f"not installed: {error}"
        except (NotImplementedError, AttributeError, TypeError) as error:
            missing[name] = str(error)
    return found, missing


def say_missing(missing: dict[str, str]) -> None:
    for name, why in missing.items():
        print(f"{name}: left out ({why})", flush=True)


def load_auto_attack(module: str):
    """A module of auto-attack: the authors' repository installs as autoattack, the package index has pyautoattack."""
    try:
        return load(f"autoattack.{module}")
    except ImportError:
        return load(f"pyautoattack.{module}")


def robustness_attacker(net: nn.Module, forward: Callable[..., object] | None = None) -> Callable[..., Tensor]:
    """robustness' Attacker around any network. forward: called in its place, with the keywords that robustness adds."""
    attacker_module = load("robustness.attacker")

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, *_, **keywords) -> object:
            return self.net(x) if forward is None else forward(x, **keywords)

    class NoNormalisation:
        mean, std = torch.zeros(1), torch.ones(1)  # broadcast over any number of channels

    parameter = next(net.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    attacker = attacker_module.Attacker(Plain(), NoNormalisation()).to(device).eval()
    return _without_cuda(attacker) if device.type == "cpu" else attacker


def _without_cuda(attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """robustness calls .cuda() on what it is given, whatever the machine."""

    def run(*arguments, **options) -> Tensor:
        cuda = Tensor.cuda
        Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
        try:
            return attack(*arguments, **options)
        finally:
            Tensor.cuda = cuda  # type: ignore[method-assign]

    return run
