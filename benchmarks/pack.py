"""The official files of CIFAR-10, Fashion-MNIST and MNIST in few small parts, for a machine without a network.

    python -m benchmarks.pack pack ROOT DEST     # DEST/cifar10.part00 ... and an index, DEST/cifar10.json
    python -m benchmarks.pack unpack DEST ROOT   # the official files, byte for byte

CIFAR-10's 186 MB become half as much. Where files fit into a part they are not cut, so each part brings some by itself:
unpack says which parts it lacks, and goes on when it is called again. Every file is compared with its MD5, the official
one where there is one, and appears whole or not at all.

How: a pixel is guessed from its neighbours, red and blue as differences from green. What the guess missed goes into one
of 16 streams, by how much was missed around it, and zlib's Huffman code packs each. The rest of a file is kept as it
is. All images of a file are gone through together, pixel by pixel, so that numpy is fast enough.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import math
import pickletools
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

from advfeat.datasets import official
from advfeat.files import read_checked, write_bytes, write_together
from advfeat.json_files import read_json, to_json

FORMAT = "advfeat-pack-1"
PART_MB = 40.0

CIFAR10 = "cifar-10-batches-py"
CIFAR10_META = {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}  # readers do without: packed where it is there
# Of the .gz files, as torchvision gives them; there are none for the plain ones.
IDX = {
    "fashion-mnist": (
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "mnist": (
        "MNIST/raw",
        {
            "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
}
SETS = ("cifar10", *IDX)


# --- one file


# A pixel's surroundings are worth up to 3,400; the bounds between streams grow by about two fifths.
_BOUNDS = (6, 10, 15, 22, 31, 42, 57, 76, 102, 137, 185, 250, 340, 460, 640)
_STREAM = np.searchsorted(_BOUNDS, np.arange(4096), side="right").astype(np.uint8)
_STREAMS = len(_BOUNDS) + 1
_PLANES = (1, 0, 2)  # green says most about the others
_BEFORE = (0, 1, 4)  # how much it counts what was missed at the same pixel of the plane before


def encode(data: bytes) -> bytes:
    """Any file, smaller, by half if it is a batch file of CIFAR-10. :func:`decode` undoes it.

    The others get lzma: it is better at MNIST, and as good at Fashion-MNIST.
    """
    found = _find_images(data)
    if found is None:
        return _join({"coding": "lzma"}, lzma.compress(data))
    start, shape = found
    size = math.prod(shape)
    coder = _Encoder(np.frombuffer(data, np.uint8, size, start).reshape(shape))
    _walk(shape, coder)
    rest = lzma.compress(data[:start] + data[start + size :])
    sizes = [len(stream) for stream in coder.packed]
    head = {"coding": "images", "start": start, "shape": shape, "rest": len(rest), "streams": sizes}
    return _join(head, rest, *coder.packed)


def decode(packed: bytes) -> bytes:
    """What :func:`encode` was given."""
    (length,) = struct.unpack_from("<I", packed)
    head, body = json.loads(packed[4 : 4 + length]), io.BytesIO(packed[4 + length :])
    if head["coding"] == "lzma":
        return lzma.decompress(body.read())
    rest = lzma.decompress(body.read(head["rest"]))
    coder = _Decoder(head["shape"], [body.read(size) for size in head["streams"]])
    _walk(head["shape"], coder)
    return rest[: head["start"]] + coder.images.tobytes() + rest[head["start"] :]


def _join(head: dict, *pieces: bytes) -> bytes:
    packed = json.dumps(head).encode()
    return b"".join([struct.pack("<I", len(packed)), packed, *pieces])


def _find_images(data: bytes) -> tuple[int, tuple[int, int, int, int]] | None:
    """Where pixels begin, and [n, C, H, W]. What only looks like pixels gets larger, but comes back as well."""
    try:
        for operation, argument, position in pickletools.genops(data):
            if operation.name == "BINSTRING" and argument and len(argument) % 3072 == 0:
                return position + 5, (len(argument) // 3072, 3, 32, 32)
    except ValueError:  # no pickle
        pass
    return None


def _walk(shape: tuple[int, int, int, int], coder: _Encoder | _Decoder) -> None:
    """Goes over the pixels, plane by plane, and asks ``coder`` for each in all images: uint8 [n].

    It tells the coder what the pixels before it say: a guess, int16 [n] in 0 .. 255, and the stream of what it misses,
    uint8 [n]. All is done in integers, so that the way back finds the same on any machine.
    """
    n, _, height, width = shape
    green = missed = None
    for weight, channel in zip(_BEFORE, _PLANES, strict=True):
        coder.begin(channel)
        # One row above, one column on either side.
        values = np.zeros((height + 1, width + 2, n), np.int16)
        before, missed = missed, np.zeros_like(values)
        for y in range(height):
            values[y + 1, 0] = values[y, 1]
            for x in range(width):
                left, up, corner, next_up = values[y + 1, x], values[y, x + 1], values[y, x], values[y, x + 2]
                guess = np.clip(left + up - corner, np.minimum(left, up), np.maximum(left, up))
                if green is not None:
                    guess = np.clip(guess + green[y + 1, x + 1], 0, 255)
                busy = np.abs(left - corner) + np.abs(up - corner) + np.abs(next_up - up)
                busy += 3 * (missed[y + 1, x] + missed[y, x + 1] + missed[y, x + 2]) + missed[y, x]
                if before is not None:
                    busy += weight * before[y + 1, x + 1]
                pixels = coder.pixels(y, x, guess, _STREAM[busy])
                missed[y + 1, x + 1] = np.abs((pixels - guess).astype(np.int8), dtype=np.int16)
                values[y + 1, x + 1] = pixels if green is None else pixels - green[y + 1, x + 1]
            values[y + 1, width + 1] = values[y + 1, width]
        coder.end(channel)
        green = values if green is None else green


class _Encoder:
    """Knows the pixels, and collects what the guesses miss. packed: 16 streams for each plane, in their order."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.packed = images, []

    def begin(self, channel: int) -> None:
        self.plane = np.ascontiguousarray(self.images[:, channel].transpose(1, 2, 0))
        self.streams, self.missed = np.empty_like(self.plane), np.empty_like(self.plane)

    def pixels(self, y: int, x: int, guess: np.ndarray, stream: np.ndarray) -> np.ndarray:
        self.streams[y, x], self.missed[y, x] = stream, self.plane[y, x] - guess.astype(np.uint8)  # modulo 256
        return self.plane[y, x]

    def end(self, channel: int) -> None:
        self.packed += [_squeeze(self.missed[self.streams == i].tobytes()) for i in range(_STREAMS)]


