"""Writing of constructed sets: shards of safetensors and a manifest, each written atomically, resumed by checksum.

    manifest.json                describes the set; once it is finished, also the checksum of every shard
    shard-00000.safetensors      images, labels and the other values per sample
    shard-00000.json             the shard's record with its checksum, written last; without it, the shard is unfinished

Each shard has one writer and its own record, so processes that share the work never write the same file. The final
manifest is written once all records exist; any process may write it, since all would write the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import re
import shutil
import time
import warnings
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from advfeat._checks import check_images, check_labels
from advfeat._json_fields import SHA256
from advfeat._version import __version__
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.layout import FIELDS, FORMAT, MANIFEST, VERSION, file_sha256, record_name, shard_name
from advfeat.datasets.rounding import DTYPES, quantise
from advfeat.files import make_folder, sweep, write_bytes
from advfeat.json_files import read_json, to_json, write_json
from advfeat.settings import as_json

__all__ = ["ConstructedSet", "SetWriter", "quantise"]

_REQUIRED = ("recipe", "source", "model", "seed", "image_shape", "classes", "dtype")
_RECORD = {"file": str, "rows": int, "bytes": int, "sha256": SHA256, "set": str}
# step.json is the record that an experiment writes into the folder of a set.
_OWN_FILES = re.compile(r"(manifest|step)\.json|shard-\d{5,}\.(safetensors|json)")


def _is_hidden(path: Path) -> bool:
    """Whether it is a hidden file, such as .DS_Store of a file browser."""
    return path.name.startswith(".") and path.is_file()


def is_complete(folder: Path) -> bool:
    """Whether the folder has a manifest that says that the set is finished; checksums are not compared.

    Args:
        folder: The folder of the set, which may be missing.
    """
    try:
        return read_json(folder / MANIFEST).get("complete") is True
    except (FileNotFoundError, ValueError):
        return False


class SetWriter:
    """Writes a constructed set into ``out``, or resumes an unfinished one.

    Several processes may write one set, each its own shards. A link with the name of one of the files is replaced, not
    followed.

    Args:
        out: The folder, created if missing.
        manifest: JSON values (dataclasses, infinities and paths are converted) with recipe, source, model, seed,
            image_shape, classes, dtype and whatever else the bytes of the set depend on; the rest (format, code
            version, n, shard_size, shards, complete) is filled in.
        n: Number of samples.
        shard_size: Samples per shard; the last may have fewer.

    Attributes:
        damaged: A dict from file name to problem, of finished shards that must be rebuilt; each gives one warning.

    Raises:
        ValueError: If the folder holds another set (the message names the keys that differ) or other files, or the
            manifest lacks a key.
        OSError: If the folder cannot be written.
    """

    def __init__(self, out: str | Path, manifest: dict, n: int, shard_size: int) -> None:
        self._describe(out, manifest, n, shard_size)
        self._open()

    @classmethod
    def check(cls, out: str | Path, manifest: dict, n: int, shard_size: int) -> None:
        """Checks that ``out`` holds no other set, and writes nothing; arguments as for the class.

        Raises:
            ValueError: If the folder holds another set, or the manifest lacks a key.
        """
        writer = cls.__new__(cls)
        writer._describe(out, manifest, n, shard_size)
        try:
            found = read_json(writer.out / MANIFEST)
        except (FileNotFoundError, ValueError):  # missing or damaged: the constructor handles it, under the lock
            return
        writer._compare(found)

    def _describe(self, out: str | Path, manifest: dict, n: int, shard_size: int) -> None:
        if n < 1 or shard_size < 1:
            raise ValueError(f"n and shard_size should be at least 1, got n={n} and shard_size={shard_size}")
        missing = [key for key in _REQUIRED if key not in manifest]
        if missing:
            raise ValueError(f"the manifest should have {', '.join(_REQUIRED)}: {', '.join(missing)} missing")
        if manifest["dtype"] not in DTYPES:
            raise ValueError(f"dtype should be one of {', '.join(DTYPES)}, got {manifest['dtype']!r}")
        self.out, self.n, self.shard_size = Path(out).absolute(), n, shard_size
        self.shards = math.ceil(n / shard_size)
        self.damaged: dict[str, str] = {}
        fixed = {"format": FORMAT, "version": VERSION, "code": __version__, "n": n, "shard_size": shard_size}
        given = {key: as_json(value) for key, value in manifest.items()}
        # Through JSON and back, so that it compares equal to a manifest that was read from a file.
        self._identify(json.loads(json.dumps(fixed | given, allow_nan=False)))
        self._dtype = DTYPES[manifest["dtype"]]

    def rows(self, shard: int) -> range:
        """The positions of a shard's samples.

        Args:
            shard: The number of the shard.

        Raises:
            IndexError: If there is no shard of this number.
        """
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard should be in 0 .. {self.shards - 1}, got {shard}")
        return range(shard * self.shard_size, min(self.n, (shard + 1) * self.shard_size))

    def missing_shards(self, rank: int = 0, ranks: int = 1) -> list[tuple[int, range]]:
        """The shards that are unfinished or damaged. Reads the finished ones to compare their checksums.

        Args:
            rank: The rank of this process, which writes every ``ranks``-th shard, starting with ``rank``.
            ranks: The number of processes that share the work.

        Returns:
            (shard number, positions of its samples) for each.

        Raises:
            ValueError: If the rank is outside 0 .. ranks-1.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank should be in 0 .. {ranks - 1}, got {rank}")
        return [(shard, self.rows(shard)) for shard in range(rank, self.shards, ranks) if not self._is_finished(shard)]

    def write(self, shard: int, tensors: dict[str, Tensor]) -> None:
        """Writes a shard and then its record, each atomically.

        The same tensors give the same bytes.

        Args:
            shard: The number of the shard.
            tensors: A dict from name to tensor with one row per sample: images in the manifest's dtype (see
                :func:`quantise`), and those of :data:`advfeat.datasets.layout.FIELDS`.

        Raises:
            ValueError: If a tensor has the wrong dtype, shape or values; the message names the tensor and the sample.
            OSError: If the disk is full. Finished shards stay.
        """
        rows = self.rows(shard)
        data = safetensors.torch.save(self._checked(tensors, rows))
        if not (self.out / MANIFEST).is_file():
            raise FileNotFoundError(f"{self.out / MANIFEST} was removed during the build")
        record = {
            "file": shard_name(shard),
            "rows": len(rows),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "set": self._id,
        }
        try:
            write_bytes(self.out / shard_name(shard), data, follow=False)
            write_json(self.out / record_name(shard), record)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"no space left for {self.out / shard_name(shard)}: it needs {len(data) / 2**20:.1f} MiB, "
                f"{shutil.disk_usage(self.out).free / 2**20:.1f} MiB are free; finished shards are kept: free some "
                "space and run the build again",
            ) from error
        self.damaged.pop(shard_name(shard), None)

    def finish(self, timeout: float = 0.0) -> bool:
        """Writes the final manifest with the checksums of all shards.

        Other processes may still be writing theirs: the last one finishes the set, and it does no harm if several do.

        Args:
            timeout: Seconds to wait for the next shard of another process.

        Returns:
            False if shards are missing and no new one appeared for ``timeout`` seconds.
        """
        deadline, previous = time.monotonic() + timeout, -1
        while (records := self._records()) is None:
            finished = sum((self.out / record_name(shard)).is_file() for shard in range(self.shards))
            if finished != previous:
                deadline, previous = time.monotonic() + timeout, finished
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(0.2, timeout))
        shards = [{"file": r["file"], "rows": r["rows"], "sha256": r["sha256"]} for r in records]
        data = to_json({**self._identity, "shards": shards, "complete": True})
        if (self.out / MANIFEST).read_bytes() != data:  # a finished set may be in a read-only place
            write_bytes(self.out / MANIFEST, data, follow=False)
        return True

    def _open(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} should be a folder, but is a file")
        make_folder(self.out)
        sweep(self.out)
        path = self.out / MANIFEST
        found = None
        if path.is_file():
            try:
                found = read_json(path)
            except ValueError as error:
                if self._has_foreign_record():
                    raise
                warnings.warn(f"{error}; rewritten", stacklevel=3)
        else:
            foreign = sorted(p.name for p in self.out.iterdir() if not (_OWN_FILES.fullmatch(p.name) or _is_hidden(p)))
            if foreign or self._has_foreign_record():
                raise ValueError(
                    f"{self.out} holds {', '.join(foreign[:5]) or 'shards of another set'} and no {MANIFEST}: take "
                    "another folder"
                )
        if found is None:
            write_json(self.out / MANIFEST, {**self._identity, "shards": [], "complete": False})
            return
        self._compare(found)

    def _compare(self, found: dict) -> None:
        """Raises ValueError, naming the keys, if an existing manifest differs."""
        # The name of the source is not compared: a constructed set is named after its folder, which may have moved.
        if isinstance(found.get("source"), dict) and isinstance(self._identity["source"], dict):
            self._identify(
                {**self._identity, "source": {**self._identity["source"], "name": found["source"].get("name")}}
            )
        differing = _differences(
            {key: value for key, value in found.items() if key not in ("shards", "complete")}, self._identity
        )
        if differing:
            raise ValueError(
                f"{self.out} holds another set ({'; '.join(differing[:5])}): take another folder, or remove that one"
            )

    def _identify(self, identity: dict) -> None:
        self._identity = identity
        self._id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _has_foreign_record(self) -> bool:
        """Whether the folder holds a shard of another set; without a manifest, only the records show it."""
        for path in sorted(self.out.glob("shard-*.json")):
            try:
                if read_json(path).get("set") != self._id:
                    return True
            except ValueError:
                continue
        return False

    def _is_finished(self, shard: int) -> bool:
        record, path = self._record(shard), self.out / shard_name(shard)
        if record is None:
            return False
        if not path.is_file():
            problem = "is missing"
        elif (size := path.stat().st_size) != record["bytes"]:
            problem = f"is truncated or altered: {size:,} bytes, expected {record['bytes']:,}"
        elif (found := file_sha256(path)) != record["sha256"]:
            problem = f"was altered: its sha256 is {found[:16]}..., expected {record['sha256'][:16]}..."
        else:
            return True
        if self.damaged.get(path.name) != problem:
            self.damaged[path.name] = problem
            warnings.warn(f"{path} {problem}; it will be rebuilt", stacklevel=4)
        return False

    def _record(self, shard: int) -> dict | None:
        path = self.out / record_name(shard)
        try:
            record = read_json(path, _RECORD)
        except (FileNotFoundError, ValueError):
            return None
        fits = record["set"] == self._id and record["file"] == shard_name(shard)
        return record if fits and record["rows"] == len(self.rows(shard)) else None

    def _records(self) -> list[dict] | None:
        """The records of all shards, or None if a shard is missing or its length differs from its record."""
        records = []
        for shard in range(self.shards):
            record, path = self._record(shard), self.out / shard_name(shard)
            if record is None or not path.is_file() or path.stat().st_size != record["bytes"]:
                return None
            records.append(record)
        return records

    def _checked(self, tensors: dict[str, Tensor], rows: range) -> dict[str, Tensor]:
        dtypes = {**FIELDS, "images": self._dtype}
        if tensors.keys() != dtypes.keys():
            raise ValueError(f"tensors should be {', '.join(sorted(dtypes))}, got {', '.join(sorted(tensors))}")
        checked = {}
        for name, dtype in sorted(dtypes.items()):
            tensor = tensors[name].detach().cpu()
            shape = (len(rows), *self._identity["image_shape"]) if name == "images" else (len(rows),)
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} should be {dtype} of shape {shape}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
                )
            # A copy, since safetensors refuses tensors that share memory.
            checked[name] = tensor.clone(memory_format=torch.contiguous_format)
        ids = torch.arange(rows.start, rows.stop, device="cpu")
        if self._dtype != torch.uint8:
            check_images(checked["images"], ids, str(self.out))
        for name in ("label", "original_label"):
            check_labels(checked[name], len(self._identity["classes"]), f"{self.out} ({name})")
        for name in ("distance", "objective"):
            wrong = (~checked[name].isfinite()).nonzero()
            if not len(wrong):
                continue
            row = int(wrong[0])
            problem = f"{name} should be finite, got {float(checked[name][row])} for sample {rows[row]}"
            if name == "distance":
                raise ValueError(problem)
            # Only a warning: the image itself is valid, and an error would recur in every later run.
            warnings.warn(
                f"{problem} ({len(wrong)} of the {len(rows)} samples from {rows[0]} on): the source model's outputs "
                "for them are not finite, or its representation is zero; the images are stored as the attack left them",
                stacklevel=3,
            )
        return checked


def _differences(old: object, new: object, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    return [] if old == new else [f"{name} is {_short(old)} there, {_short(new)} here"]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
