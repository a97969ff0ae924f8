"""Measurements other than accuracy: transfer of adversarial examples, accuracy by number of attack steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from advfeat.attacks import PGD
from advfeat.experiments.base import DataStage, Measurement
from advfeat.experiments.stages import Trained
from advfeat.forward import output, predicted_classes
from advfeat.models import attack_copy
from advfeat.progress import Progress, Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from advfeat.experiments.workspace import Workspace


@dataclass(frozen=True)
class Transferred(Measurement):
    """How often adversarial examples of one model fool other models (Figures 3 and 13).

    Each image is attacked on ``source`` and classified by each of ``targets``. A targeted attack aims at the class
    after the label. The outcome has, for each target in order and for the source: ``right``, the images classified
    correctly; ``fooled``, those of them whose example is misclassified; ``reached``, those whose example is classified
    as the attack's target.

    Attributes:
        source: Model that is attacked.
        targets: Models that classify the examples.
        data: Images.
        attack: The attack.
        batch_size: Images per batch.
    """

    kind: ClassVar[str] = "transfer"
    doing: ClassVar[str] = "transferring"
    source: Trained
    targets: tuple[Trained, ...]
    data: DataStage
    attack: PGD
    batch_size: int = 500

    def measure(self, workspace: Workspace, report: Progress) -> dict:
        """See :meth:`Measurement.measure`."""
        data = workspace.open(self.data)
        models = [workspace.open(step) for step in (self.source, *self.targets)]
        counts = torch.zeros(len(models), 3, dtype=torch.int64, device="cpu")
        progress = Reporter(report, "transfer", len(data))

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
            for index in torch.arange(len(data), device="cpu").split(self.batch_size):
                x, y = data.images(index).to(workspace.device), data.labels[index].to(workspace.device)
                yield x, (y + 1) % len(data.classes) if self.attack.targeted else y, index.to(workspace.device), y

        copied = attack_copy(models[0], autocast=self.attack.autocast)
        for (x, _, _, y), result in self.attack.over(copied, batches()):
            for row, model in enumerate(models):
                right, said = predictions(model, x) == y, predictions(model, result.x_adv)
                found = (right, right & (said != y), right & (said == (y + 1) % len(data.classes)))
                counts[row] += torch.stack([part.sum() for part in found]).cpu()
            progress.advance(len(x))
        source, *targets = (dict(zip(("right", "fooled", "reached"), row, strict=True)) for row in counts.tolist())
        return {"source": source, "targets": targets, "n": len(data), "attack": self.attack.to_dict()}


@dataclass(frozen=True)
class StepSweep(Measurement):
    """Robust accuracy against the number of attack steps, the best of several step sizes (Figure 8).

    With a fixed step size, a shorter attack is a prefix of a longer one, so the curve follows from the step at which
    each sample first broke. The outcome has ``counts``, the samples still classified correctly after each number of
    steps of every attack; ``alone``, the same for each attack; ``correct``; ``n``.

    Attributes:
        model: Model that is attacked.
        data: Images.
        attacks: One attack per step size, with stop="success" and as many steps as the last of ``steps``.
        steps: Numbers of steps.
        batch_size: Images per batch.
    """

    kind: ClassVar[str] = "sweep"
    doing: ClassVar[str] = "attacking"
    model: Trained
    data: DataStage
    attacks: tuple[PGD, ...]
    steps: tuple[int, ...]
    batch_size: int = 250

    def measure(self, workspace: Workspace, report: Progress) -> dict:
        """See :meth:`Measurement.measure`."""
        model, data = workspace.open(self.model), workspace.open(self.data)
        images, labels = data.images().to(workspace.device), data.labels.to(workspace.device)
        correct = torch.cat([predictions(model, x) for x in images.split(self.batch_size)]) == labels
        ids = correct.nonzero()[:, 0]
        progress = Reporter(report, "sweep", len(ids) * len(self.attacks))
        broken_at = []
        for attack in self.attacks:
            batches = ((images[part], labels[part], part) for part in ids.split(self.batch_size))
            parts = []
            for _, result in attack.over(model, batches):
                if result.first_success is None:
                    raise ValueError("the attacks of a sweep should record the step of a sample's first success")
                parts.append(result.first_success.cpu())
                progress.advance(len(parts[-1]))
            first = torch.cat(parts)
            broken_at.append(torch.where(first < 0, torch.iinfo(torch.int32).max, first))
        alone = [[int((at > k).sum()) for k in self.steps] for at in broken_at]
        together = torch.stack(broken_at).amin(0)
        return {
            "steps": list(self.steps),
            "counts": [int((together > k).sum()) for k in self.steps],
            "alone": alone,
            "correct": int(correct.sum()),
            "n": len(data),
            "attacks": [attack.to_dict() for attack in self.attacks],
        }


def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """Predict classes in eval mode and full precision.

    Args:
        model: The model.
        x: Images [B, C, H, W] in [0, 1].

    Returns:
        int64 [B], -1 for no prediction.
    """
    return predicted_classes(output(model, x))
