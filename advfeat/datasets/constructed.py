"""A finished constructed set, read from its folder."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from pathlib import Path

import torch
from torch import Tensor

from advfeat._arguments import check_path, flag
from advfeat._checks import check_images, check_labels
from advfeat._json_fields import SHA256
from advfeat.datasets.base import Indices, Source, as_indices, to_float
from advfeat.datasets.layout import FIELDS, FORMAT, MANIFEST, VERSION, file_sha256, shard_name
from advfeat.datasets.rounding import DTYPES
from advfeat.datasets.shards import Shard
from advfeat.json_files import read_json

_REPAIR = "run the build again with the same settings: it rebuilds only this shard"
_COUNT = range(1, 2**53)
_SHARDS = [{"file": str, "rows": _COUNT, "sha256": SHA256}]
_SOURCE = {"name?": (None, str), "split?": str, "fingerprint?": (None, str)}
_MANIFEST = {
    "n": _COUNT,
    "shard_size": _COUNT,
    "classes": [str],
    "image_shape": [_COUNT],
    "dtype": str,
    "shards": _SHARDS,
    "source": (_SOURCE, None, str),
    **dict.fromkeys(("recipe", "model", "seed"), object),
}


class ConstructedSet(Source):
    """D_R, D_NR, D_rand or D_det, read from its folder; created by :meth:`open`.

    Images are read from the files on demand and not kept in memory. The files are safetensors and JSON, so loading them
    executes no code.

    Attributes:
        labels: The labels to train on, int64 [N].
        original_labels: The true labels of the images at ``source_index``, int64 [N].
        source_index: Position in the source of the image that gave the label, int64 [N].
        start_index: Position in the source of the image that the attack started from, int64 [N]; -1 if it started from
            the image at ``source_index`` or from noise.
        target_success: Whether the source model predicts the set's label, bool [N].
        objective: Final value of the attack's objective, float32 [N]; not finite if the source model's outputs are not.
        distance: Distance by which the attack moved the image, float32 [N], in the recipe's norm, in pixel scale.
        manifest: Recipe, model, source, seeds and checksums, as JSON values.
        path: The folder.
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

        Args:
            path: Its folder.
            verify: Read all files and compare checksums and values; False checks only sizes, shapes and labels.

        Returns:
            The set.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated or altered (the message names it), the set is unfinished or has another
                format, a label is out of range, or an image is outside [0, 1].
        """
        check_path("path", path)
        return cls(Path(path), flag("verify", verify))

    def __init__(self, path: Path, verify: bool) -> None:
        self.path, self.manifest = path, _read_manifest(path)
        self.name = str(path)
        self.split = str(self.built_from_entry.get("split", ""))
        self.built_from = self.built_from_entry.get("name")
        self.classes = tuple(self.manifest["classes"])
        self.image_shape = tuple(self.manifest["image_shape"])
        self._dtype = DTYPES[self.manifest["dtype"]]
        self._shards: list[Shard] = []
        self._ends = list(itertools.accumulate(entry["rows"] for entry in self.manifest["shards"]))
        columns: dict[str, list[Tensor]] = {name: [] for name in FIELDS}
        for entry, end in zip(self.manifest["shards"], self._ends, strict=True):
            shard = self._open_shard(path.absolute() / entry["file"], entry, verify)
            for name, column in self._columns(shard).items():
                columns[name].append(column)
            if verify and self._dtype.is_floating_point:
                for rows in torch.arange(entry["rows"], device="cpu").split(1000):
                    check_images(shard.read("images", rows), end - entry["rows"] + rows, str(shard.file))
            self._shards.append(shard)
        joined = {name: torch.cat(parts) for name, parts in columns.items()}
        self.labels, self.original_labels = joined["label"], joined["original_label"]
        self.source_index, self.start_index = joined["source_index"], joined["start_index"]
        self.target_success = joined["target_success"]
        self.objective, self.distance = joined["objective"], joined["distance"]

    @property
    def built_from_entry(self) -> dict:
        """Name, split and fingerprint of the data set that the set was built from, as far as they are known."""
        source = self.manifest.get("source")
        return source if isinstance(source, dict) else {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the checksums of the shards."""
        content = [FORMAT, self.manifest["dtype"], *(entry["sha256"] for entry in self.manifest["shards"])]
        return hashlib.sha256(" ".join(content).encode()).hexdigest()

    def images(self, indices: Indices = None) -> Tensor:
        """See :meth:`advfeat.datasets.Source.images`."""
        index = as_indices(indices, len(self), self.name)
        stored = torch.empty((len(index), *self.image_shape), dtype=self._dtype, device="cpu")
        ends = torch.tensor(self._ends, device="cpu")
        shard_of = torch.searchsorted(ends, index, right=True)
        for shard in shard_of.unique().tolist():
            rows = (shard_of == shard).nonzero()[:, 0]
            begin = self._ends[shard - 1] if shard else 0
            stored[rows] = self._shards[shard].read("images", index[rows] - begin)
        return to_float(stored)

    def shard_of(self, index: int) -> str:
        """The name of the file that holds a sample.

        Args:
            index: Its position, in 0 .. N-1.
        """
        return self.manifest["shards"][bisect.bisect_right(self._ends, index)]["file"]

    def _open_shard(self, file: Path, entry: dict, verify: bool) -> Shard:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {_REPAIR}")
        if verify and (sha256 := file_sha256(file)) != entry["sha256"]:
            raise ValueError(
                f"{file} is truncated or altered: its sha256 is {sha256[:16]}..., expected {entry['sha256'][:16]}...; "
                f"{_REPAIR}"
            )
        try:
            shard = Shard(file)
        except ValueError as error:
            raise ValueError(f"{error}; {_REPAIR}") from error
        expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            name: (dtype, (entry["rows"],)) for name, dtype in FIELDS.items()
        }
        expected["images"] = (self._dtype, (entry["rows"], *self.image_shape))
        found = shard.tensors
        if found != expected:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(
                f"{file} does not fit {MANIFEST}: {wrong[0]} should be {expected.get(wrong[0])}, got "
                f"{found.get(wrong[0])}; {_REPAIR}"
            )
        return shard

    def _columns(self, shard: Shard) -> dict[str, Tensor]:
        columns = {name: shard.read(name) for name in FIELDS}
        for name in ("label", "original_label"):
            check_labels(columns[name], len(self.classes), f"{shard.file} ({name})")
        for name, least in (("source_index", 0), ("start_index", -1)):
            if bool((columns[name] < least).any()):
                raise ValueError(f"{shard.file}: {name} should be at least {least}, got {int(columns[name].min())}")
        if not bool(columns["distance"].isfinite().all()):
            raise ValueError(f"{shard.file}: distance should be finite")
        return columns


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
        raise ValueError(f"{path} is not finished; run the build again with the same settings, and it resumes")
    manifest = read_json(file, _MANIFEST)
    if manifest["dtype"] not in DTYPES:
        raise ValueError(f"{file} is damaged: dtype should be {', '.join(DTYPES)}, got {manifest['dtype']!r}")
    if len(manifest["image_shape"]) != 3:
        raise ValueError(f"{file} is damaged: image_shape should be [C, H, W], got {manifest['image_shape']!r}")
    n, size = manifest["n"], manifest["shard_size"]
    # All but the checksums follows from n and shard_size; no shard may be repeated, missing or in another folder.
    if len(manifest["shards"]) != math.ceil(n / size):
        raise ValueError(
            f"{file} is damaged: shards should be {math.ceil(n / size)} for n={n} and shard_size={size}, got "
            f"{len(manifest['shards'])}"
        )
    for i, entry in enumerate(manifest["shards"]):
        expected = {"file": shard_name(i), "rows": min(size, n - i * size)}
        for key, value in expected.items():
            if entry[key] != value:
                raise ValueError(f"{file} is damaged: shards[{i}].{key} should be {value!r}, got {entry[key]!r}")
    return manifest
