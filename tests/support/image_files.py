"""Image files and folders of them, for tests: pictures by number, and files that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")


def save(path: Path, array: np.ndarray, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **settings)
    return path


def picture(seed: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folders(root: Path, *names: str, images: int = 1, suffix: str = ".png") -> Path:
    """root/NAME/0.png, 1.png, ...: one class folder for each name, every image of its own brightness."""
    for i, name in enumerate(names):
        for k in range(images):
            save(root / name / f"{k}{suffix}", np.full((4, 4), 10 * i + k, dtype=np.uint8))
    return root


def png16(colour_type: int, channels: int) -> bytes:
    """A PNG of 4x4 with 16 bits a channel; colour types 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    return png(4, 4, (b"\0" + bytes(range(8 * channels))) * 4, bits=16, colour_type=colour_type)


def png(width: int, height: int, rows: bytes, bits: int = 8, colour_type: int = 0, before=(), behind=()) -> bytes:
    """A PNG of these rows, each with its filter in front; before, behind: chunks (kind, data) around the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    chunks = [head, *before, (b"IDAT", zlib.compress(rows)), *behind, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def tiff(bits: int, channels: int, photometric: int) -> bytes:
    """An uncompressed TIFF of 4x4; photometric 1 for grey (black is zero), 2 RGB, 5 CMYK."""
    data = bytes(4 * 4 * channels * bits // 8)
    depths = struct.pack("<" + "H" * channels, *[bits] * channels)
    count, place = 9, 8 + 2 + 12 * 9 + 4
    short, long = 3, 4
    inline = len(depths) <= 4
    entries = [
        (256, short, 1, 4), (257, short, 1, 4),
        (258, short, channels, struct.unpack("<I", depths.ljust(4, b"\0")[:4])[0] if inline else place),
        (259, short, 1, 1), (262, short, 1, photometric), (273, long, 1, place + len(depths)),
        (277, short, 1, channels), (278, short, 1, 4), (279, long, 1, len(data)),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", count)
    return head + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4) + depths + data
