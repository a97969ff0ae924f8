"""The file format of a constructed set: file names, and the tensors of a shard."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

FORMAT = "advfeat-set"
VERSION = 1
MANIFEST = "manifest.json"

# The tensors of a shard besides the images, whose dtype is in the manifest.
FIELDS = {
    "label": torch.int64,  # to train on
    "original_label": torch.int64,  # of the source
    "source_index": torch.int64,  # position in the source of the image that gives the label
    "start_index": torch.int64,  # position in the source of the starting image; -1 for the image itself, or noise
    "target_success": torch.bool,  # whether the source model predicts the label to train on
    "objective": torch.float32,  # final value of the attack's objective
    "distance": torch.float32,  # between the image and its start, in the norm of the recipe
}


def shard_name(shard: int) -> str:
    """The name of the file that holds a shard's tensors."""
    return f"shard-{shard:05d}.safetensors"


def record_name(shard: int) -> str:
    """The name of the record that marks a shard as finished and holds its checksum."""
    return f"shard-{shard:05d}.json"


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            hashed.update(piece)
    return hashed.hexdigest()
