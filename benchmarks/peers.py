"""Other libraries' PGD behind one signature, each called as its documentation says: what benchmarks.attacks compares.

A library that is missing is left out and named. pip install 'advfeat[bench]'; MadryLab/robustness goes in by hand,
since it pins what a current torch does not take: pip install --no-deps robustness==1.2.1.post2
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advfeat import L2, PGD, Linf

# (x, labels) -> adversarial examples
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """One attack that every library is asked for: the model takes [0, 1] images and is in eval mode."""

    model: nn.Module
    norm: str
    eps: float
    step_size: float
    steps: int
    targeted: bool = False
    classes: int = 10


def advfeat(job: Job) -> Attack:
    threat = L2(job.eps) if job.norm == "l2" else Linf(job.eps)
    pgd = PGD(threat, steps=job.steps, step_size=job.step_size, targeted=job.targeted)
    return lambda x, y: pgd(job.model, x, y)


def torchattacks(job: Job) -> Attack:
    import torchattacks as library

    kind = library.PGDL2 if job.norm == "l2" else library.PGD
    attack = kind(job.model, eps=job.eps, alpha=job.step_size, steps=job.steps, random_start=False)
    if job.targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack


def foolbox(job: Job) -> Attack:
    import foolbox as library

    kind = library.attacks.L2PGD if job.norm == "l2" else library.attacks.LinfPGD
    attack = kind(abs_stepsize=job.step_size, steps=job.steps, random_start=False)
    device = next(job.model.parameters()).device
    model = library.PyTorchModel(job.model, bounds=(0, 1), device=device)
    criterion = library.criteria.TargetedMisclassification if job.targeted else library.criteria.Misclassification
    return lambda x, y: attack(model, x, criterion(y), epsilons=job.eps)[0]


def robustness(job: Job, use_best: bool = False) -> Attack:
    _stand_ins_for_robustness()
    from robustness.attacker import Attacker

    class Plain(nn.Module):
        """robustness passes its own keyword arguments to the network."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, *_, **__) -> Tensor:
            return self.net(x)

    class Data:
        mean, std = torch.zeros(3), torch.ones(3)

    device = next(job.model.parameters()).device
    attacker = Attacker(Plain(job.model), Data()).to(device).eval()
    options = {"constraint": "2" if job.norm == "l2" else "inf", "eps": job.eps, "step_size": job.step_size}
    options |= {"iterations": job.steps, "targeted": job.targeted, "use_best": use_best, "do_tqdm": False}
    if device.type == "cpu":  # the library calls .cuda() on what it is given, whatever the machine
        return _without_cuda(lambda x, y: attacker(x, y, **options))
    return lambda x, y: attacker(x, y, **options)


def adv_lib(job: Job) -> Attack:
    from adv_lib.attacks.auto_pgd import apgd  # noqa: F401  (the import says whether the library is there)
    from adv_lib.attacks.projected_gradient_descent import pgd_linf

    if job.norm != "linf":
        raise NotImplementedError("adv-lib has no L2 PGD")
    options = {"ε": job.eps, "steps": job.steps, "random_init": False, "restarts": 1, "loss_function": "ce"}
    options |= {"absolute_step_size": job.step_size}
    return lambda x, y: pgd_linf(job.model, x, y, targeted=job.targeted, **options)


def art(job: Job) -> Attack:
    import numpy as np
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    device = next(job.model.parameters()).device
    classifier = PyTorchClassifier(
        job.model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 32, 32),
        nb_classes=job.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
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


LIBRARIES: dict[str, Callable[[Job], Attack]] = {
    "advfeat": advfeat,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "robustness": robustness,
    "adv-lib": adv_lib,
    "art": art,
}


def available(job: Job, names: list[str] | None = None) -> tuple[dict[str, Attack], dict[str, str]]:
    """The libraries that take this job, and why the others do not."""
    found, missing = {}, {}
    for name in names or LIBRARIES:
        try:
            found[name] = LIBRARIES[name](job)
        except (ImportError, NotImplementedError, AttributeError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


def _stand_ins_for_robustness() -> None:
    """Empty modules for what the attack code of robustness imports and never calls."""
    import importlib.util

    for name in ("cox", "cox.utils", "cox.store", "dill", "tqdm", "pandas", "tensorboardX"):
        root = name.split(".")[0]
        if name not in sys.modules and (root in _STOOD_IN or importlib.util.find_spec(root) is None):
            _STOOD_IN.add(root)
            module = types.ModuleType(name)
            module.__path__ = []  # type: ignore[attr-defined]
            module.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
            sys.modules[name] = module


_STOOD_IN: set[str] = set()


def _without_cuda(attack: Attack) -> Attack:
    def run(x: Tensor, y: Tensor) -> Tensor:
        cuda = Tensor.cuda
        Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
        try:
            return attack(x, y)
        finally:
            Tensor.cuda = cuda  # type: ignore[method-assign]

    return run
