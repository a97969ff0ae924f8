"""A finished constructed set, read from its folder."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from advfeat.checks import check_images, check_labels
from advfeat.datasets.base import Indices, Source, as_indices, to_float
from advfeat.datasets.layout import FIELDS, FORMAT, MANIFEST, VERSION, file_sha256
from advfeat.datasets.rounding import DTYPES
from advfeat.runs import read_json

_REPAIR = "run the build again with the same settings: it makes just this shard anew"


class ConstructedSet(Source):
    """D_R, D_NR, D_rand or D_det from its folder: use :meth:`open`.

    labels: the set's, int64 [N], on which a model is trained. original_labels: those of the source. source_index: the
    position in the source of the image that gave the label. start_index: that of the image the attack started from, -1
    where it is the image itself, or noise. target_success: bool, the source model says the set's label. objective,
    distance: float32, the attack's objective at the end and how far it moved the image. manifest: recipe, model,
    source, seeds and checksums.

    Images are mapped from the files and not held in memory. Loading runs no code: safetensors and JSON hold none.
    """

    original_labels: Tensor
    source_index: Tensor
    start_index: Tensor
    target_success: Tensor
    objective: Tensor
    distance: Tensor
    manifest: dict

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> ConstructedSet:
        """Opens a set.

        verify: read all of it and compare checksums and values; without, only sizes, shapes and labels are looked at.
        Errors: FileNotFoundError for a missing file; ValueError naming the file that is truncated or altered, and for a
        set that is not finished, of another format, with labels out of range or images not in [0, 1].
        """
        return cls(Path(path), verify)

    def __init__(self, path: Path, verify: bool) -> None:
        self.path, self.manifest = path, _read_manifest(path)
        self.name = str(path)
        self.split = str(self.built_from_entry.get("split", ""))
        self.classes = tuple(self.manifest["classes"])
        self.image_shape = tuple(self.manifest["image_shape"])
        self._dtype = DTYPES[self.manifest["dtype"]]
        self._images: list[Tensor] = []
        columns: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
        first = 0
        for entry in self.manifest["shards"]:
            file = path / Path(entry["file"]).name
            tensors = self._open_shard(file, entry, verify)
            images = tensors["images"]
            for name in FIELDS:
                columns[name].append(tensors[name].clone())
            if verify and images.is_floating_point():
                for rows in torch.arange(len(images)).split(1000):
                    check_images(images[rows], first + rows, str(file))
            self._images.append(images)
            first += len(images)
        if first != self.manifest["n"]:
            raise ValueError(f"{path / MANIFEST}: its shards hold {first} samples, n is {self.manifest['n']}")
        self._ends = list(itertools.accumulate(len(images) for images in self._images))
        joined = {name: torch.cat(parts) for name, parts in columns.items()}
        self.labels, self.original_labels = joined["label"], joined["original_label"]
        self.source_index, self.start_index = joined["source_index"], joined["start_index"]
        self.target_success = joined["target_success"]
        self.objective, self.distance = joined["objective"], joined["distance"]

    @property
    def built_from_entry(self) -> dict:
        source = self.manifest.get("source")
        return source if isinstance(source, dict) else {}

    @property
    def built_from(self) -> str | None:
        """The name of the data set it was built from."""
        return self.built_from_entry.get("name")

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the checksums of the shards."""
        content = [FORMAT, self.manifest["dtype"], *(entry["sha256"] for entry in self.manifest["shards"])]
        return hashlib.sha256(" ".join(content).encode()).hexdigest()

    def images(self, indices: Indices = None) -> Tensor:
        index = as_indices(indices, len(self), self.name)
        stored = torch.empty((len(index), *self.image_shape), dtype=self._dtype)
        ends = torch.tensor(self._ends)
        shard_of = torch.searchsorted(ends, index, right=True)
        for shard in shard_of.unique().tolist():
            rows = (shard_of == shard).nonzero()[:, 0]
            begin = self._ends[shard - 1] if shard else 0
            stored[rows] = self._images[shard][index[rows] - begin]
        return to_float(stored)

    def shard_of(self, index: int) -> str:
        """The name of the file that holds a sample."""
        return self.manifest["shards"][bisect.bisect_right(self._ends, index)]["file"]

    def _open_shard(self, file: Path, entry: dict, verify: bool) -> dict[str, Tensor]:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {_REPAIR}")
        if verify and (found := file_sha256(file)) != entry["sha256"]:
            raise ValueError(
                f"{file} is truncated or altered: its sha256 is {found[:16]}..., expected {entry['sha256'][:16]}...; "
                f"{_REPAIR}"
            )
        try:
            with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{file} is truncated or altered: {error}; {_REPAIR}") from error
        expected = {name: (dtype, (entry["rows"],)) for name, dtype in FIELDS.items()}
        expected["images"] = (self._dtype, (entry["rows"], *self.image_shape))
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        if found != expected:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(
                f"{file} does not fit {MANIFEST}: {wrong[0]} should be {expected.get(wrong[0])}, got "
                f"{found.get(wrong[0])}; {_REPAIR}"
            )
        for name in ("label", "original_label"):
            check_labels(tensors[name], len(self.classes), f"{file} ({name})")
        return tensors


def _read_manifest(path: Path) -> dict:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is {'not a folder' if path.exists() else 'not there'}")
    file = path / MANIFEST
    manifest = read_json(file)
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise ValueError(
            f"{file} should be of format {FORMAT!r}, version {VERSION}, got {manifest.get('format')!r}, version "
            f"{manifest.get('version')!r}"
        )
    if not manifest.get("complete"):
        raise ValueError(f"{path} is not finished; run the build again with the same settings: it goes on")
    needed = {"n": int, "shards": list, "classes": list, "image_shape": list, "dtype": str}
    for key, kind in needed.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{file} is damaged: {key} should be of type {kind.__name__}, got {manifest.get(key)!r}")
    if manifest["dtype"] not in DTYPES or len(manifest["image_shape"]) != 3:
        raise ValueError(f"{file} is damaged: dtype {manifest['dtype']!r}, image_shape {manifest['image_shape']!r}")
    for entry in manifest["shards"]:
        if not isinstance(entry, dict) or not {"file", "rows", "sha256"} <= entry.keys():
            raise ValueError(f"{file} is damaged: a shard should have file, rows and sha256, got {entry!r}")
    return manifest
