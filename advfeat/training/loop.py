"""Training of a classifier on a data set: standard, or adversarial with an attack of this library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advfeat import _arguments
from advfeat._arguments import check_path, flag
from advfeat._checks import check_pair, from_environment
from advfeat._model_checks import check_module
from advfeat.attacks.pgd import InLockstep
from advfeat.datasets.loader import batch_size_for
from advfeat.datasets.protocol import Data, Identified, LabelledImages
from advfeat.datasets.torch_dataset import as_source
from advfeat.eval_mode import trained_here
from advfeat.evaluation import evaluate
from advfeat.files import check_writable_folder
from advfeat.forward import class_logits, logits_of, taken_by
from advfeat.models import Model, check_fits, create, fingerprint, load, save
from advfeat.models.memory import lay_out
from advfeat.progress import Reporter
from advfeat.provenance import provenance
from advfeat.random import derive_seed
from advfeat.settings import as_json
from advfeat.training.augment import Augmentation, check_label_safe
from advfeat.training.batches import Batches, channel_statistics
from advfeat.training.checkpoint import RunFolder
from advfeat.training.config import TrainConfig
from advfeat.training.schedules import learning_rate

# How often, in steps, the loss is checked. On the CPU this is free; elsewhere it synchronises with the device.
_LOOK_EVERY = {"cpu": 1}
_LOOK_EVERY_ELSEWHERE = 50
_TEST_BATCH = 500  # batch size of tests, unless a DataLoader sets it


@dataclass(frozen=True)
class TrainResult:
    """A trained model in eval mode, and its metrics.

    Attributes:
        model: The model.
        history: One dict per epoch: ``epoch`` (from 1), ``lr`` (of its last step), ``train_loss`` and
            ``train_accuracy`` (on the batches as trained on: augmented, adversarial, in train mode), ``test_accuracy``
            and ``robust_accuracy`` (None if not measured), ``seconds``.
        config: The settings, with mean and std filled in.
        out: The run folder, or None.
    """

    model: Model
    history: list[dict]
    config: TrainConfig
    out: Path | None = None


def train(
    config: TrainConfig,
    train_source: Data,
    test_source: Data | None = None,
    out: str | Path | None = None,
    *,
    model: Model | None = None,
    resume: bool = True,
    same_classes: bool = False,
    device: torch.device | str | None = None,
    progress: Any = None,
) -> TrainResult:
    """Train a classifier by SGD on the cross-entropy, on images or on their adversarial examples.

    With ``out`` and ``resume``, an interrupted run resumes at its last checkpoint and ends with the same weights as an
    uninterrupted one (bit for bit on the CPU with the same number of threads); a finished run is loaded. Training
    runs in one process. Any other process with the same folder, such as the further ranks of ``torchrun``, waits with a
    warning that names the first, then loads its result, or resumes the training if the first was killed.

    Arguments and data are checked before anything is written.

    Args:
        config: Settings of the training.
        train_source: Data set of this package, or an object with the same attributes
            (:class:`advfeat.datasets.LabelledImages`) and a ``fingerprint``, or a ``torch.utils.data`` dataset of
            (image, label), which is read as it is and must not have random transforms. A ``DataLoader`` stands for its
            dataset: the order is drawn by ``config.seed``, the loader's batch size must equal ``config.batch_size``,
            and a sampler or collate_fn that changes the dataset is refused.
        test_source: Data set for tests, of the same kinds; a ``DataLoader`` also sets the batch size of tests.
        out: Run folder, see :mod:`advfeat.training.checkpoint`; None saves nothing.
        model: Model to train instead of a new one. Its weights change, and ``arch`` and ``width`` are ignored. With
            ``out`` it must come from :func:`advfeat.models.create` or ``adapt``. A model with a single logit learns two
            classes.
        resume: Resume or load the run in ``out``; a run with other settings is refused. False replaces it.
        same_classes: Match the classes of the two data sets and ``model`` by index instead of by name. The trained
            model's ``classes`` are those of the training data.
        device: Device to train on; None takes CUDA if it is available.
        progress: Counts steps, see :class:`advfeat.progress.Reporter`.

    Returns:
        The trained model and its metrics.

    Raises:
        TypeError: Naming an argument of the wrong type.
        ValueError: For labels out of range, images outside [0, 1], a test set or model with other classes or another
            shape, flips of digits, a device that does not exist, or a folder with another run.
        FloatingPointError: Naming epoch and step, if the loss is not finite.
        RuntimeError: If another thread uses the model.
        OSError: Naming the file, if the disk is full (the last checkpoint remains), the folder cannot be written, or
            another process trains in it and ``resume`` is false.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config should be an advfeat.training.TrainConfig, got {type(config).__name__}")
    resume, same_classes = flag("resume", resume), flag("same_classes", same_classes)
    device = _arguments.device("device", device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if out is not None:
        check_path("out", out)
    if model is not None:
        check_module(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("model should have parameters to train, got none that requires a gradient")
        if out is not None and not isinstance(model, Model):  # fail now rather than on saving
            raise TypeError(
                f"model should come from advfeat.models.create or adapt if it is to be saved in out, got "
                f"{type(model).__name__}"
            )
    if (of_loader := batch_size_for(train_source, None, config.batch_size)) != config.batch_size:
        raise ValueError(
            f"config.batch_size should be that of the DataLoader that train_source is, {of_loader}, got "
            f"{config.batch_size}: set it, or give the loader's dataset, loader.dataset"
        )
    test_batch = batch_size_for(test_source, None, _TEST_BATCH)
    # What has no fingerprint says so itself, once it is asked for it.
    train_source = cast(Identified, as_source(train_source, model, "train_source"))
    if test_source is not None:
        test_source = cast(Identified, as_source(test_source, train_source, "test_source"))
    check_pair(train_source, test_source, same_classes)
    check_label_safe(config.augment, f"data set {train_source.name!r}", train_source.classes, config.allow_flip)
    config = _with_statistics(config, train_source)
    shape, classes = tuple(train_source.image_shape), len(train_source.classes)
    description = {
        "config": config.to_dict(),
        "data": {"train": _describe(train_source), "test": test_source and _describe(test_source)},
    }
    if classes < 2:
        raise ValueError(
            f"data set {train_source.name!r} should have two classes or more to tell apart, got "
            f"{', '.join(map(repr, train_source.classes)) or 'none'}"
        )
    if model is None:
        model = create(
            config.arch, classes, shape, mean=config.mean, std=config.std, width=config.width, seed=config.seed
        )
    else:
        check_fits(model, train_source.classes, shape, f"data set {train_source.name!r}", same_classes)
        # Identifies the initial weights, so that a run resumes only from the same ones.
        description["config"]["initial_weights"] = fingerprint(model)
    if isinstance(model, Model):
        model.classes = train_source.classes
    if out is None:
        with _own_random_state(device):
            history = _Loop(config, model, train_source, test_source, device, test_batch).run(None, progress)
        _note(model, description)
        return TrainResult(model.eval(), history, config)

    folder = RunFolder(out)

    def finished() -> TrainResult:
        trained = load(folder.path, model)  # the caller's own, where there is one
        return TrainResult(trained.to(device), folder.history(), config, folder.path)

    if resume:
        folder.check(description)
        if folder.is_finished() and folder.is_tidy():
            return finished()
    elif (processes := from_environment("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"resume=False (--restart) needs a single process, got {processes} of torchrun's")
    check_writable_folder(folder.path)
    with folder.alone(resume), _own_random_state(device):
        if resume:
            folder.check(description)  # another process may have started a run meanwhile
            if folder.is_finished():
                folder.tidy()
                return finished()
        loop = _Loop(config, model, train_source, test_source, device, test_batch)
        folder.begin({**description, **provenance(device)}, resume)  # only after the data has been checked
        history = loop.run(folder, progress)
        _note(model.eval(), description)
        save(model, folder.path, extra={"training": description, "metrics": history[-1]})
        folder.finish(history)
    return TrainResult(model, history, config, folder.path)


def _note(model: nn.Module, description: dict) -> None:
    """Record the training in the model, so that building a data set with a model of another training is noticed."""
    if isinstance(model, Model):
        model.trained_with = {key: as_json(value) for key, value in description.items()}


class _Loop:
    """The epochs of one training."""

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        train_source: LabelledImages,
        test_source: LabelledImages | None,
        device: torch.device,
        test_batch: int,
    ) -> None:
        self.config, self.test_source, self.device, self.test_batch = config, test_source, device, test_batch
        self.classes = len(train_source.classes)
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(device)
        lay_out(self.model, memory_format)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        augmentation = Augmentation(config.augment, train_source.image_shape[1:], len(train_source), config.seed)
        self.batches = Batches(train_source, config.batch_size, config.seed, augmentation, device, config.channels_last)

    def run(self, folder: RunFolder | None, progress: Any) -> list[dict]:
        with trained_here(self.model):
            return self._epochs(folder, progress)

    def _epochs(self, folder: RunFolder | None, progress: Any) -> list[dict]:
        config, steps = self.config, self.batches.steps
        history = folder.restore(self.model, self.optimizer) if folder is not None else []
        report = Reporter(progress, "train", steps * config.epochs, steps * len(history))
        while len(history) < config.epochs:
            began, epoch, last = time.monotonic(), len(history), len(history) + 1 == config.epochs
            row = self._epoch(epoch, report)
            row |= self._test() if last or (config.eval_every and (epoch + 1) % config.eval_every == 0) else _UNTESTED
            row["seconds"] = round(time.monotonic() - began, 3)
            history.append(row)
            if folder is not None:
                folder.append(row)
                if last or (config.checkpoint_every and (epoch + 1) % config.checkpoint_every == 0):
                    folder.save(self.model, self.optimizer, history)
        return history

    def _epoch(self, epoch: int, report: Reporter) -> dict:
        config, steps = self.config, self.batches.steps
        look_every = _LOOK_EVERY.get(self.device.type, _LOOK_EVERY_ELSEWHERE)
        examples = _examples_of_epoch(config, epoch, self.model)
        # For dropout and the like in a user's model: the stream of an epoch is the same in a resumed run.
        _seed_device(derive_seed(config.seed, "model", epoch), self.device)
        losses = torch.zeros(steps, dtype=torch.float32, device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        samples, rate, note, unseen = 0, 0.0, f"epoch {epoch + 1}/{config.epochs}", 0
        self.model.train()
        for step, (x, y, ids) in enumerate(self.batches.epoch(epoch)):
            rate = learning_rate(
                config.schedule,
                config.lr,
                epoch * steps + step,
                steps,
                config.epochs,
                milestones=config.milestones,
                gamma=config.gamma,
                peak=config.peak,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, right = self._step(x if examples is None else examples(x, y, ids), y)
            losses[step] = loss * len(y)
            hits += right
            samples += len(y)
            if (step + 1) % look_every == 0 or step + 1 == steps:
                _check_finite(losses[unseen : step + 1], epoch, unseen)
                unseen = step + 1
            report.advance(1, note)
        return {
            "epoch": epoch + 1,
            "lr": rate,
            "train_loss": float(losses.double().sum()) / samples,
            "train_accuracy": int(hits) / samples,
        }

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        with _autocast(config, self.device):
            logits = logits_of(taken_by(self.model, x)).float()
        logits = class_logits(logits[:, None] if logits.dim() == 1 else logits)
        if logits.shape[1] != self.classes:
            raise ValueError(f"the model should give {self.classes} logits, one per class, got {logits.shape[1]}")
        loss = F.cross_entropy(logits, y, label_smoothing=config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(dim=1) == y).sum()

    def _test(self) -> dict:
        if self.test_source is None:
            return dict(_UNTESTED)
        config, batch_size = self.config, self.test_batch
        # The classes were checked before.
        clean = evaluate(self.model, self.test_source, batch_size=batch_size, same_classes=True).clean.value
        robust = None
        if config.eval_attack is not None:
            attacked = evaluate(
                self.model,
                self.test_source,
                attacks=[("attack", config.eval_attack)],
                batch_size=batch_size,
                limit=config.eval_limit,
                same_classes=True,
            )
            robust = attacked.robustness[0].accuracy.value
        return {"test_accuracy": clean, "robust_accuracy": robust}


_UNTESTED = {"test_accuracy": None, "robust_accuracy": None}


def _with_statistics(config: TrainConfig, source: LabelledImages) -> TrainConfig:
    if config.mean is not None and config.std is not None:
        return config
    mean, std = channel_statistics(source)
    return config.replace(
        mean=mean if config.mean is None else config.mean, std=std if config.std is None else config.std
    )


def _examples_of_epoch(
    config: TrainConfig, epoch: int, model: Model
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The adversarial examples of (images, labels, sample ids) to train on in this epoch; None for the images."""
    attack = config.attack
    if attack is None:
        return None
    if config.amp == "bf16" and attack.autocast is None:
        attack = attack.replace(autocast=torch.bfloat16)
    if attack.random_start:  # otherwise a sample would have the same start in every epoch
        attack = attack.replace(seed=derive_seed(config.seed, "attack", attack.seed or 0, epoch))
    if attack.runs_in_pool:
        return lambda x, y, ids: attack(model, x, y, sample_ids=ids)
    in_lockstep = InLockstep(attack, model, statistics=False)
    return lambda x, y, ids: in_lockstep(x, y, ids).x_adv


def _autocast(config: TrainConfig, device: torch.device):
    return torch.autocast(device.type, dtype=torch.bfloat16) if config.amp == "bf16" else nullcontext()


def _check_finite(losses: Tensor, epoch: int, first: int) -> None:
    wrong = (~losses.isfinite()).nonzero()
    if len(wrong):
        step = first + int(wrong[0])
        raise FloatingPointError(
            f"the loss is not finite in epoch {epoch + 1}, step {step + 1}: {float(losses[int(wrong[0])])}. "
            "A lower learning rate (lr) or a check of the data may help"
        )


def _describe(source: Identified) -> dict:
    return {
        "name": source.name,
        "samples": len(source),
        "image_shape": list(source.image_shape),
        "classes": list(source.classes),
        "fingerprint": source.fingerprint,
    }


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Restore the global random state of the CPU and this device afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _seed_device(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
