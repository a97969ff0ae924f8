"""Construction of samples: applies a recipe to images of a source and returns the tensors that a shard stores."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advfeat._read_ahead import read_ahead
from advfeat.attacks import PGD, AttackResult
from advfeat.attacks.no_trace import no_trace
from advfeat.datasets.base import read_images, to_float
from advfeat.datasets.protocol import LabelledImages
from advfeat.datasets.recipes import MatchRepresentation, Recipe, noise_start, start_indices
from advfeat.datasets.rounding import quantise
from advfeat.forward import output, predicted_classes, taken_by


@dataclass(frozen=True)
class Construction:
    """Applies a recipe to given samples of a source.

    A thread prefetches the images, into pinned memory if the device is a GPU.

    Attributes:
        recipe: The recipe.
        attack: Its attack.
        model: The attack copy of the source model, on ``device``.
        source: The original data set.
        seed: Seed of targets and starts.
        batch_size: Images attacked at once.
        dtype: Storage type of the images.
        device: The device of the attack.
    """

    recipe: Recipe
    attack: PGD
    model: nn.Module
    source: LabelledImages
    seed: int
    batch_size: int
    dtype: str
    device: torch.device

    def samples(self, batches_of_ids: Sequence[Tensor]) -> Generator[dict[str, Tensor], None, None]:
        """Yields, for each batch of positions (int64 [B]), the tensors that ``SetWriter.write`` takes."""

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor, _Batch]]:
            for batch in reading:
                batch.to(self.device)
                yield batch.centre, self._target(batch), batch.index.to(self.device), batch

        with contextlib.closing(read_ahead(self._read, batches_of_ids)) as reading:
            for (*_, batch), result in self.attack.over(self.model, batches()):
                yield self._finished(batch, result)

    def _read(self, index: Tensor) -> _Batch:
        """The images of a batch; runs in the prefetching thread."""
        images, labels = read_images(self.source, index), self.source.labels[index]
        if not isinstance(self.recipe, MatchRepresentation):
            stored = self.recipe.targets(labels, len(self.source.classes), self.seed, index)
            batch = _Batch(index, labels, stored, torch.full_like(index, -1), images, None)
        elif self.recipe.start == "noise":
            batch = _Batch(
                index, labels, labels, torch.full_like(index, -1), noise_start(images, self.seed, index), images
            )
        else:
            start = start_indices(len(self.source), self.seed, index)
            batch = _Batch(index, labels, labels, start, read_images(self.source, start), images)
        if self.device.type == "cuda":
            batch.pin()
        return batch

    def _target(self, batch: _Batch) -> Tensor:
        if batch.matched is None:
            return batch.stored_labels.to(self.device)
        representation = self.model.representation
        if not callable(representation):
            raise TypeError(f"model.representation should be a method, got {type(representation).__name__}")
        with no_trace(self.model, self.device), torch.no_grad():
            found = taken_by(self.model, batch.matched, representation)
            if not isinstance(found, Tensor):
                raise TypeError(f"model.representation should give a tensor, got {type(found).__name__}")
            features = found.float().reshape(len(batch.index), -1)
        batch.matched = None
        wrong = (~features.isfinite().all(dim=1)).nonzero()
        if len(wrong):
            raise ValueError(
                f"the model's representation should be finite, that of sample {int(batch.index[int(wrong[0])])} of "
                f"{self.source.name!r} holds NaN or infinity ({len(wrong)} of {len(features)} in its batch)"
            )
        batch.target = features
        return features

    def _finished(self, batch: _Batch, result: AttackResult) -> dict[str, Tensor]:
        stored = quantise(result.x_adv.cpu(), batch.centre.cpu(), self.attack.threat, self.dtype)
        if self.dtype != "float32":
            # Rounding can undo an attack, so success, objective and distance are measured on the stored image.
            target = batch.stored_labels.to(self.device) if batch.target is None else batch.target
            measurement = self.attack.replace(steps=0, stop=None)
            result = measurement.run(self.model, batch.centre, target, start=to_float(stored).to(self.device))
        success = result.success if batch.target is None and self.attack.targeted else None
        if success is not None and self.attack.autocast is None:
            predicts_label = success.cpu()  # measured on this image already
        else:
            with no_trace(self.model, self.device), torch.no_grad():
                predicts_label = predicted_classes(output(self.model, result.x_adv)).cpu() == batch.stored_labels
        return {
            "images": stored,
            "label": batch.stored_labels,
            "original_label": batch.labels,
            "source_index": batch.index,
            "start_index": batch.start_index,
            "target_success": predicts_label,
            "objective": result.value.float().cpu(),
            "distance": result.distance.float().cpu(),
        }


@dataclass
class _Batch:
    """Labels and images of a batch: ``centre`` is perturbed; ``matched`` gives the representation to match, if any."""

    index: Tensor
    labels: Tensor
    stored_labels: Tensor
    start_index: Tensor
    centre: Tensor
    matched: Tensor | None
    target: Tensor | None = None

    def pin(self) -> None:
        self.centre = self.centre.pin_memory()
        self.matched = None if self.matched is None else self.matched.pin_memory()

    def to(self, device: torch.device) -> None:
        self.centre = self.centre.to(device, non_blocking=True)
        self.matched = None if self.matched is None else self.matched.to(device, non_blocking=True)
