"""Names and signatures of torchattacks (``PGD``, ``PGDL2``) and MadryLab/robustness (``L2Step``, ``LinfStep``) over our
ops.

    import advfeat.compat as torchattacks                      # was: import torchattacks
    from advfeat.compat import L2Step                          # was: from robustness.attack_steps import L2Step

An existing script changes this one line. What changes with it:

* The objective is the margin that never saturates instead of the mean cross-entropy; in exact arithmetic both give the
  same steps (the per-sample direction is the same), but confident samples are attacked too, and no floor of 1e-10 slows
  samples whose gradient is small. Robust accuracies can therefore only come out lower, and nearer to the truth.
* PGDL2 starts uniformly in the ball (torchattacks' start is denser at the centre); L2Step.random_perturb likewise (it
  was on the sphere). Random numbers are drawn from a seed taken from torch's global generator, so ``torch.manual_seed``
  works.
* The model's submodules keep their own training flags, parameters their ``.grad``; it runs under ``no_grad``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from advfeat import attacks, ops
from advfeat.attacks.no_trace import logits_of, no_trace, unwrapped
from advfeat.objectives import Margin
from advfeat.seeds import fresh_seed
from advfeat.threat import L2, Linf, Threat

__all__ = ["PGD", "PGDL2", "L2Step", "LinfStep"]


class _TorchAttack:
    """The part of ``torchattacks.Attack`` that scripts use, around :class:`advfeat.PGD`."""

    def __init__(self, model: Callable, eps: float, alpha: float, steps: int, random_start: bool) -> None:
        self.attack = type(self).__name__
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start
        self.supported_mode = ["default", "targeted"]
        self.normalization_used: dict[str, Tensor] | None = None
        self.set_model(model)
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.device = None if parameter is None else parameter.device
        self.set_mode_default(quiet=True)

    def _threat(self) -> Threat:
        raise NotImplementedError

    def set_model(self, model: Callable) -> None:
        self.model, self.model_name = model, type(model).__name__

    def set_device(self, device: torch.device | str) -> None:
        self.device = device

    def set_normalization_used(self, mean: list[float], std: list[float]) -> None:
        """Inputs and outputs are normalised images; eps stays in pixel scale."""
        shape = (1, len(mean), 1, 1)
        self.normalization_used = {
            "mean": torch.as_tensor(mean, dtype=torch.float32).reshape(shape),
            "std": torch.as_tensor(std, dtype=torch.float32).reshape(shape),
        }

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        if model_training or batchnorm_training or dropout_training:
            raise ValueError("advfeat attacks models in eval mode; training modes of torchattacks are not supported")

    def get_mode(self) -> str:
        return self.attack_mode

    def _set_mode(self, mode: str, targets: Callable | None, quiet: bool) -> None:
        self.attack_mode, self._targets, self.targeted = mode, targets, mode != "default"
        if not quiet:
            print(f"Attack mode is changed to '{mode}.'")

    def set_mode_default(self, quiet: bool = False) -> None:
        self._set_mode("default", None, quiet)

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        self._set_mode("targeted(label)", lambda inputs, labels: labels, quiet)

    def set_mode_targeted_by_function(self, target_map_function: Callable, quiet: bool = False) -> None:
        self._set_mode("targeted(custom)", target_map_function, quiet)

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        def targets(inputs: Tensor, labels: Tensor | None) -> Tensor:
            logits = self._clean_logits(inputs)
            labels = logits.argmax(dim=1) if labels is None else labels
            classes = logits.shape[1]
            return (labels + torch.randint(1, classes, labels.shape).to(labels.device)) % classes

        self._set_mode("targeted(random)", targets, quiet)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        if kth_min < 1:
            raise ValueError(f"kth_min should be at least 1, got {kth_min}")

        def targets(inputs: Tensor, labels: Tensor | None) -> Tensor:
            logits = self._clean_logits(inputs)
            labels = logits.argmax(dim=1) if labels is None else labels
            others = logits.scatter(1, labels[:, None], math.inf)  # the own label comes last
            return others.kthvalue(kth_min, dim=1).indices

        self._set_mode("targeted(least-likely)", targets, quiet)

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The model's logits for images in pixel scale. A subclass may write its own: the attack then calls that."""
        return logits_of(self._pixel_model()(inputs))

    def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The labels that a targeted attack goes for, int64 [B]."""
        if self._targets is None:
            raise ValueError("a target needs a targeted mode: call set_mode_targeted_by_label() or the like before")
        # A copy: a function of the script's may fill its argument in place.
        return self._targets(inputs, None if labels is None else labels.clone()).to(inputs.device)

    def _clean_logits(self, inputs: Tensor) -> Tensor:
        with no_trace(self.model, inputs.device), torch.no_grad():
            return self.get_logits(inputs)

    def _pixel_model(self) -> Callable:
        model = unwrapped(self.model)
        return model if self.normalization_used is None else _normalised(model, *self._mean_and_std(None))

    def _mean_and_std(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        mean, std = (self.normalization_used[k].to(device or self.device or "cpu") for k in ("mean", "std"))
        return mean, std

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images for images [B, C, H, W] (in [0, 1], or normalised as told) and labels int64 [B]."""
        inputs = inputs.detach().to(self.device or inputs.device)
        labels = None if labels is None else labels.detach().to(inputs.device)
        if labels is None and not self.targeted:
            raise ValueError("labels should be given in the default mode, got None")
        if self.normalization_used is None:
            return self.forward(inputs, labels)
        mean, std = self._mean_and_std(inputs.device)
        return (self.forward(inputs * std + mean, labels) - mean) / std

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The attack on images in pixel scale; what a subclass of torchattacks' writes."""
        own_logits = type(self).get_logits is not _TorchAttack.get_logits
        return attacks.PGD(
            self._threat(),
            steps=self.steps,
            step_size=self.alpha,
            objective=Margin(1.0),
            random_start=self.random_start,
            targeted=self.targeted,
            seed=fresh_seed() if self.random_start else 0,
        )(
            self.get_logits if own_logits else self._pixel_model(),
            images,
            self.get_target_label(images, labels) if self.targeted else labels,
        )

    def __repr__(self) -> str:
        return (
            f"{self.attack}(model_name={self.model_name}, eps={self.eps}, alpha={self.alpha}, steps={self.steps}, "
            f"random_start={self.random_start}, attack_mode={self.attack_mode})"
        )


