"""Names and types of the files of a constructed set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

FORMAT = "advfeat-set"
VERSION = 1
MANIFEST = "manifest.json"

# Of each sample, beside its image (in the manifest's dtype).
FIELDS = {
    "label": torch.int64,  # the set's
    "original_label": torch.int64,  # the source's
    "source_index": torch.int64,  # position in the source of the image that gives the label
    "start_index": torch.int64,  # of the image it was started from; -1 for the image itself, or noise
    "target_success": torch.bool,  # whether the source model says the set's label
    "objective": torch.float32,  # what the attack optimised, at the end
    "distance": torch.float32,  # how far the image is from where it started
}


def shard_name(shard: int) -> str:
    """The name of the file that holds a shard's tensors."""
    return f"shard-{shard:05d}.safetensors"


def record_name(shard: int) -> str:
    """The name of the file that says that a shard is finished, with its checksum."""
    return f"shard-{shard:05d}.json"


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            hashed.update(piece)
    return hashed.hexdigest()
