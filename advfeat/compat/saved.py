"""The file of adversarial inputs that torchattacks' ``save`` writes and its ``load`` reads, in either direction."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from advfeat.files import write_bytes

_IMAGES = ("adv_inputs", "clean_inputs")
TYPES = ("float", "int")


def as_type(images: Tensor, kind: str) -> Tensor:
    """Images in pixel scale as "float", or as "int": uint8, 255 times as large.

    Rounded to nearest (torchattacks cuts off): no value moves by more than half a level, and none leaves an L-inf ball
    of whole levels around an image of whole levels.
    """
    if kind not in TYPES:
        raise ValueError(f"type should be one of {', '.join(TYPES)}, got {kind!r}")
    if kind == "int":
        return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def write(path: str | Path, tensors: dict[str, Tensor], kind: str) -> None:
    """Writes the file whole or not at all. tensors: ``adv_inputs`` and ``labels``, perhaps ``preds`` and
    ``clean_inputs``, images in pixel scale. kind: what images are stored as, "float" or "int"."""
    content: dict = {name: as_type(t, kind) if name in _IMAGES else t for name, t in tensors.items()}
    buffer = io.BytesIO()
    torch.save(content | {"save_type": kind}, buffer)
    write_bytes(path, buffer.getvalue())


def load(
    load_path: str | Path,
    batch_size: int = 128,
    shuffle: bool = False,
    normalize: dict | None = None,
    load_predictions: bool = False,
    load_clean_inputs: bool = False,
) -> DataLoader:
    """``torchattacks``' ``load``: a loader of (adversarial inputs, labels[, predictions][, clean inputs]), float32.

    normalize: ``{"mean": [C], "std": [C]}`` for images that come out normalised. Nothing in the file is run.
    Errors: ValueError for a file that holds something else, or lacks what is asked for.
    """
    content = torch.load(load_path, weights_only=True, map_location="cpu")
    keys = ["adv_inputs", "labels"] + ["preds"] * load_predictions + ["clean_inputs"] * load_clean_inputs
    if not isinstance(content, dict) or content.get("save_type") not in TYPES:
        raise ValueError(f"{load_path} should be a file that save wrote")
    lacking = [key for key in keys if not isinstance(content.get(key), Tensor)]
    if lacking:
        options = {"preds": " (save with save_predictions=True)", "clean_inputs": " (save with save_clean_inputs=True)"}
        raise ValueError(f"{load_path} holds no {lacking[0]}{options.get(lacking[0], '')}")
    tensors = {key: as_type(content[key], "float") if key in _IMAGES else content[key] for key in keys}
    if normalize is not None:
        mean, std = (torch.as_tensor(normalize[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        tensors |= {key: (tensors[key] - mean) / std for key in keys if key in _IMAGES}
    return DataLoader(TensorDataset(*tensors.values()), batch_size=batch_size, shuffle=shuffle)