class _Decoder:
    """Knows what the guesses missed, from the streams; images: the pixels, uint8 [n, C, H, W]."""

    def __init__(self, shape: tuple[int, int, int, int], packed: list[bytes]) -> None:
        self.images, self._packed = np.empty(shape, np.uint8), iter(packed)
        self._n = np.arange(shape[0])

    def begin(self, channel: int) -> None:
        streams = [zlib.decompress(next(self._packed), -15) for _ in range(_STREAMS)]
        self._missed = np.frombuffer(b"".join(streams), np.uint8)
        self._next = np.cumsum([0, *map(len, streams[:-1])])
        self.plane = np.empty((*self.images.shape[2:], len(self._n)), np.uint8)

    def pixels(self, y: int, x: int, guess: np.ndarray, stream: np.ndarray) -> np.ndarray:
        """Each stream gives the next of what it has to the images that are its own here, in their order."""
        images = np.argsort(stream, kind="stable")
        counts = np.bincount(stream, minlength=_STREAMS)
        first = np.cumsum(counts) - counts
        missed = self._missed[self._n + np.repeat(self._next - first, counts)]
        self._next += counts
        self.plane[y, x, images] = guess[images].astype(np.uint8) + missed  # modulo 256
        return self.plane[y, x]

    def end(self, channel: int) -> None:
        self.images[:, channel] = self.plane.transpose(2, 0, 1)


def _squeeze(stream: bytes) -> bytes:
    """Huffman's code, with runs where they help: there is no other repetition in what was missed."""
    packed = []
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE):
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        packed.append(coder.compress(stream) + coder.flush())
    return min(packed, key=len)


# --- all files of a data set


