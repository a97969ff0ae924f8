"""The attacks of torchattacks on this library's attacks, with the methods that scripts call on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from advfeat import attacks
from advfeat._arguments import check_path, number, whole_number
from advfeat._model_checks import check_model
from advfeat.attacks.inputs import check_tensor
from advfeat.attacks.no_trace import no_trace
from advfeat.compat import saved
from advfeat.eval_mode import in_eval_mode
from advfeat.files import check_writable_file
from advfeat.forward import class_logits, logits_of, predicted_classes, unwrapped
from advfeat.objectives import Margin
from advfeat.random import fresh_seed
from advfeat.threat import L2, Linf, Threat


class _TorchAttack:
    """The part of ``torchattacks.Attack`` that scripts use; a subclass implements ``forward``."""

    load = staticmethod(saved.load)

    def __init__(self, model: Callable) -> None:
        check_model(model)
        self.attack = type(self).__name__
        self.supported_mode = ["default", "targeted"]
        self.normalization_used: dict[str, Tensor] | None = None
        self.return_type = "float"
        self.set_model(model)
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        self.device: torch.device | str | None = None if parameter is None else parameter.device
        self.set_mode_default(quiet=True)

    def set_model(self, model: Callable) -> None:
        """Replaces the model."""
        self.model, self.model_name = model, type(model).__name__

    def set_device(self, device: torch.device | str) -> None:
        """Replaces the device."""
        self.device = device

    def set_normalization_used(self, mean: list[float], std: list[float]) -> None:
        """Declares that inputs and outputs are normalised images; eps stays in pixel scale."""
        self.normalization_used = saved.by_channel(mean, std)

    def set_model_training_mode(
        self, model_training: bool = False, batchnorm_training: bool = False, dropout_training: bool = False
    ) -> None:
        """Accepts eval mode only; raises ValueError for any training mode."""
        if model_training or batchnorm_training or dropout_training:
            raise ValueError("advfeat attacks models in eval mode; training modes of torchattacks are not supported")

    def set_return_type(self, type: str) -> None:
        """Sets the type of results: "float", or "int" for uint8 images in pixel scale, rounded to nearest."""
        saved.check_type("type", type)
        self.return_type = type

    def get_mode(self) -> str:
        """The attack mode, such as "default"."""
        return self.attack_mode

    def _set_mode(self, mode: str, targets: Callable | None, quiet: bool) -> None:
        if mode != "default" and "targeted" not in self.supported_mode:
            raise ValueError(f"{self.attack} should be in the default mode, got {mode}")
        self.attack_mode, self._targets, self.targeted = mode, targets, mode != "default"
        if not quiet:
            _print(f"Attack mode is changed to '{mode}.'")

    def set_mode_default(self, quiet: bool = False) -> None:
        """Makes the attack untargeted."""
        self._set_mode("default", None, quiet)

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Makes the attack targeted, towards the labels that it is given."""
        self._set_mode("targeted(label)", lambda inputs, labels: labels, quiet)

    def set_mode_targeted_by_function(self, target_map_function: Callable, quiet: bool = False) -> None:
        """Makes the attack targeted, towards ``target_map_function(inputs, labels)``."""
        self._set_mode("targeted(custom)", target_map_function, quiet)

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Makes the attack targeted, towards random other classes."""

        def targets(inputs: Tensor, labels: Tensor | None) -> Tensor:
            logits = self._clean_logits(inputs)
            labels = predicted_classes(logits) if labels is None else labels
            classes = logits.shape[1]
            return (labels + torch.randint(1, classes, labels.shape).to(labels.device)) % classes

        self._set_mode("targeted(random)", targets, quiet)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Makes the attack targeted, towards the other class with the ``kth_min``-th smallest logit."""
        kth_min = whole_number("kth_min", kth_min)

        def targets(inputs: Tensor, labels: Tensor | None) -> Tensor:
            logits = self._clean_logits(inputs)
            labels = predicted_classes(logits).clamp(min=0) if labels is None else labels
            if kth_min >= logits.shape[1]:
                raise ValueError(f"kth_min should be below the number of classes, {logits.shape[1]}, got {kth_min}")
            others = logits.scatter(1, labels[:, None], math.inf)  # the true label comes last
            return others.kthvalue(kth_min, dim=1).indices

        self._set_mode("targeted(least-likely)", targets, quiet)

    def get_logits(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The model's logits for images in pixel scale; the attack calls a subclass's override."""
        return logits_of(self._pixel_model()(inputs))

    def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The labels that a targeted attack aims for, int64 [B]."""
        if self._targets is None:
            raise ValueError("a target needs a targeted mode: call set_mode_targeted_by_label() or the like before")
        # A copy: the script's function may modify its argument in place.
        targets = self._targets(inputs, None if labels is None else labels.clone())
        if targets is None:
            raise ValueError("labels should be given where they are the targets, got None")
        check_tensor("targets", targets, "int64 [B], as the function of set_mode_targeted_by_function gives them")
        return targets.to(inputs.device)

    def _clean_logits(self, inputs: Tensor) -> Tensor:
        with no_trace(self.model, inputs.device), torch.no_grad():
            logits = self.get_logits(inputs)
            return class_logits(logits[:, None] if logits.dim() == 1 else logits)

    def _pixel_model(self) -> Callable:
        model = unwrapped(self.model)
        return model if self.normalization_used is None else _normalised(model, *self._mean_and_std(None))

    def _mean_and_std(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        used = cast("dict[str, Tensor]", self.normalization_used)  # callers have looked
        mean, std = (used[k].to(device or self.device or "cpu") for k in ("mean", "std"))
        return mean, std

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images for images [B, C, H, W] (in [0, 1], or normalised as declared) and labels int64 [B]."""
        check_tensor("inputs", inputs, "images [B, C, H, W]")
        if labels is not None:
            check_tensor("labels", labels, "int64 [B]")
        # Copies: a subclass or a target function may work in place.
        inputs = inputs.detach().to(self.device or inputs.device).clone()
        labels = None if labels is None else labels.detach().to(inputs.device).clone()
        if labels is None and not self.targeted:
            raise ValueError("labels should be given in the default mode, got None")
        if self.normalization_used is None:
            return saved.as_type(self._called(inputs, labels), self.return_type)
        mean, std = self._mean_and_std(inputs.device)
        adversarial = self._called(inputs * std + mean, labels)
        return saved.as_type(adversarial, "int") if self.return_type == "int" else (adversarial - mean) / std

    def _called(self, images: Tensor, labels: Tensor | None) -> Tensor:
        with in_eval_mode(self.model):  # also for the forward of a subclass
            return self.forward(images, labels).detach()

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The attack on images in pixel scale, which a subclass implements."""
        raise NotImplementedError

    def save(
        self,
        data_loader: DataLoader,
        save_path: str | Path | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple[float, float, float] | None:
        """Attacks every batch (inputs, labels) of a loader and writes the results, with their labels, to a file.

        The file, in pixel scale, is written atomically after the last batch; torchattacks writes it after every batch.

        Args:
            data_loader: a DataLoader, or a list of batches.
            save_path: the file; None for none.
            verbose: whether to print the progress.
            return_verbose: whether to return the statistics.
            save_predictions: whether to store the predictions.
            save_clean_inputs: whether to store the clean inputs.
            save_type: "float" or "int", see :meth:`set_return_type`.

        Returns:
            With ``return_verbose`` the robust accuracy in per cent, the mean L2 distance of the misclassified samples,
            and the seconds for the last batch; otherwise None.

        Raises:
            TypeError: ``data_loader`` does not give (inputs, labels).
            ValueError: ``data_loader`` is empty.
        """
        saved.check_type("save_type", save_type)
        if save_path is not None:
            check_path("save_path", save_path)
            check_writable_file(save_path)
        if not hasattr(data_loader, "__len__") or isinstance(data_loader, (Dataset, Tensor)):
            raise TypeError(
                f"data_loader should be a DataLoader or a list of (inputs, labels), got {type(data_loader).__name__}"
            )
        kept: dict[str, list[Tensor]] = {}
        right, distances, batches = [], [], len(data_loader)
        for done, batch in enumerate(data_loader, 1):
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                what = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
                raise TypeError(f"data_loader should give (inputs, labels), got a {what}")
            inputs, labels = batch
            start = time.perf_counter()
            pixels, adversarial = self._attacked(inputs, labels)
            predicted = predicted_classes(self._clean_logits(adversarial))
            right.append(predicted == labels.to(predicted.device))
            distances.append(L2(math.inf).distance(adversarial, pixels)[~right[-1]])
            report = (
                100 * torch.cat(right).double().mean().item(),
                torch.cat(distances).double().mean().item(),
                time.perf_counter() - start,
            )
            wanted = {"adv_inputs": adversarial, "labels": labels}
            wanted |= {"preds": predicted} if save_predictions else {}
            wanted |= {"clean_inputs": pixels} if save_clean_inputs else {}
            for name, tensor in wanted.items() if save_path is not None else ():
                kept.setdefault(name, []).append(tensor.detach().cpu())
            if verbose:
                _print(self._progress(100 * done / batches, *report), end="\r" if done < batches else "\n")
        if not right:
            raise ValueError("data_loader should have at least one batch, got none")
        if save_path is not None:
            saved.write(save_path, {name: torch.cat(tensors) for name, tensors in kept.items()}, save_type)
        return report if return_verbose else None

    def _attacked(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images in pixel scale, before and after the attack."""
        inputs, labels = (t.detach().to(self.device or t.device) for t in (inputs, labels))
        if self.normalization_used is not None:
            mean, std = self._mean_and_std(inputs.device)
            inputs = inputs * std + mean
        return inputs, self._called(inputs.clone(), labels.clone())  # copies, as in __call__

    def _progress(self, percent: float, robust: float, distance: float, seconds: float) -> str:
        return (
            f"- Save progress: {percent:.2f} % / Robust accuracy: {robust:.2f} % / L2: {distance:.5f} "
            f"({seconds:.3f} s/it)"
        )

    def __repr__(self) -> str:
        return f"{self.attack}(model_name={self.model_name}, attack_mode={self.attack_mode})"


class _GradientAttack(_TorchAttack):
    """An attack of torchattacks that is :class:`advfeat.PGD`.

    ``eps`` and ``alpha`` are numbers or per sample: [B] or [B, 1, 1, 1].
    """

    def __init__(self, model: Callable, eps: float, alpha: float, steps: int, random_start: bool) -> None:
        super().__init__(model)
        self.eps, self.alpha, self.steps, self.random_start = eps, alpha, steps, random_start

    def _threat(self) -> Threat:
        raise NotImplementedError

    def _momentum(self) -> dict[str, Any]:
        """The settings of :class:`advfeat.PGD` that differ from one without momentum."""
        return {}

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """See :meth:`_TorchAttack.forward`."""
        own_logits = type(self).get_logits is not _TorchAttack.get_logits
        return attacks.PGD(
            self._threat(),
            steps=self.steps,
            step_size=_by_sample(self.alpha),
            objective=Margin(1.0),
            random_start=self.random_start,
            targeted=self.targeted,
            seed=fresh_seed() if self.random_start else 0,
            **self._momentum(),
        )(
            self.get_logits if own_logits else self._pixel_model(),
            images,
            # __call__ wants labels in the default mode; a caller of this method without them is told by the attack.
            self.get_target_label(images, labels) if self.targeted else cast("Tensor", labels),
        )

    def __repr__(self) -> str:
        return (
            f"{self.attack}(model_name={self.model_name}, eps={self.eps}, alpha={self.alpha}, steps={self.steps}, "
            f"random_start={self.random_start}, attack_mode={self.attack_mode})"
        )


def _by_sample(value: float | Tensor) -> float | Tensor:
    """A radius or step [B, 1, 1, 1], as torchattacks broadcasts it, in the shape [B] of this library."""
    if isinstance(value, Tensor) and value.dim() > 1 and value.numel() == value.shape[0]:
        return value.reshape(-1)
    return value


def _normalised(model: Callable, mean: Tensor, std: Tensor) -> Callable:
    """The model for images in pixel scale: a module for a module, a function for a function.

    A module keeps its layout and training flags visible; an attack looks for the modules in a function.
    """
    if isinstance(model, nn.Module):
        return _Normalised(model, mean, std)
    return lambda x: model((x - mean) / std)


class _Normalised(nn.Module):
    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model((x - self.mean) / self.std))


class PGD(_GradientAttack):
    """``torchattacks.PGD``: L-inf PGD (Madry et al. 2018).

    Args:
        model: returns logits [B, classes].
        eps: the radius per value, in pixel scale [0, 1]; a number, or per sample [B] or [B, 1, 1, 1].
        alpha: the step per value, like ``eps``.
        steps: number of steps.
        random_start: whether to start at a random point of the ball.
    """

    def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=True):
        super().__init__(model, eps, alpha, steps, random_start)

    def _threat(self):
        return Linf(_by_sample(self.eps))


class FGSM(_GradientAttack):
    """``torchattacks.FGSM``: a single step of the full radius (Goodfellow et al. 2015).

    Args:
        model: returns logits [B, classes].
        eps: the radius per value, in pixel scale [0, 1]; a number, or per sample [B] or [B, 1, 1, 1].
    """

    def __init__(self, model, eps=8 / 255):
        super().__init__(model, eps, eps, 1, False)

    def _threat(self):
        return Linf(_by_sample(self.eps))

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """See :meth:`_TorchAttack.forward`."""
        self.alpha = self.eps  # scripts change eps
        return super().forward(images, labels)


class MIFGSM(_GradientAttack):
    """``torchattacks.MIFGSM``: L-inf steps along accumulated gradients (Dong et al. 2018).

    torchattacks divides a gradient by the mean of its magnitudes, this library by their sum: the same direction.

    Args:
        model: returns logits [B, classes].
        eps: the radius per value, in pixel scale [0, 1]; a number, or per sample [B] or [B, 1, 1, 1].
        alpha: the step per value, like ``eps``.
        steps: number of steps.
        decay: the share of the accumulated gradients that is kept, at least 0 and at most 1.
    """

    def __init__(self, model, eps=8 / 255, alpha=2 / 255, steps=10, decay=1.0):
        super().__init__(model, eps, alpha, steps, False)
        self.decay = decay

    def _threat(self):
        return Linf(_by_sample(self.eps))

    def _momentum(self):
        decay = number("decay", self.decay)  # here, not before: scripts change it
        if not 0 <= decay <= 1:
            raise ValueError(f"decay should be at least 0 and at most 1, got {decay}")
        return {"momentum": decay, "momentum_form": "mi-fgsm"} if decay else {}

    def __repr__(self):
        return super().__repr__().replace("random_start=False", f"decay={self.decay}")


class PGDL2(_GradientAttack):
    """``torchattacks.PGDL2``: L2 PGD. ``eps_for_division`` is accepted but not needed.

    Args:
        model: returns logits [B, classes].
        eps: the L2 radius, in pixel scale [0, 1]; a number, or per sample [B] or [B, 1, 1, 1].
        alpha: the L2 length of a step, like ``eps``.
        steps: number of steps.
        random_start: whether to start at a random point of the ball.
        eps_for_division: ignored.
    """

    def __init__(self, model, eps=1.0, alpha=0.2, steps=10, random_start=True, eps_for_division=1e-10):
        super().__init__(model, eps, alpha, steps, random_start)
        self.eps_for_division = eps_for_division

    def _threat(self):
        return L2(_by_sample(self.eps))


class MultiAttack(_TorchAttack):
    """``torchattacks.MultiAttack``: each attack runs on the samples that survive those before it.

    A sample that none of them breaks is returned unchanged.

    Args:
        attacks: at least two attacks on one model. Those of other libraries work too; they are called with images in
            pixel scale and labels.
        verbose: whether to print the success rates at every call.

    Raises:
        TypeError: ``attacks`` is not a list of attacks with a model.
        ValueError: there are fewer than two, or their models differ.
    """

    def __init__(self, attacks: Sequence[Callable], verbose: bool = False) -> None:
        if isinstance(attacks, _TorchAttack) or not hasattr(attacks, "__iter__"):
            raise TypeError(f"attacks should be a list of attacks, got {type(attacks).__name__}")
        given: list[Any] = list(attacks)  # Any: they need a model, which is checked here
        if len(given) < 2:
            raise ValueError(f"attacks should be two or more, got {len(given)}")
        for attack in given:
            if not (callable(attack) and hasattr(attack, "model")):
                raise TypeError(f"attacks should be attacks with a model, got {type(attack).__name__}")
        if len({id(attack.model) for attack in given}) != 1:
            raise ValueError("attacks should share one model, got several")
        super().__init__(given[0].model)
        self.supported_mode = ["default"]
        self.attacks, self.verbose = given, verbose
        self._totals = [0] * (len(given) + 1)  # the number of samples, and of survivors after each attack

    def set_normalization_used(self, mean: list[float], std: list[float]) -> None:
        """See :meth:`_TorchAttack.set_normalization_used`."""
        super().set_normalization_used(mean, std)
        for attack in self.attacks:
            attack.set_normalization_used(mean, std)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """See :meth:`_TorchAttack.forward`."""
        labels = cast("Tensor", labels)  # __call__ wants them in the default mode, the only one here
        adversarial, left = images.clone(), torch.arange(len(images), device=images.device)
        standing = [len(images)]
        for attack in self.attacks:
            if len(left):
                call = attack.forward if isinstance(attack, _TorchAttack) else attack
                moved = call(images[left], labels[left])
                broken = predicted_classes(self._clean_logits(moved)) != labels[left]
                adversarial[left[broken]] = moved[broken]
                left = left[~broken]
            standing.append(len(left))
        self._totals = [total + more for total, more in zip(self._totals, standing, strict=True)]
        if self.verbose:
            _print(_rates(standing))
        return adversarial

    def save(self, data_loader, *args, **options):
        """See :meth:`_TorchAttack.save`; the second value that ``return_verbose`` returns holds success rates.

        They are the percentages of samples that each attack and those before it break.
        """
        self._totals, verbose, self.verbose = [0] * len(self._totals), self.verbose, False
        try:
            report = super().save(data_loader, *args, **options)
        finally:
            self.verbose = verbose
        return report and (report[0], _success(self._totals), *report[1:])

    def _progress(self, *report: float) -> str:
        return f"{super()._progress(*report)} / {_rates(self._totals)}"


def _success(standing: list[int]) -> list[float]:
    return [100 * (1 - left / max(standing[0], 1)) for left in standing[1:]]


def _rates(standing: list[int]) -> str:
    return "Attack success rate: " + " | ".join(f"{rate:.2f} %" for rate in _success(standing))


def _print(text: str, end: str = "\n") -> None:
    with suppress(OSError, UnicodeError):  # a closed pipe must not lose the results of an attack
        print(text, end=end, flush=True)