def _normalised(model: Callable, mean: Tensor, std: Tensor) -> Callable:
    """The model for images in pixel scale; a module of a module, for its layout and its training flags to be found, and
    a function of a function, whose modules an attack looks for."""
    if isinstance(model, nn.Module):
        return _Normalised(model, mean, std)
    return lambda x: model((x - mean) / std)


class _Normalised(nn.Module):
    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model((x - self.mean) / self.std))


class PGD(_TorchAttack):
    """``torchattacks.PGD``: L-inf PGD (Madry et al. 2018)."""

    def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True):
        super().__init__(model, eps, alpha, steps, random_start)

    def _threat(self):
        return Linf(self.eps)


class FGSM(_TorchAttack):
    """``torchattacks.FGSM``: one step of the whole radius (Goodfellow et al. 2015)."""

    def __init__(self, model, eps=8 / 255):
        super().__init__(model, eps, eps, 1, False)

    def _threat(self):
        return Linf(self.eps)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        self.alpha = self.eps  # which scripts change
        return super().forward(images, labels)


class PGDL2(_TorchAttack):
    """``torchattacks.PGDL2``: L2 PGD. ``eps_for_division`` is accepted and not needed."""

    def __init__(self, model, eps=1.0, alpha=0.2, steps=10, random_start=True, eps_for_division=1e-10):
        super().__init__(model, eps, alpha, steps, random_start)
        self.eps_for_division = eps_for_division

    def _threat(self):
        return L2(self.eps)


class _Step:
    """The four methods of ``robustness.attack_steps.AttackerStep``."""

    _threat: type[Threat]

    def __init__(self, orig_input: Tensor, eps: float, step_size: float, use_grad: bool = True) -> None:
        self.orig_input, self.eps, self.step_size, self.use_grad = orig_input, eps, step_size, use_grad

    def random_perturb(self, x: Tensor) -> Tensor:
        """A random point of the ball around x, in [0, 1]."""
        ids = torch.arange(x.shape[0], device=x.device)
        return self._threat(self.eps).random_start(x, fresh_seed(), ids)

    def to_image(self, x: Tensor) -> Tensor:
        return x


class LinfStep(_Step):
    """``robustness.attack_steps.LinfStep``."""

    _threat = Linf

    def project(self, x: Tensor) -> Tensor:
        """x into the L-inf ball around orig_input and [0, 1]."""
        return ops.project_linf(x, self.orig_input, self.eps)

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        """``x + step_size * sign(g)``."""
        return ops.linf_step(x, g, x, self.step_size, math.inf, -math.inf, math.inf)


class L2Step(_Step):
    """``robustness.attack_steps.L2Step``."""

    _threat = L2

    def project(self, x: Tensor) -> Tensor:
        """x into the L2 ball around orig_input and [0, 1]."""
        return ops.project_l2(x, self.orig_input, self.eps)

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        """``x + step_size * g / ||g||``."""
        return ops.l2_step(x, g, x, self.step_size, math.inf, -math.inf, math.inf)


_OURS = {
    "CW": "advfeat.PGD(advfeat.L2(eps), steps=..., objective=advfeat.CW())",
    "APGD": "advfeat.APGD(threat)",
    "APGDT": "advfeat.Auto(threat)",
    "AutoAttack": "advfeat.Auto(threat), AutoAttack's first two attacks",
    "MultiAttack": "advfeat.Ensemble((attack, attack))",
    "BIM": "advfeat.PGD(advfeat.Linf(eps), steps=..., step_size=...)",
}


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    ours = f": {_OURS[name]} does its work" if name in _OURS else ""
    raise AttributeError(f"advfeat.compat offers PGD, PGDL2 and FGSM of torchattacks, and not {name}{ours}")