def known_files(name: str) -> dict[str, str | None]:
    """The files that a data set may have, by their place below its root, with their official MD5 if they have one."""
    if name == "cifar10":
        files = [file for split in official._CIFAR10_FILES.values() for file in split]
        return {f"{CIFAR10}/{file}": md5 for file, md5 in (*files, *CIFAR10_META.items())}
    folder, packed = IDX[name]
    return {f"{folder}/{file}": None for file in packed} | {f"{folder}/{file}.gz": md5 for file, md5 in packed.items()}


def pack(name: str, root: Path, dest: Path, limit: int) -> None:
    """Writes a data set's parts, of at most ``limit`` bytes, and its index.

    Errors: FileNotFoundError saying what is there; ValueError for a file that is not the official one.
    """
    known, parts, files = known_files(name), [bytearray()], []
    for file in _files_in(root, name):
        data = (root / file).read_bytes()
        md5 = _md5(data)
        if known[file] not in (None, md5):
            raise ValueError(
                f"{root / file} is truncated or altered: {len(data):,} bytes with MD5 {md5}, expected {known[file]}"
            )
        packed = encode(data)
        if decode(packed) != data:
            raise AssertionError(f"{root / file} would not come back as it was")
        pieces = _place(packed, parts, limit)
        files.append({"name": file, "size": len(data), "md5": md5, "pieces": pieces})
        print(f"{file}: {len(data):,} bytes, {len(packed):,} packed, into {_named(name, {p[0] for p in pieces})}")
    entries = [
        {"name": _part(name, i), "size": len(part), "sha256": hashlib.sha256(part).hexdigest()}
        for i, part in enumerate(parts)
    ]
    index = to_json({"format": FORMAT, "set": name, "files": files, "parts": entries})
    written = [(dest / entry["name"], bytes(part)) for entry, part in zip(entries, parts, strict=True)]
    write_together([*written, (dest / f"{name}.json", index)])
    for old in set(dest.glob(f"{name}.part*")) - {path for path, _ in written}:
        old.unlink()
    size = sum(map(len, parts))
    print(f"{name}: {size:,} bytes in {len(parts)} part(s) in {dest}; each needs {name}.json beside it")


