"""Carries out a recipe: attacks a data set shard by shard and writes the result to a folder; builds resume."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from advfeat import _arguments, _model_checks, forward
from advfeat._arguments import check_autocast, check_path, flag, whole_number
from advfeat._checks import from_environment
from advfeat._locks import hold
from advfeat.datasets.construction import Construction
from advfeat.datasets.fitness import check_fitness, is_deterministic, warn_of_chance
from advfeat.datasets.loader import batch_size_for
from advfeat.datasets.protocol import Data, Identified
from advfeat.datasets.recipes import PRESETS, MatchRepresentation, Recipe, check_recipe_name, own_recipe
from advfeat.datasets.store import ConstructedSet, SetWriter, is_complete
from advfeat.datasets.torch_dataset import as_source
from advfeat.files import check_writable_folder
from advfeat.forward import unwrapped
from advfeat.models import Adapted, attack_copy, fingerprint

Progress = Callable[[int, int], None]

_BATCH = 250  # images attacked at once, unless asked otherwise

# Seconds that a rank waits for the next shard of the others.
_PATIENCE = 3600.0


class _Buildable(Identified, Protocol):
    """What a build requires of its source; the manifest records the split, too."""

    @property
    def split(self) -> str: ...


def build(
    recipe: Recipe | str,
    model: nn.Module,
    source: Data,
    out: str | Path,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    shard_size: int = 2000,
    dtype: str = "float32",
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    compile: bool = False,
    same_classes: bool = False,
    any_source: bool = False,
    progress: Progress | None = None,
) -> ConstructedSet:
    """Builds D_R, D_NR, D_rand or D_det from ``source`` with ``model`` into the folder ``out``, and returns the set.

    One image is made for each image of the source, in the same order. The result is a function of the recipe, the
    model, the source and the seed: a build that was killed resumes where it stopped and ends with the same bytes, on
    CUDA as far as torch's kernels are deterministic. The attack runs on a copy of the model with BatchNorm folded into
    its layers, the same function up to rounding: see :func:`advfeat.models.attack_copy`. One shard is written while the
    next is computed.

    Under ``torchrun`` each rank builds its own shards. Without it, a second process that builds the same set into
    ``out`` waits, with a warning that names the first, and returns the finished set, or continues it if the first was
    killed. A process that builds another set into ``out`` is refused at once.

    Args:
        recipe: How the set is made, see :func:`advfeat.datasets.preset`. A name, "robust", "nonrobust", "rand" or
            "det", takes the preset of the source's own data set, which CIFAR-10, Restricted ImageNet and digits have.
        model: Gives logits [B, classes] for images in [0, 1]; a :class:`MatchRepresentation` also needs
            ``model.representation``.
        source: A data set of this package; or a ``torch.utils.data`` dataset of (image, label), or a ``DataLoader``,
            which stands for its dataset.
        out: The folder of the set, created if missing.
        seed: Seed of the targets of D_rand, and of the starts of D_R and D_NR.
        batch_size: Images attacked at once. It can change the last bits of the result, since kernels depend on shapes.
            None takes that of a DataLoader, else 250.
        shard_size: Images per file.
        dtype: Storage type of the images: "float32", "float16" or "uint8" (rounded so that they stay in the ball).
        device: Device to run on; None takes that of the model.
        autocast: torch.bfloat16 or torch.float16 to run the model in; iterates stay in float32.
        compile: torch.compile the model.
        same_classes: Match the classes of model and source by index instead of by name.
        any_source: Accept a model that was not trained as the recipe requires: adversarially for D_R, by standard
            training for the other sets. A model without a record of its training is always accepted.
        progress: Called with (images done, total images).

    Returns:
        The finished set.

    Warns:
        RuntimeWarning: If the model's accuracy on the source is no better than chance (often because images are
            normalised twice, or not at all), or if the model is random in eval mode, which the manifest also records.

    Raises:
        TypeError: If an argument has the wrong type; the message names it.
        ValueError: If the model does not fit the source or the recipe, the device does not exist, ``out`` holds another
            set, a damaged shard cannot be rebuilt, or ``recipe`` is a name and the data set has no presets.
        OSError: If the disk is full. Finished shards stay; nothing half-written does.
    """
    if isinstance(recipe, str):
        check_recipe_name(recipe)
    elif not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe should be one of advfeat.datasets.recipes, such as preset('cifar10', 'det'), or its name, got "
            f"{type(recipe).__name__}"
        )
    seed, shard_size = whole_number("seed", seed, None), whole_number("shard_size", shard_size)
    compile, same_classes = flag("compile", compile), flag("same_classes", same_classes)
    any_source = flag("any_source", any_source)
    check_autocast(autocast)
    check_path("out", out)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress should be a function (done, total), got {type(progress).__name__}")
    _model_checks.check_module(model)  # a set is known by the hash of its weights
    batch_size = batch_size_for(source, batch_size, _BATCH)
    source = cast(_Buildable, as_source(source, model))  # a missing attribute raises an error when it is used
    if isinstance(recipe, str):
        recipe = _of_its_own(source.name, recipe)
    device = forward.device_of(model) if device is None else _arguments.device("device", device)
    model = cast(nn.Module, unwrapped(model)).to(device)
    check_fitness(recipe, model, source, device, same_classes, any_source)
    deterministic = is_deterministic(model, source, device)
    attack = recipe.attack().replace(autocast=autocast)
    manifest = {
        "recipe": recipe.to_dict(),
        "attack": attack.to_dict(),
        "source": {"name": source.name, "split": source.split, "fingerprint": source.fingerprint},
        "model": _identity(model, recipe),
        "seed": seed,
        "batch_size": batch_size,
        "dtype": dtype,
        "classes": list(source.classes),
        "image_shape": list(source.image_shape),
    }
    if compile:  # changes the last bits
        manifest["compile"] = True
    if not deterministic:
        manifest["deterministic"] = False
    out = Path(out).absolute()  # a script may change its folder meanwhile
    rank, ranks = from_environment("RANK", 0), from_environment("WORLD_SIZE", 1)
    if is_complete(out):  # before any write: a finished set may be in a read-only place
        if not SetWriter(out, manifest, n=len(source), shard_size=shard_size).missing_shards():
            return ConstructedSet.open(out, verify=False)

    def waiting(holder: str) -> None:
        SetWriter.check(out, manifest, n=len(source), shard_size=shard_size)  # its manifest may be new
        warnings.warn(
            f"{out} is being built in by {holder}; waiting for it (if it is stopped, this process takes over)",
            stacklevel=5,
        )

    SetWriter.check(out, manifest, n=len(source), shard_size=shard_size)  # before a wait for the lock, maybe of hours
    check_writable_folder(out)
    with hold(out, f"build-{rank}-of-{ranks}", waiting):  # the ranks of one build work at once
        writer = SetWriter(out, manifest, n=len(source), shard_size=shard_size)
        mine = writer.missing_shards(rank, ranks)
        total, done = sum(len(rows) for _, rows in mine), 0

        def advance(images: int) -> None:
            nonlocal done
            done += images
            if progress:
                progress(done, total)

        advance(0)
        if mine:
            warn_of_chance(model, source, device, batch_size)
            model = attack_copy(model, autocast=autocast, compile=compile)
            work = Construction(recipe, attack, model, source, seed, batch_size, dtype, device)
            _write_all(writer, mine, work, advance)
        if not writer.finish(timeout=0.0 if ranks == 1 else _PATIENCE):
            raise TimeoutError(
                f"{out}: this process has made its shards, but others are still missing: see the other ranks"
                if ranks > 1
                else f"{out} lost shards while it was built: something else removes or changes its files"
            )
    return ConstructedSet.open(out, verify=False)


def _of_its_own(data: str, recipe: str) -> Recipe:
    """The recipe of this name for a data set that has a preset of its own."""
    own = own_recipe(data, recipe)
    if own is None:
        raise ValueError(
            f"recipe should be a recipe with its settings, since data set {data!r} has no preset of its own, got the "
            f"name {recipe!r}: preset('cifar10', {recipe!r}) is the paper's for CIFAR-10; the presets are "
            f"{', '.join(PRESETS)}"
        )
    return own


def _write_all(
    writer: SetWriter, shards: list[tuple[int, range]], construction: Construction, advance: Callable[[int], None]
) -> None:
    """Builds the shards one by one; a thread writes each while the next is built."""
    # Under a stop rule samples of several batches share the passes through the model: each shard gets its own run, so
    # that its last bits do not depend on which shards were finished before. Otherwise one run builds all of them.
    runs = [shards] if construction.attack.stop is None else [[shard] for shard in shards]
    with ThreadPoolExecutor(1, thread_name_prefix="advfeat-write") as thread:  # waits for the last write on exit
        writing: Future | None = None
        for run in runs:
            chunks = [
                torch.arange(rows.start, rows.stop, device="cpu").split(construction.batch_size) for _, rows in run
            ]
            with contextlib.closing(construction.samples([ids for of_shard in chunks for ids in of_shard])) as made:
                for (shard, _), of_shard in zip(run, chunks, strict=True):
                    parts: list[dict[str, Tensor]] = []
                    for ids in of_shard:
                        parts.append(next(made))
                        if len(parts) == len(of_shard):  # before advance(), whose callback may stop the build
                            tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                            if writing is not None:
                                writing.result()
                            writing = thread.submit(writer.write, shard, tensors)
                        advance(len(ids))
                        if writing is not None and writing.done():
                            writing.result()  # raises the error of a full disk now, not a shard later
        if writing is not None:
            writing.result()


def _identity(model: nn.Module, recipe: Recipe) -> dict[str, str]:
    """What the images depend on: the weights, and for a user's own module which of its layers is matched."""
    identity = {"fingerprint": fingerprint(model)}
    if isinstance(recipe, MatchRepresentation) and isinstance(model, Adapted):
        identity["representation"] = model.features_from
    return identity
