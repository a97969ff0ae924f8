"""Representation matching (D_R, D_NR) with the libraries that take a loss of the user's own.

min ||g(z) - g(x)||_2 over images z by normalised gradient steps of fixed length, no ball but the box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advfeat import L2, PGD, Representation
from benchmarks.peers import Attack, robustness_attacker
from benchmarks.stand_ins import load

FAR = 1000.0  # the radius that MadryLab's notebook gives where no ball is wanted


@dataclass(frozen=True)
class MatchJob:
    """What every library is asked for; its attacks take (start, features to match) and give images."""

    model: nn.Module
    step_size: float
    steps: int


def advfeat(job: MatchJob) -> Attack:
    objective = Representation(relative=True)
    pgd = PGD(L2(math.inf), steps=job.steps, step_size=job.step_size, objective=objective, targeted=True)
    return lambda z, features: pgd(job.model, z, features)


def robustness(job: MatchJob) -> Attack:
    """As the notebook has it: with a custom loss the library runs the model twice a step."""

    def forward(z: Tensor, with_latent: bool = False, **_) -> object:
        latent = job.model.representation(z)
        logits = job.model.head(latent) if hasattr(job.model, "head") else latent
        return (logits, latent) if with_latent else logits

    def inversion_loss(model: Callable[..., tuple[Tensor, Tensor]], z: Tensor, features: Tensor) -> tuple[Tensor, None]:
        _, latent = model(z, with_latent=True, fake_relu=True)
        return torch.norm(latent - features, dim=1), None

    attacker = robustness_attacker(job.model, forward)
    options = {"constraint": "2", "eps": FAR, "step_size": job.step_size, "iterations": job.steps}
    options |= {"targeted": True, "use_best": False, "do_tqdm": False, "custom_loss": inversion_loss}
    return lambda z, features: attacker(z, features, **options)


def foolbox(job: MatchJob) -> Attack:
    """Its loss is made to be overridden; it asks for logits and labels nevertheless, once after the last step."""
    library = load("foolbox")
    import eagerpy

    class Matching(library.attacks.L2ProjectedGradientDescentAttack):
        features: Tensor

        def get_loss_fn(self, model, labels):
            def loss(z):
                latent = job.model.representation(z.raw)
                return eagerpy.astensor(torch.norm(latent - self.features, dim=1).sum())

            return loss

    attack = Matching(abs_stepsize=job.step_size, steps=job.steps, random_start=False)
    parameter = next(job.model.parameters())
    model = library.PyTorchModel(job.model, bounds=(0, 1), device=parameter.device)

    def run(z: Tensor, features: Tensor) -> Tensor:
        attack.features = features
        nobody = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        return attack(model, z, library.criteria.TargetedMisclassification(nobody), epsilons=FAR)[0]

    return run


def _no_loss_of_ones_own(library: str) -> Callable[[MatchJob], Attack]:
    def missing(job: MatchJob) -> Attack:
        raise NotImplementedError(f"{library} takes no loss of the user's own")

    return missing


MATCHERS: dict[str, Callable[[MatchJob], Attack]] = {
    "advfeat": advfeat,
    "robustness": robustness,
    "foolbox": foolbox,
    "torchattacks": _no_loss_of_ones_own("torchattacks"),
    "adv-lib": _no_loss_of_ones_own("adv-lib"),
    "auto-attack": _no_loss_of_ones_own("auto-attack"),
    "art": _no_loss_of_ones_own("ART's PGD (its losses are of logits and labels)"),
}


def match_quality(model: nn.Module, z: Tensor, features: Tensor) -> dict:
    """How near the representation came, relative to the one to match: the mean, and the share within a tenth."""
    with torch.no_grad():
        away = (model.representation(z.detach()) - features).norm(dim=1) / features.norm(dim=1)
    return {"representation_distance": float(away.mean()), "within_a_tenth": float((away < 0.1).float().mean())}