def unpack(name: str, dest: Path, root: Path) -> bool:
    """Puts those files back whose parts are there; True if none is still to come.

    Errors: FileNotFoundError without an index; ValueError for one that is not :func:`pack`'s, or a file whose MD5 is
    wrong, which is not written.
    """
    index, known = _read_index(dest, name), known_files(name)
    parts, waiting = _Parts(dest, index["parts"]), []
    for file in index["files"]:
        path, md5 = root / file["name"], file["md5"]
        which = "the official MD5" if known[file["name"]] else "the MD5 of its packing, there is no official one"
        if path.is_file() and path.stat().st_size == file["size"] and _md5(path.read_bytes()) == md5:
            print(f"{path}: there already, with {which}")
            continue
        packed = parts.read(file["pieces"])
        if packed is None:
            waiting.append(f"{file['name']} ({_named(name, {p[0] for p in file['pieces']})})")
            continue
        try:
            data = decode(packed)
        except (ValueError, KeyError, IndexError, struct.error, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{path} was not written: its parts are whole, but do not unpack ({error!r})") from error
        if _md5(data) != md5:
            raise ValueError(f"{path} was not written: it would have the MD5 {_md5(data)}, expected {md5}")
        write_bytes(path, data)
        print(f"{path}: {len(data):,} bytes, with {which}")
    for problem in parts.problems.values():
        print(problem)
    if waiting:
        print(f"{name}: still to come: {', '.join(waiting)}")
    return not waiting


class _Parts:
    """Parts as they are asked for, one in memory. problems: what is wrong with those that are no good."""

    def __init__(self, folder: Path, entries: list[dict]) -> None:
        self._folder, self._entries, self.problems = folder, entries, {}
        self._held: tuple[int, bytes] | None = None

    def _part(self, number: int) -> bytes | None:
        if number in self.problems:
            return None
        if self._held is None or self._held[0] != number:
            entry = self._entries[number]
            try:
                self._held = number, read_checked(self._folder / entry["name"], entry["size"], entry["sha256"])
            except FileNotFoundError:
                self.problems[number] = f"missing: {entry['name']} ({entry['size']:,} bytes)"
            except ValueError as error:
                self.problems[number] = f"damaged, copy it again: {error}"
            if number in self.problems:
                return None
        return self._held[1]

    def read(self, pieces: list[list[int]]) -> bytes | None:
        """Pieces (number of the part, begin, length) joined; None if a part is no good."""
        found = []
        for number, begin, length in pieces:  # all of them, to name each part that is no good
            part = self._part(number)
            found.append(None if part is None else part[begin : begin + length])
        return None if None in found else b"".join(found)


def _files_in(root: Path, name: str) -> list[str]:
    files = list(known_files(name))
    if name == "cifar10":
        files = [f for f in files if Path(f).name not in CIFAR10_META or (root / f).is_file()]
    else:  # the plain file, which is what torchvision reads; else the one that it came in
        files = [f if (root / f).is_file() else f"{f}.gz" for f in files if not f.endswith(".gz")]
    for file in files:
        if not (root / file).is_file():
            raise FileNotFoundError(f"{root / file} is missing. {official.what_is_in((root / file).parent)}")
    return files


def _place(packed: bytes, parts: list[bytearray], limit: int) -> list[list[int]]:
    """Appends to the last part, or begins a new one if it does not fit; cut only if it is larger than a part."""
    if parts[-1] and len(parts[-1]) + len(packed) > limit:
        parts.append(bytearray())
    pieces = []
    for at in range(0, len(packed), limit):
        if at:
            parts.append(bytearray())
        piece = packed[at : at + limit]
        pieces.append([len(parts) - 1, len(parts[-1]), len(piece)])
        parts[-1] += piece
    return pieces


def _read_index(dest: Path, name: str) -> dict:
    """An index whose names are those of the set's own files and parts. Errors as :func:`unpack` has them."""
    path = dest / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {official.what_is_in(dest)}")
    index, known = read_json(path), known_files(name)
    try:
        sizes = [part["size"] for part in index["parts"]]
        good = index["format"] == FORMAT and index["set"] == name
        good &= [part["name"] for part in index["parts"]] == [_part(name, i) for i in range(len(sizes))]
        good &= all(isinstance(part["sha256"], str) for part in index["parts"])
        for file in index["files"]:
            good &= file["name"] in known and known[file["name"]] in (None, file["md5"]) and file["size"] >= 0
            good &= all(0 <= begin <= begin + length <= sizes[i] for i, begin, length in file["pieces"])
    except (KeyError, TypeError, ValueError, IndexError):
        good = False
    if not good:
        raise ValueError(f"{path} was altered, or is not of {FORMAT}; pack again")
    return index


def _part(name: str, number: int) -> str:
    return f"{name}.part{number:02d}"


def _named(name: str, numbers: set[int]) -> str:
    return ", ".join(_part(name, i) for i in sorted(numbers))


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="official files into parts")
    packing.add_argument("root", type=Path, help="the folder in which the data sets lie, as torchvision keeps them")
    packing.add_argument("dest", type=Path, help="the folder of the parts")
    packing.add_argument("--part-mb", type=float, default=PART_MB, help="a part's size at most, in 10^6 bytes")
    unpacking = commands.add_parser("unpack", help="parts into official files, as far as the parts are there")
    unpacking.add_argument("dest", type=Path, help="the folder of the parts")
    unpacking.add_argument("root", type=Path, help="the folder in which the data sets are to lie")
    for command in (packing, unpacking):
        command.add_argument("--sets", nargs="+", choices=SETS, help="default: those that are there")
    options = parser.parse_args(arguments)
    try:
        return _pack_all(options) if options.command == "pack" else _unpack_all(options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _pack_all(options: argparse.Namespace) -> int:
    limit = int(options.part_mb * 10**6)
    if limit < 1:
        raise ValueError(f"--part-mb should be above 0, got {options.part_mb:g}")
    there = [name for name in SETS if (options.root / next(iter(known_files(name)))).parent.is_dir()]
    if not (options.sets or there):
        raise FileNotFoundError(f"none of {', '.join(SETS)} is there. {official.what_is_in(options.root)}")
    for name in options.sets or there:
        pack(name, options.root, options.dest, limit)
    return 0


def _unpack_all(options: argparse.Namespace) -> int:
    there = [name for name in SETS if (options.dest / f"{name}.json").is_file()]
    if not (options.sets or there):
        raise FileNotFoundError(f"there is no index, {SETS[0]}.json or another. {official.what_is_in(options.dest)}")
    whole = [unpack(name, options.dest, options.root) for name in options.sets or there]
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
