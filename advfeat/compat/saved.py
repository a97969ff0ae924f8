"""The file of adversarial inputs that torchattacks' ``save`` writes and its ``load`` reads, for exchange both ways."""

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
    """Images in pixel scale in the type in which they are stored.

    "int" rounds to nearest (torchattacks truncates): no value moves by more than half a level, and none leaves an L-inf
    ball of a whole number of levels around an image of whole levels.

    Args:
        images: in [0, 1].
        kind: "float", or "int" for uint8, 255 times as large.

    Returns:
        The images.
    """
    if kind == "int":
        return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def check_type(name: str, kind: object) -> None:
    """Checks the type of stored images.

    Args:
        name: the name of the argument.
        kind: "float" or "int".

    Raises:
        ValueError: ``kind`` is neither.
    """
    if kind not in TYPES:
        raise ValueError(f"{name} should be one of {', '.join(TYPES)}, got {kind!r}")


def by_channel(mean: object, std: object) -> dict[str, Tensor]:
    """A mean and a standard deviation per channel as tensors.

    Args:
        mean: a list of C numbers.
        std: a list of C numbers, positive.

    Returns:
        {"mean": ..., "std": ...}, float32 [1, C, 1, 1] each.

    Raises:
        TypeError: they are not lists of numbers.
        ValueError: their lengths differ, or ``std`` is not above 0.
    """
    values = {"mean": numbers("mean", mean), "std": numbers("std", std)}
    if len(values["mean"]) != len(values["std"]):
        raise ValueError(
            f"mean and std should have one value per channel, got {len(values['mean'])} and {len(values['std'])}"
        )
    if not min(values["std"], default=0) > 0:
        raise ValueError(f"std should be above 0 in every channel, got {std!r}")
    return {name: torch.tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1) for name, value in values.items()}


def write(path: str | Path, tensors: dict[str, Tensor], kind: str) -> None:
    """Writes the file atomically.

    Args:
        path: the file.
        tensors: ``adv_inputs`` and ``labels``, optionally ``preds`` and ``clean_inputs``; images in pixel scale.
        kind: the type in which images are stored, "float" or "int".
    """
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
    """A loader of (adversarial inputs, labels[, predictions][, clean inputs]) in float32, as torchattacks' ``load``.

    Nothing in the file is executed.

    Args:
        load_path: the file that ``save`` wrote.
        batch_size: samples per batch.
        shuffle: whether to shuffle.
        normalize: ``{"mean": [C], "std": [C]}`` to get normalised images; None for pixel scale [0, 1].
        load_predictions: whether to load the predictions.
        load_clean_inputs: whether to load the clean inputs.

    Returns:
        The loader.

    Raises:
        TypeError: ``normalize`` is not such a dict.
        ValueError: the file holds something else, or lacks what is requested.
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
