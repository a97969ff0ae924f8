"""A drop-in for the ``AutoAttack`` of ``autoattack`` (Croce and Hein 2020), on this library's attacks.

    from advfeat.compat.autoattack import AutoAttack           # was: from autoattack import AutoAttack

An existing script needs only this line changed, and libraries that import ``autoattack`` themselves, such as
RobustBench, use it once ``sys.modules["autoattack"] = advfeat.compat.autoattack`` is set. Constructor, versions,
attributes set after construction, results and the lines of the log are those of the authors' code. The differences are:

* Random numbers are keyed by the position of a sample in the data, so that results do not depend on the batch size, and
  the caller's random state is left alone. Numbers agree with the authors' up to their spread over seeds.
* With fewer classes than targets, the targeted attacks use all other classes, whereas the authors' code fails.
* An evaluation with a ``state_path`` really resumes, and returns the adversarial examples found before, too.
* A module in eval mode without hooks is attacked in a copy with BatchNorm folded, if the copy gives the same logits.
  The model itself confirms each success, and is attacked in its place where it disagrees.
* TensorFlow models are refused.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from advfeat.attacks import APGD, FAB, Attack, Square
from advfeat.attacks.auto import ranked
from advfeat.attacks.context import Run, undisturbed
from advfeat.attacks.result import AttackResult
from advfeat.compat.autoattack.state import EvaluationState
from advfeat.forward import class_logits, logits_of, predicted_classes
from advfeat.models import averaged
from advfeat.models.logits_copy import logits_copy
from advfeat.objectives import CW, DLR, CrossEntropy
from advfeat.threat import Threat

__all__ = ["AutoAttack", "EvaluationState"]

_NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_VERSIONS = {
    "standard": ["apgd-ce", "apgd-t", "fab-t", "square"],
    "plus": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"],
    "rand": ["apgd-ce", "apgd-dlr"],
}
_NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
_CHECKS = "https://github.com/fra31/auto-attack/blob/master/flags_doc.md"


@dataclass
class _APGDSettings:
    """``AutoAttack.apgd``."""

    n_restarts: int = 5
    n_iter: int = 100
    eot_iter: int = 1
    loss: str = "ce"
    use_largereps: bool = False


@dataclass
class _TargetedSettings:
    """``AutoAttack.apgd_targeted``."""

    n_target_classes: int = 9
    n_restarts: int = 1
    n_iter: int = 100
    eot_iter: int = 1
    use_largereps: bool = False


@dataclass
class _FABSettings:
    """``AutoAttack.fab``."""

    n_restarts: int = 5
    n_iter: int = 100
    n_target_classes: int = 9
    targeted: bool = False
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9


@dataclass
class _SquareSettings:
    """``AutoAttack.square``."""

    n_queries: int = 5000
    n_restarts: int = 1
    p_init: float = 0.8
    rescale_schedule: bool = False
    loss: str = "margin"
    # Not in the authors' code: queries in bfloat16 where the device computes that natively, see advfeat.Square.
    bf16_queries: bool = True


class AutoAttack:
    """AutoAttack with the authors' interface.

    Args:
        model: logits of images [B, C, H, W] in [0, 1].
        norm: "Linf", "L2" or "L1".
        eps: the radius.
        seed: of the random numbers; None takes the current time.
        verbose: print the log.
        attacks_to_run: for version "custom": the names of the attacks.
        version: "standard", "plus", "rand", or "custom" for ``attacks_to_run``.
        is_tf_model: not supported.
        device: where the model is; "cuda" means the CPU where there is no GPU.
        log_path: a file that the log is appended to.

    Raises:
        AssertionError: the norm is unknown.
        ValueError: ``attacks_to_run`` is given for a version that has its own, or ``is_tf_model`` is set.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device = "cuda",
        log_path: str | Path | None = None,
    ) -> None:
        assert norm in _NORMS, f"norm should be one of {', '.join(_NORMS)}, got {norm!r}"
        if is_tf_model:
            raise ValueError("is_tf_model should be False: advfeat attacks torch models")
        if version in _VERSIONS and attacks_to_run:
            raise ValueError(
                f"attacks_to_run should be empty with version={version!r}, which has its own: give version='custom'"
            )
        self.model, self.norm, self.epsilon, self.seed = model, norm, eps, seed
        self.verbose, self.attacks_to_run, self.version = verbose, list(attacks_to_run), version
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            self.device = torch.device("cpu")
        self.log_path = log_path
        self.apgd, self.apgd_targeted = _APGDSettings(), _TargetedSettings()
        self.fab, self.square = _FABSettings(), _SquareSettings()
        if version in _VERSIONS:
            self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Takes the attacks and settings of a version.

        Args:
            version: "standard", "plus" or "rand".

        Raises:
            ValueError: it is none of them.
        """
        if version not in _VERSIONS:
            raise ValueError(f"version should be one of {', '.join(_VERSIONS)}, got {version!r}")
        self._log(f"setting parameters for {version} version")
        self.version, self.attacks_to_run = version, list(_VERSIONS[version])
        in_l1 = self.norm == "L1"
        self.fab.n_target_classes, self.square.n_queries = 9, 5000
        self.apgd_targeted.n_target_classes, self.apgd_targeted.n_restarts = (
            5 if in_l1 and version == "standard" else 9,
            1,
        )
        if version == "standard":
            self.apgd.n_restarts, self.fab.n_restarts = 5 if in_l1 else 1, 1
            self.apgd.use_largereps = self.apgd_targeted.use_largereps = in_l1
        elif version == "plus":
            self.apgd.n_restarts = self.fab.n_restarts = 5
            if in_l1:
                self._log('"plus" version is not tested with L1')
        else:
            self.apgd.n_restarts, self.apgd.eot_iter = 1, 20

    def get_seed(self) -> int:
        """The seed, or the time where there is none."""
        return int(time.time()) if self.seed is None else self.seed

    def get_logits(self, x: Tensor) -> Tensor:
        """The model's logits.

        Args:
            x: images [B, C, H, W].

        Returns:
            [B, classes].
        """
        return class_logits(logits_of(self.model(x)))

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """The accuracy on clean images.

        Args:
            x_orig: images [N, C, H, W].
            y_orig: labels int64 [N].
            bs: batch size.

        Returns:
            A share.
        """
        right = sum(int((self._predicted(x) == y.to(self.device)).sum()) for x, y in _pairs(x_orig, y_orig, bs))
        if self.verbose:
            print(f"clean accuracy: {right / len(x_orig):.2%}")
        return right / len(x_orig)

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | str | None = None,
    ) -> Any:
        """Runs the attacks in turn, each on the samples that are still robust.

        Args:
            x_orig: images [N, C, H, W] in [0, 1].
            y_orig: labels int64 [N].
            bs: batch size.
            return_labels: also return the predictions.
            state_path: a file in which the evaluation is saved, after each attack and once a minute, and resumed from.

        Returns:
            The adversarial examples like x_orig, and with ``return_labels`` their predictions. Samples that were not
            broken come back as they were.

        Raises:
            ValueError: an attack is unknown, or the state was saved by an evaluation with other attacks.
        """
        for name in self.attacks_to_run:
            if name not in _NAMES:
                raise ValueError(f"attacks_to_run should hold names among {', '.join(_NAMES)}, got {name!r}")
        state = self._state(state_path)
        self._log(f"using {self.version} version including {', '.join(self.attacks_to_run)}.")
        self._check_model(x_orig[:bs], y_orig[:bs])
        self._quick = logits_copy(self.model, x_orig[:2].to(self.device))
        x_adv = x_orig.detach().clone() if state.x_adv is None else state.x_adv.to(x_orig)
        y_adv = torch.cat([self._predicted(x) for x in x_orig.split(bs)]).to(y_orig)
        if state.robust_flags is None:
            flags = (y_adv == y_orig).cpu()
            state.robust_flags, state.clean_accuracy = flags, float(flags.double().mean())
        robust = cast("Tensor", state.robust_flags)
        accuracies = {"clean": state.clean_accuracy}
        self._log(f"initial accuracy: {float(robust.double().mean()):.2%}")
        began = time.time()
        for name in self.attacks_to_run:
            if name in state.run_attacks:
                continue
            rows = robust.nonzero()[:, 0]
            if not len(rows):
                break
            batches = rows.split(bs)
            for i, at in enumerate(batches):
                found = self._attacked(name, x_orig[at], y_orig[at], at, bs)
                labels = self._predicted(found).to(y_orig)
                broken = labels != y_orig[at]
                hit = at[broken.cpu()]
                robust[hit] = False
                x_adv[hit], y_adv[hit] = found.to(x_adv)[broken.to(found.device)].to(x_adv), labels[broken]
                state.x_adv = x_adv
                state.to_disk()
                count = f"{int(broken.sum())} out of {len(at)} successfully perturbed"
                self._log(f"{name} - {i + 1}/{len(batches)} - {count}")
            accuracies[name] = float(robust.double().mean())
            state.add_run_attack(name)
            took = f"(total time {time.time() - began:.1f} s)"
            self._log(f"robust accuracy after {name.upper()}: {accuracies[name]:.2%} {took}")
        self._check_square(accuracies)
        state.to_disk(force=True)
        largest = self._threat().distance(x_adv, x_orig).max() if len(x_orig) else torch.zeros(())
        nan, most, least = int(x_adv.isnan().sum()), float(x_adv.max()), float(x_adv.min())
        self._log(
            f"max {self.norm} perturbation: {largest:.5f}, nan in tensor: {nan}, max: {most:.5f}, min: {least:.5f}"
        )
        self._log(f"robust accuracy: {float(robust.double().mean()):.2%}")
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Runs each attack alone, on all samples.

        Args:
            x_orig: as for :meth:`run_standard_evaluation`.
            y_orig: as for :meth:`run_standard_evaluation`.
            bs: as for :meth:`run_standard_evaluation`.
            return_labels: as for :meth:`run_standard_evaluation`.

        Returns:
            A dict from the names of the attacks to what :meth:`run_standard_evaluation` returns.
        """
        attacks, verbose, found = self.attacks_to_run, self.verbose, {}
        try:
            for name in attacks:
                self.attacks_to_run, self.verbose = [name], False
                began = time.time()
                x_adv, y_adv = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels=True)
                found[name] = (x_adv, y_adv) if return_labels else x_adv
                self.verbose = verbose
                accuracy = f"{float((y_adv == y_orig).double().mean()):.2%}"
                took = f"(time attack: {time.time() - began:.1f} s)"
                self._log(f"robust accuracy by {name.upper()} \t {accuracy} \t {took}")
        finally:
            self.attacks_to_run, self.verbose = attacks, verbose
        return found

    def _threat(self) -> Threat:
        return Threat.of(_NORMS[self.norm], float(self.epsilon))

    def _attacked(self, name: str, x: Tensor, y: Tensor, ids: Tensor, room: int) -> Tensor:
        """The examples of one attack for a batch, on the device; a pass holds so many samples at most."""
        x, y, ids = x.to(self.device), y.to(self.device), ids.to(self.device)
        left, result = torch.arange(len(x), device=self.device), x.clone()
        draws = {"apgd-ce": self.apgd.eot_iter, "apgd-dlr": self.apgd.eot_iter, "apgd-t": self.apgd_targeted.eot_iter}
        model: Any = averaged(self.model, draws.get(name, 1))
        quick = self._quick if draws.get(name, 1) == 1 else model
        for attack in self._attacks(name, self._number_of_classes(x)):
            if not len(left):
                break
            found = _run(attack, quick, x[left], y[left], ids[left], room)
            assert found.success is not None
            success, x_adv = found.success, found.x_adv
            if quick is not model and success.any():
                # Where the copy rounds otherwise, or the model has changed since, it is attacked itself.
                claimed = success.nonzero()[:, 0]
                doubtful = claimed[self._predicted(x_adv[claimed]).to(y) == y[left[claimed]]]
                if len(doubtful):
                    rows = left[doubtful]
                    again = _run(attack, model, x[rows], y[rows], ids[rows], room)
                    success[doubtful], x_adv[doubtful] = cast("Tensor", again.success), again.x_adv
            result[left[success]] = x_adv[success]
            left = left[~success]
        return result

    def _attacks(self, name: str, classes: int) -> list[Attack]:
        threat, seed = self._threat(), self.get_seed()
        if name in ("apgd-ce", "apgd-dlr"):
            few = name == "apgd-dlr" and classes < 3
            objective: Any = CrossEntropy() if name == "apgd-ce" else CW() if few else DLR()
            settings = self.apgd
            large: dict[str, Any] = {"large_radii": settings.use_largereps and self.norm == "L1"}
            return [
                APGD(
                    threat, steps=settings.n_iter, objective=objective, restarts=settings.n_restarts, seed=seed, **large
                )
            ]
        if name == "apgd-t":
            targeted = self.apgd_targeted
            large = {"large_radii": targeted.use_largereps and self.norm == "L1"}
            targets = min(targeted.n_target_classes, classes - 1)
            return [*ranked(targets, threat, seed + 1, steps=targeted.n_iter, restarts=targeted.n_restarts, **large)]
        if name in ("fab", "fab-t"):
            fab, to_one = self.fab, name == "fab-t"
            walk: dict[str, Any] = {"alpha_max": fab.alpha_max, "eta": fab.eta, "beta": fab.beta, "seed": seed}
            to_classes = fab.n_target_classes if to_one else None
            return [FAB(threat, steps=fab.n_iter, targets=to_classes, restarts=1 if to_one else fab.n_restarts, **walk)]
        square = self.square
        search: dict[str, Any] = {"p_init": square.p_init, "rescale_schedule": square.rescale_schedule, "seed": seed}
        search["bf16_queries"] = square.bf16_queries
        objective = CrossEntropy() if square.loss == "ce" else CW()
        return [Square(threat, steps=square.n_queries, restarts=square.n_restarts, objective=objective, **search)]

    def _number_of_classes(self, x: Tensor) -> int:
        with torch.no_grad():
            return self.get_logits(x[:1]).shape[1]

    def _predicted(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return predicted_classes(self.get_logits(x.to(self.device)))

    def _state(self, path: Path | str | None) -> EvaluationState:
        if path is None or not Path(path).exists():
            return EvaluationState(self.attacks_to_run, path)
        state = EvaluationState.from_disk(path)
        if state.attacks_to_run != set(self.attacks_to_run):
            raise ValueError(
                f"state_path should be of an evaluation with {', '.join(self.attacks_to_run)}, {path} is of one with "
                f"{', '.join(sorted(state.attacks_to_run))}"
            )
        return state

    def _check_model(self, x: Tensor, y: Tensor) -> None:
        """Warns of models for which the version is the wrong one."""
        if not len(x):
            return
        x, y = x.to(self.device), y.to(self.device)
        with torch.no_grad():
            passes = [self.get_logits(x).float() for _ in range(1 if self.version == "rand" else 5)]
        first, *others = passes
        unit = nn.functional.normalize(first, dim=1, eps=1e-10)
        right = int((first.argmax(1) == y).sum())
        for logits in others:
            apart = (nn.functional.normalize(logits, dim=1, eps=1e-10) - unit).norm(dim=1)
            if int((logits.argmax(1) == y).sum()) != right or float(apart.max()) > 1e-4:
                self._warn("it seems to be a randomized defense! Please use version='rand'.")
                break
        in_range = float(first.max()) < 1 + 1e-5 and float(first.min()) > -1e-5
        if in_range and float((first.sum(1) - 1).abs().max()) < 1e-5:
            self._warn(
                "it seems that the output is a probability distribution, please be sure that the logits are used!"
            )
        classes = first.shape[1]
        if classes <= 2 and {"apgd-dlr", "apgd-t"} & set(self.attacks_to_run):
            self._warn(f"with only {classes} classes it is not possible to use the DLR loss!")
        elif classes == 3 and {"apgd-dlr", "apgd-t"} & set(self.attacks_to_run):
            self._warn(f"with only {classes} classes it is not possible to use the targeted DLR loss!")
        elif "apgd-t" in self.attacks_to_run and self.apgd_targeted.n_target_classes + 1 > classes:
            self._warn(
                f"it seems that more target classes ({self.apgd_targeted.n_target_classes}) than possible "
                f"({classes - 1}) are used in APGD-T!"
            )

    def _check_square(self, accuracies: dict[str, float]) -> None:
        others = [value for name, value in accuracies.items() if name != "square"]
        if "square" in accuracies and len(accuracies) > 2 and accuracies["square"] < min(others) - 0.002:
            self._warn(
                "Square Attack has decreased the robust accuracy of more than 0.2 %. This might indicate that the "
                "robustness evaluation using AutoAttack is unreliable. Consider running Square Attack with more "
                "iterations and restarts or an adaptive attack."
            )

    def _warn(self, text: str) -> None:
        warnings.warn(f"{text} See {_CHECKS} for details.", UserWarning, stacklevel=3)
        self._log(f"Warning: {text} See {_CHECKS} for details.")

    def _log(self, line: str) -> None:
        if self.verbose:
            print(line, flush=True)
        if getattr(self, "log_path", None) is not None:
            with open(self.log_path, "a") as file:  # type: ignore[arg-type]
                file.write(f"{line}\n")


def _run(attack: Attack, model: Callable, x: Tensor, y: Tensor, ids: Tensor, room: int) -> AttackResult:
    """An attack on what is left of a batch, which takes as much room as the whole batch had."""
    with undisturbed(attack, model, x.device):
        return attack.part_of(Run(attack, model, x, y, None, ids, room=room))


def _pairs(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))
