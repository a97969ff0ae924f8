"""Carries out a recipe: an attack over a whole data set, written shard by shard into a folder that can be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from advfeat.attacks.no_trace import logits_of, no_trace
from advfeat.datasets.base import Source, to_float
from advfeat.datasets.recipes import MatchRepresentation, Recipe, noise_start, start_indices
from advfeat.datasets.store import ConstructedSet, SetWriter, quantise
from advfeat.models import check_fits, fingerprint, folded

Progress = Callable[[int, int], None]

# Seconds that a rank waits for the shards of the others, whose work is as long as its own.
_PATIENCE = 3600.0


def build(
    recipe: Recipe,
    model: nn.Module,
    source: Source,
    out: str | Path,
    *,
    seed: int = 0,
    batch_size: int = 250,
    shard_size: int = 2000,
    dtype: str = "float32",
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: Progress | None = None,
) -> ConstructedSet:
    """Builds D_R, D_NR, D_rand or D_det from ``source`` with ``model`` into the folder ``out``, and returns the set.

    One image is made for each image of the source, in its order. The result is a function of the recipe, the model, the
    source and the seed: a build that was killed goes on where it stopped and ends with the same bytes. What is attacked
    is :func:`advfeat.models.folded`'s copy of the model, the same function without its BatchNorm. Under
    ``torchrun`` each rank builds its own shards.

    recipe: see :func:`advfeat.datasets.recipes.preset`. model: gives logits [B, classes]; a
    :class:`MatchRepresentation` also needs ``model.representation``. batch_size: images attacked at once (fixes the
    shapes the model sees, and with them the last bits). dtype: of the stored images, "float32", "float16" or "uint8"
    (rounded inside the ball). device: where to run; where the model lies if None. progress: called with (images done,
    images in all).

    Errors: ValueError for a model that does not fit the source, an ``out`` that holds another set, a damaged shard that
    cannot be rebuilt; OSError for a full disk. What is finished stays, nothing half-written does.
    """
    device = torch.device(device) if device is not None else _device_of(model)
    model = model.to(device)
    _check_fits(recipe, model, source, device)
    manifest = {
        "recipe": recipe.to_dict(),
        "attack": recipe.attack().replace(autocast=autocast).to_dict(),
        "source": {"name": source.name, "split": source.split, "fingerprint": source.fingerprint},
        "model": {"fingerprint": fingerprint(model)},
        "seed": seed,
        "batch_size": batch_size,
        "dtype": dtype,
        "classes": list(source.classes),
        "image_shape": list(source.image_shape),
    }
    model = folded(model)
    writer = SetWriter(Path(out), manifest, n=len(source), shard_size=shard_size)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = writer.missing_shards(rank, ranks)
    total = sum(len(rows) for _, rows in mine)
    done = 0
    if progress:
        progress(done, total)
    for shard, rows in mine:
        parts = []
        for begin in range(rows.start, rows.stop, batch_size):
            index = torch.arange(begin, min(begin + batch_size, rows.stop))
            parts.append(_construct(recipe, model, source, index, seed, dtype, device, autocast))
            done += len(index)
            if progress:
                progress(done, total)
        writer.write(shard, {name: torch.cat([p[name] for p in parts]) for name in parts[0]})
    if not writer.finish(timeout=0.0 if ranks == 1 else _PATIENCE):
        raise TimeoutError(
            f"{out}: this process has made its shards, but others are still missing: see the other ranks"
        )
    return ConstructedSet.open(Path(out), verify=False)


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _check_fits(recipe: Recipe, model: nn.Module, source: Source, device: torch.device) -> None:
    """One forward pass of one image, so that a wrong model fails before anything is written."""
    if len(source) == 0:
        raise ValueError(f"source {source.name} has no images")
    check_fits(model, len(source.classes), source.image_shape, f"data set {source.name!r}")
    image = source.images(torch.tensor([0])).to(device)
    with no_trace(model, device), torch.no_grad():
        try:
            logits = logits_of(model(image))
        except RuntimeError as error:
            raise ValueError(
                f"model does not take images of shape {tuple(source.image_shape)} as {source.name} has: {error}"
            ) from error
    classes = len(source.classes)
    if logits.dim() != 2 or logits.shape[1] != classes:
        raise ValueError(
            f"model should give {classes} logits, one a class of {source.name}, got shape {tuple(logits.shape)}"
        )
    if isinstance(recipe, MatchRepresentation) and not callable(getattr(model, "representation", None)):
        raise ValueError(
            f"recipe {recipe.name!r} matches representations: the model should have a method representation(x) -> "
            "[B, k] (advfeat.models.adapt gives one to a module of yours)"
        )


def _construct(
    recipe: Recipe,
    model: nn.Module,
    source: Source,
    index: Tensor,
    seed: int,
    dtype: str,
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, Tensor]:
    """The rows of the set for the images ``index`` of the source."""
    images, labels = source.images(index).to(device), source.labels[index]
    attack = recipe.attack().replace(autocast=autocast)
    start_index = torch.full_like(index, -1)
    if isinstance(recipe, MatchRepresentation):
        if recipe.start == "image":
            start_index = start_indices(len(source), seed, index)
            centre = source.images(start_index).to(device)
        else:
            centre = noise_start(images, seed, index.to(device))
        with no_trace(model, device), torch.no_grad():
            target = model.representation(images).float().reshape(len(index), -1)
        stored_labels = labels
    else:
        centre = images
        stored_labels = recipe.targets(labels, len(source.classes), seed, index)
        target = stored_labels.to(device)
    result = attack.run(model, centre, target, sample_ids=index.to(device))
    stored = quantise(result.x_adv.cpu(), centre.cpu(), attack.threat, dtype)
    if dtype != "float32":
        # What is recorded is true of the image as it is stored: rounding can undo an attack.
        result = attack.replace(steps=0).run(model, centre, target, start=to_float(stored).to(device))
    with no_trace(model, device), torch.no_grad():
        says_label = logits_of(model(result.x_adv)).argmax(dim=1).cpu() == stored_labels
    return {
        "images": stored,
        "label": stored_labels,
        "original_label": labels,
        "source_index": index,
        "start_index": start_index,
        "target_success": says_label,
        "objective": result.value.float().cpu(),
        "distance": result.distance.float().cpu(),
    }
