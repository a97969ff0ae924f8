"""Reading of shards without memory maps: a mapped file that shrinks kills the process; here it raises an error.

The format is safetensors: the length of the header in eight bytes, the header as JSON, then the tensors in order.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from advfeat._json_fields import check_depth, check_fields

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "U8": torch.uint8,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
_SIZE = range(2**53)
_ENTRY = {"dtype": str, "shape": [_SIZE], "data_offsets": [_SIZE]}
_LONGEST_HEADER = 1 << 20


class Shard:
    """A safetensors file. Each read opens it anew, so that a set of many shards keeps no files open.

    Args:
        file: The file.

    Attributes:
        file: The file.
        tensors: A dict from name to (dtype, shape).

    Raises:
        ValueError: If the file is not safetensors, or its length differs from its header's; the message names it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._offsets: dict[str, int] = {}
        try:
            self._read_header()
        except (ValueError, RecursionError, struct.error) as error:
            raise ValueError(f"{file} is truncated or altered: {error or 'nested too deeply'}") from error

    def read(self, name: str, rows: Tensor | None = None) -> Tensor:
        """A tensor, or some of its rows.

        Args:
            name: The name of the tensor.
            rows: int64 [k], in any order; None for all.

        Returns:
            A new tensor [k, ...] on the CPU.

        Raises:
            ValueError: If the file has become shorter, or a bool is neither 0 nor 1.
        """
        dtype, shape = self.tensors[name]
        result = torch.empty((shape[0] if rows is None else len(rows), *shape[1:]), dtype=dtype, device="cpu")
        if result.numel() == 0:
            return result
        size = result[0].numel() * result.element_size()
        buffer = result.view(torch.uint8).numpy().reshape(-1).data.cast("B")
        with open(self.file, "rb", buffering=0) as file:
            done = 0
            for first, count in [(0, shape[0])] if rows is None else _runs(rows.tolist()):
                file.seek(self._offsets[name] + first * size)
                end = done + count * size
                while done < end:
                    read = file.readinto(buffer[done:end])
                    if not read:
                        raise ValueError(f"{self.file} is truncated: it became shorter after it was opened")
                    done += read
        if dtype == torch.bool and bool((result.view(torch.uint8) > 1).any()):
            raise ValueError(f"{self.file} is truncated or altered: {name} should hold 0 or 1")
        return result

    def _read_header(self) -> None:
        with open(self.file, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header should have at most {_LONGEST_HEADER:,} bytes, got {length:,}")
            header = json.loads(file.read(length))
            size = file.seek(0, 2)
        check_depth(header)
        check_fields(header, dict)
        header.pop("__metadata__", None)
        check_fields(header, {str: _ENTRY})
        expected = 8 + length
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"{name} should be of {', '.join(_DTYPES)}, got {entry['dtype']}")
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            bytes_, begin = math.prod(shape) * dtype.itemsize, expected - 8 - length
            if entry["data_offsets"] != [begin, begin + bytes_] or not shape:
                raise ValueError(f"{name} should lie at {begin} .. {begin + bytes_}, got {entry['data_offsets']}")
            self.tensors[name], self._offsets[name] = (dtype, shape), expected
            expected += bytes_
        if size != expected:
            raise ValueError(f"{size:,} bytes, expected {expected:,}")


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """(first, count) of each run of consecutive rows, which one read covers."""
    runs = []
    for _, group in itertools.groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
        members = [row for _, row in group]
        runs.append((members[0], len(members)))
    return runs
