"""The file of adversarial inputs that torchattacks' ``save`` writes and its ``load`` reads, in either direction."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from advfeat._arguments import check_path, numbers, whole_number
from advfeat.files import write_bytes

_IMAGES = ("adv_inputs", "clean_inputs")
TYPES = ("float", "int")


def as_type(images: Tensor, kind: str) -> Tensor:
    """Images in pixel scale as "float", or as "int": uint8, 255 times as large.

    Rounded to nearest (torchattacks cuts off): no value moves by more than half a level, and none leaves an L-inf ball
    of whole levels around an image of whole levels.
    """
    if kind == "int":
        return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def check_type(name: str, kind: object) -> None:
    """Raises ValueError for another type of images."""
    if kind not in TYPES:
        raise ValueError(f"{name} should be one of {', '.join(TYPES)}, got {kind!r}")


def by_channel(mean: object, std: object) -> dict[str, Tensor]:
    """A mean and a standard deviation a channel, float32 [1, C, 1, 1] each. Errors: TypeError for what are no lists of
    numbers, ValueError for lists of different lengths and for a std that is not above 0."""
    values = {"mean": numbers("mean", mean), "std": numbers("std", std)}
    if len(values["mean"]) != len(values["std"]):
        raise ValueError(
            f"mean and std should have one value a channel, got {len(values['mean'])} and {len(values['std'])}"
        )
    if not min(values["std"], default=0) > 0:
        raise ValueError(f"std should be above 0 in every channel, got {std!r}")
    return {name: torch.tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1) for name, value in values.items()}


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
    check_path("load_path", load_path)
    batch_size = whole_number("batch_size", batch_size)
    if normalize is not None and not (isinstance(normalize, dict) and {"mean", "std"} <= normalize.keys()):
        raise TypeError(f"normalize should be a dict with mean and std, got {normalize!r}")
    try:
        content = torch.load(load_path, weights_only=True, map_location="cpu")
    except (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{load_path} should be a file that save wrote: {error!r}") from error
    keys = ["adv_inputs", "labels"] + ["preds"] * load_predictions + ["clean_inputs"] * load_clean_inputs
    if not isinstance(content, dict) or content.get("save_type") not in TYPES:
        raise ValueError(f"{load_path} should be a file that save wrote")
    lacking = [key for key in keys if not isinstance(content.get(key), Tensor)]
    if lacking:
        options = {"preds": " (save with save_predictions=True)", "clean_inputs": " (save with save_clean_inputs=True)"}
        raise ValueError(f"{load_path} holds no {lacking[0]}{options.get(lacking[0], '')}")
    tensors = {key: as_type(content[key], "float") if key in _IMAGES else content[key] for key in keys}
    if normalize is not None:
        mean, std = by_channel(normalize["mean"], normalize["std"]).values()
        channels = tensors["adv_inputs"].shape[1]
        if mean.shape[1] not in (1, channels):
            raise ValueError(f"normalize should have one value for each of {channels} channels, got {mean.shape[1]}")
        tensors |= {key: (tensors[key] - mean) / std for key in keys if key in _IMAGES}
    return DataLoader(TensorDataset(*tensors.values()), batch_size=batch_size, shuffle=shuffle)
