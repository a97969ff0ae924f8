"""Clean accuracy, and robust accuracy under each attack."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advfeat import _model_checks
from advfeat._arguments import flag, whole_number
from advfeat.attacks import Attack
from advfeat.datasets.base import read_images
from advfeat.datasets.loader import batch_size_for
from advfeat.datasets.protocol import Data, LabelledImages
from advfeat.datasets.torch_dataset import some_of
from advfeat.evaluation.breakdown import Tally
from advfeat.evaluation.clean import (
    BATCH,
    checked,
    clean_predictions,
    data_fingerprint,
    layers_in_train_mode,
    model_fingerprint,
    selected,
)
from advfeat.evaluation.diagnosis import diagnose as diagnosed
from advfeat.evaluation.given import named_attacks
from advfeat.evaluation.results import AVERAGE, BATCHES, DRAWS, Evaluation, Examples, Robustness
from advfeat.evaluation.resumable import in_turn
from advfeat.evaluation.state import State, open_state
from advfeat.evaluation.under_attack import Judged, attacked_samples, distances, mean
from advfeat.evaluation.verdict import verdict
from advfeat.forward import unwrapped
from advfeat.intervals import Share
from advfeat.models import averaged
from advfeat.progress import Reporter


def evaluate(
    model: nn.Module | Callable,
    source: Data,
    *,
    attacks: Sequence[float | Attack | tuple[str, Attack]] = (),
    norm: str = "l2",
    batch_size: int | None = None,
    limit: int | None = None,
    draws: int = 1,
    same_classes: bool = False,
    diagnose: bool = False,
    transfer: nn.Module | Callable | None = None,
    progress: Any = None,
    state: str | Path | None = None,
    keep_examples: bool = False,
) -> Evaluation:
    """Measure clean accuracy, and robust accuracy under each attack.

    Only correctly classified samples are attacked; a misclassified sample is not robust. Radius 0 gives clean accuracy.
    Results do not depend on the batch size, except for rounding inside the model; if the model's output does depend on
    it, a warning and the result say so. Another warning is given for a model that outputs probabilities, because
    attacks need logits. A logit of -inf excludes a class. A sample whose logits hold NaN, or +inf more than once, has
    no prediction and counts as wrong.

    Args:
        model: Module or function that maps images in [0, 1] to logits [B, classes], or to an output with ``.logits``. A
            binary model may give a single logit, positive for class 1. It runs in eval mode and in its own precision,
            and its state is restored afterwards. Attacks keep images in float64 for a float64 model and otherwise in
            float32; each call of the model casts them to the model's dtype. Convolutions in float32 follow torch's
            settings: on recent GPUs they use TensorFloat-32 unless ``torch.backends.cudnn.allow_tf32`` is False.
        source: Data set of this package, or an object with the same attributes
            (:class:`advfeat.datasets.LabelledImages`), or a ``torch.utils.data`` dataset of (image, label); the class
            names are its ``classes`` if it has them, else the model's. A ``DataLoader`` stands for its dataset, in the
            dataset's order, and sets the batch size; a sampler or collate_fn that changes the dataset is refused.
        attacks: Radii in pixel scale (each stands for :func:`strong_attack` with ``norm``), attacks, or pairs of a name
            and an attack.
        norm: Norm for bare radii.
        batch_size: Images per batch; None takes that of a DataLoader, else 500.
        limit: Number of samples, evenly spaced over the data set (the first ones of a folder would all be of one
            class); None takes all.
        draws: For a model that is random in eval mode, the number of passes to average: predictions and the gradients
            of attacks are those of the mean logits (:func:`advfeat.models.averaged`). Randomness is detected from two
            passes over the first images and reported in a warning and in the result.
        same_classes: Match classes by index instead of by name, for a model that names its classes.
        diagnose: Look for masked gradients: Square and a longer attack on the survivors, the same attack with another
            seed, probes of the gradient and of the logits, and an attack at a radius where every model has to fail.
            Each check takes at most 64 samples, for each norm at the largest radius at which samples survive. The cost
            is up to 40,000 forward and 60,000 backward passes of one sample, and the attack itself once more on 64
            samples.
        transfer: Another model for the same data, whose adversarial examples are tried on the survivors.
        progress: Counts samples, see :class:`advfeat.progress.Reporter`.
        state: Folder in which the attacks save what they have found, so that the same call resumes after the process
            was killed, also with another batch size. It takes as much disk space as the images that are broken. With
            it, each attack of an ensemble runs on all samples before the next one starts, and all examples are held in
            memory. None saves nothing.
        keep_examples: Return the adversarial examples, too: as much memory as the data set for each attack.

    Returns:
        The results: ``clean``, the clean accuracy; ``robustness``, one per attack, in order; per-sample tensors;
        ``verdict``, what speaks against these numbers.

    Raises:
        ValueError: If the model does not fit the data or has other classes, an attack is targeted, labels are out of
            range, images are outside [0, 1], or two attacks have the same name; if ``state`` belongs to another
            evaluation, or cannot be checked because the model or the data set has no fingerprint.
        TypeError: If an argument is not a model, data set or list of attacks.
        RuntimeError: If an attack leaves its ball.
    """
    limit = None if limit is None else whole_number("limit", limit)
    batch_size = batch_size_for(source, batch_size, BATCH)
    keep_examples = flag("keep_examples", keep_examples)
    source, positions = some_of(source, limit)
    model, source, same_classes = checked(model, source, same_classes)
    asked = averaged(model, draws)
    named = named_attacks(attacks, norm)
    diagnose = flag("diagnose", diagnose)
    if transfer is not None:
        _model_checks.check_model(transfer)
        transfer = unwrapped(transfer)
    train_mode = layers_in_train_mode(model)
    index = selected(model, source, limit, same_classes)
    n = len(index)
    report = Reporter(progress, "evaluate", n * (1 + len(named)))
    prediction, margins, answers = clean_predictions(model, source, index, batch_size, report, asked)
    correct = prediction == source.labels[index]
    deterministic = answers.deterministic
    if not deterministic and draws == 1:
        _model_checks.warn_of_randomness(f"{DRAWS}; {AVERAGE}", 2)
    if answers.depend_on_batch:
        _model_checks.warn_of_batches(BATCHES, 2)
    if answers.probabilities:
        _model_checks.warn_of_probabilities(2)
    judged = Judged(asked, len(source.classes), deterministic)
    rows = correct.nonzero()[:, 0]

    alone: dict[str, Tensor] = {}
    seen: dict[str, dict] = {}
    tallies: dict[str, Tally] = {}
    with _state(state, model, source, index, named, int(draws)) as kept:
        for name, attack in named:
            report.advance(n - len(rows))
            tallies[name], seen[name] = attacked_samples(
                judged, source, attack, index[rows], batch_size, report, state=kept, name=name, keep=keep_examples
            )
            alone[name] = correct.clone()
            alone[name][rows[tallies[name].broken_by >= 0]] = False
    robust = {
        name: _without(alone[name], [alone[other] for other, smaller in named if _inside(smaller, attack)])
        for name, attack in named
    }
    found = Evaluation(
        data=getattr(source, "name", "data"),
        clean=Share(int(correct.sum()), n),
        margin=mean(margins),
        robustness=[
            Robustness(
                name=name,
                eps=float(attack.threat.eps),
                attack=attack.to_dict(),
                accuracy=Share(int(robust[name].sum()), n),
                found_alone=Share(int(alone[name].sum()), n),
                carried=int((alone[name] & ~robust[name]).sum()),
                attacked=len(rows),
                breakdown=tallies[name].after_each(n),
                **seen[name],
            )
            for name, attack in named
        ],
        nonfinite_logits=int((prediction < 0).sum()),
        deterministic=deterministic,
        depends_on_batch=answers.depend_on_batch,
        draws=int(draws),
        model_fingerprint=model_fingerprint(model),
        data_fingerprint=data_fingerprint(source, index),
        index=index if positions is None else positions[index],
        labels=source.labels[index],
        prediction=prediction,
        correct=correct,
        margins=margins,
        robust=robust,
        broken_by={
            name: index.new_full((n,), -1).index_copy(0, rows, tally.broken_by) for name, tally in tallies.items()
        },
        examples=_examples(source, index, rows, named, tallies, alone, robust) if keep_examples else {},
    )
    _warn_of_unattacked(found)
    more = None
    if diagnose or transfer is not None:
        more = diagnosed(
            judged,
            source,
            named,
            index,
            correct,
            robust,
            probe=diagnose,
            continuous=deterministic and not answers.depend_on_batch,
            transfer=transfer,
        )
    judgement = verdict(found, probabilities=answers.probabilities, train_mode=train_mode, diagnosis=more)
    return dataclasses.replace(found, verdict=judgement)


def accuracy(
    model: nn.Module | Callable,
    source: Data,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    same_classes: bool = False,
) -> Share:
    """Measure clean accuracy alone.

    Args:
        model: See :func:`evaluate`.
        source: See :func:`evaluate`.
        batch_size: See :func:`evaluate`.
        limit: See :func:`evaluate`.
        same_classes: See :func:`evaluate`.

    Returns:
        The clean accuracy.

    Raises:
        ValueError: As :func:`evaluate`.
        TypeError: As :func:`evaluate`.
    """
    return evaluate(model, source, batch_size=batch_size, limit=limit, same_classes=same_classes).clean


def _warn_of_unattacked(found: Evaluation) -> None:
    for r in found.robustness:
        if r.unattacked:
            warnings.warn(f"{r.name}: {r.unattacked}", RuntimeWarning, stacklevel=3)


def _examples(
    source: LabelledImages,
    index: Tensor,
    rows: Tensor,
    named: list[tuple[str, Attack]],
    tallies: dict[str, Tally],
    alone: dict[str, Tensor],
    robust: dict[str, Tensor],
) -> dict[str, Examples]:
    """Put the examples of all samples together: also those that a smaller radius broke, and images that were wrong."""
    images = read_images(source, index)
    found: dict[str, Examples] = {}
    for name, attack in sorted(named, key=lambda pair: float(pair[1].threat.eps)):  # so that smaller radii come first
        kept = tallies[name].examples
        x_adv = images.to(images.dtype if kept is None else kept.dtype, copy=True)
        if kept is not None:
            x_adv[rows] = kept
        for other, smaller in named:
            if _inside(smaller, attack):
                carried = alone[name] & ~robust[name] & ~robust[other]
                x_adv[carried] = found[other].images[carried].to(x_adv.dtype)
        pairs = zip(x_adv.split(BATCH), images.split(BATCH), strict=True)
        found[name] = Examples(x_adv, torch.cat([distances(attack, *pair).float() for pair in pairs]))
    return {name: found[name] for name, _ in named}


def _state(
    folder: str | Path | None,
    model: Callable,
    source: LabelledImages,
    index: Tensor,
    named: list[tuple[str, Attack]],
    draws: int,
) -> contextlib.AbstractContextManager[State | None]:
    """Open the state of an evaluation, if there is to be one."""
    if folder is None:
        return contextlib.nullcontext()
    prints = {"model_fingerprint": model_fingerprint(model), "data_fingerprint": data_fingerprint(source, index)}
    for name, value in prints.items():
        if value is None:
            raise ValueError(
                f"state should be None where the {name.partition('_')[0]} has no fingerprint, got {str(folder)!r}: "
                "a later call could not tell whether it is the same"
            )
    attacks = {
        name: {"settings": attack.to_dict(), "in turn": [single.to_dict() for _, single in in_turn(attack)]}
        for name, attack in named
    }
    return open_state(folder, {"format": 1, **prints, "draws": draws, "attacks": attacks})


def _inside(smaller: Attack, larger: Attack) -> bool:
    """Return whether the ball and box of one attack lie inside those of the other, at a smaller radius."""
    a, b = smaller.threat.to_dict(), larger.threat.to_dict()
    same = all(a.get(key) == b.get(key) for key in ("norm", "lo", "hi", "unit"))
    return same and float(smaller.threat.eps) < float(larger.threat.eps)


def _without(robust: Tensor, others: list[Tensor]) -> Tensor:
    for other in others:
        robust = robust & other
    return robust
