"""A summary of a model's folder, without building the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advfeat._arguments import check_path
from advfeat.models.io import how_to_load, read_description, read_weights
from advfeat.models.state import is_extra
from advfeat.models.tensors import from_bytes

_BUFFERS = ("mean", "std", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class SavedModel:
    """A saved model.

    Attributes:
        folder: the folder of the model.
        arch: its name; None for a user's own module.
        module: for a user's own module, its class, where the representation is taken (None in folders of older
            versions) and, if it is a changed network, which one.
        num_classes: number of logits.
        classes: the class names by label; None if unknown.
        input_shape: (C, H, W).
        parameters: the number of weights; tied ones are counted each time.
        dtypes: of the weights.
        fingerprint: see :func:`advfeat.models.fingerprint`.
        training: {"config": ..., "data": ...} of the training; None if unknown.
    """

    folder: Path
    arch: str | None
    module: dict | None
    num_classes: int
    classes: tuple[str, ...] | None
    input_shape: tuple[int, ...]
    parameters: int
    dtypes: tuple[str, ...]
    fingerprint: str | None
    training: dict | None

    def lines(self) -> list[str]:
        """A short description for people.

        Returns:
            The lines.
        """
        name = self.arch
        if name is None and (created := (self.module or {}).get("created")):
            name = f"{created}, changed after it was created"
        elif name is None:
            of_class = f" of class {self.module['class']}" if self.module else ""
            name = f"a module of your own{of_class}"
        shape = " x ".join(map(str, self.input_shape))
        found = [
            f"{name}: {self.parameters:,} parameters ({', '.join(self.dtypes)}), {self.num_classes} classes, "
            f"images {shape}"
        ]
        if self.classes is not None:
            more = f", ... ({len(self.classes)})" if len(self.classes) > 12 else ""
            found.append(f"classes: {', '.join(self.classes[:12])}{more}")
        found.append(f"weights: {self.fingerprint}")
        if self.arch is None:
            found.append(how_to_load(self.folder, self.module))
        return found


def describe(folder: str | Path) -> SavedModel:
    """A summary of the model in a folder; its weights are read and checked against their checksum.

    Args:
        folder: the folder.

    Returns:
        The summary.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: the folder is damaged; the message names the file.
    """
    check_path("folder", folder)
    folder = Path(folder)
    description = read_description(folder)
    tensors = from_bytes(read_weights(folder, description), folder / description["weights"]["file"])
    weights = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _BUFFERS and tensor.is_floating_point() and not is_extra(name)
    }
    training = description["extra"].get("training")
    arguments = description["arguments"] or {}
    return SavedModel(
        folder=folder,
        arch=description["arch"],
        module=description.get("module"),
        num_classes=description.get("num_classes") or arguments["num_classes"],
        classes=None if description.get("classes") is None else tuple(description["classes"]),
        input_shape=tuple(description.get("input_shape") or arguments["input_shape"]),
        parameters=sum(tensor.numel() for tensor in weights.values()),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})),
        fingerprint=description.get("fingerprint"),
        training=training if isinstance(training, dict) else None,
    )
