"""A small constructed set for tests of the store: its manifest, its rows, and a build of it."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from pathlib import Path

import torch

from advfeat.datasets.store import ConstructedSet, SetWriter

N, SHARD, SHAPE, CLASSES = 23, 5, (2, 4, 3), 4


def manifest(**changes) -> dict:
    return {
        "recipe": {"kind": "perturb-towards-target", "name": "det", "eps": 0.5},
        "source": {"name": "digits", "split": "train", "fingerprint": "f" * 64},
        "model": {"fingerprint": "a" * 64},
        "seed": 0,
        "image_shape": SHAPE,
        "classes": ("a", "b", "c", "d"),
        "dtype": "float32",
        **changes,
    }


def rows(positions: range, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> dict:
    """What a build would make of these positions: a function of each position alone."""
    index = torch.arange(positions.start, positions.stop)
    images = torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(int(i))) for i in index])
    images = (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)
    return {
        "images": images,
        "label": (index + 1) % CLASSES,
        "original_label": index % CLASSES,
        "source_index": index,
        "start_index": torch.where(index % 2 == 0, -1, index * 7),
        "target_success": index % 3 > 0,
        "objective": index.float() / 7,
        "distance": index.float().sqrt(),
    }


def build(out: Path, n: int = N, shard_size: int = SHARD, rank: int = 0, ranks: int = 1, **changes) -> SetWriter:
    writer = SetWriter(out, manifest(**changes), n, shard_size)
    dtype = getattr(torch, changes.get("dtype", "float32"))
    for shard, positions in writer.missing_shards(rank, ranks):
        writer.write(shard, rows(positions, dtype))
    writer.finish()
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def kill_until_finished(out: Path, whole: Path, seed: int, n: int, shard_size: int) -> int:
    """Builds in child processes that get SIGKILL at random moments until one comes through; how many were killed
    halfway.

    To be run in a process of its own: it forks. whole: an undisturbed build of the same set.
    """
    expected, moments, kills = contents(whole), random.Random(seed), 0
    warnings.simplefilter("error")  # no shard may be found damaged
    for attempt in range(100):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                build(out, n, shard_size)
                code = 0
            finally:
                os._exit(code)
        # The time grows, so that a slow machine comes through as well.
        time.sleep(moments.uniform(0, 0.05 * (1 + attempt)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the build failed"
        there = contents(out) if out.is_dir() else {}
        for name, data in there.items():  # nothing under its own name that is not whole
            assert name == "manifest.json" or name.endswith(".tmp") or data == expected[name], name
        if there.get("manifest.json") == expected["manifest.json"]:
            if not os.WIFSIGNALED(status):
                return kills
            continue
        if there:
            kills += 1
            try:
                ConstructedSet.open(out)
            except (ValueError, FileNotFoundError) as error:
                assert "not finished" in str(error) or "manifest.json does not exist" in str(error), error
            else:
                raise AssertionError("a set that is not finished was opened")
    raise AssertionError("no run came through")
