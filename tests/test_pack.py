"""Official files packed into parts come back byte for byte, or not at all, and what is missing is named."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import pickletools
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from advfeat.datasets import official  # noqa: E402
from benchmarks import pack  # noqa: E402


def photos(n: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, 3, 32, 32]: smooth, the colours alike, with a little noise, as photographs are."""
    generator = np.random.default_rng(seed)
    steps = generator.normal(0, 5, (n, 1, 32, 32)).cumsum(2).cumsum(3) / 3
    return (128 + steps + generator.normal(0, 1.5, (n, 3, 32, 32))).clip(0, 255).astype(np.uint8)


def batch_file(pixels: np.ndarray) -> bytes:
    """As Python 2 wrote the official ones: protocol 2, byte strings, pixels between labels and names."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    n = len(pixels)
    labels = b"".join(b"K" + bytes([i % 10]) for i in range(n))
    names = b"".join(text(b"image_%06d.png" % i) for i in range(n))
    block = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    items = (text(b"labels") + b"](" + labels + b"e", text(b"data") + block, text(b"filenames") + b"](" + names + b"e")
    return b"\x80\x02}(" + b"".join(items) + b"u."


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> Path:
    """A root with files named like CIFAR-10's, whose MD5 sums are taken for the official ones.

    Two are of its form, with 12 images each; the others are noise, which takes less time.
    """
    root, files = tmp_path / "data", {"train": [], "test": []}
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for i, name in enumerate(names):
        noise = np.random.default_rng(i).bytes(18 if name == "batches.meta" else 18_000)
        data = batch_file(photos(12, i)) if name in ("data_batch_1", "test_batch") else noise
        (folder / name).write_bytes(data)
        md5 = hashlib.md5(data).hexdigest()
        if name == "batches.meta":
            monkeypatch.setattr(pack, "CIFAR10_META", {name: md5})
        else:
            files["test" if name == "test_batch" else "train"].append((name, md5))
    monkeypatch.setattr(official, "_CIFAR10_FILES", files)
    return root


@pytest.fixture
def fashion(tmp_path) -> Path:
    root = tmp_path / "data"
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 9), ("t10k", 4)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8)))
    return root


def run(*arguments: object) -> int:
    return pack.main([str(a) for a in arguments])


def missing(out: str) -> list[str]:
    """The parts that unpack says are missing."""
    return [line.split()[1] for line in out.splitlines() if line.startswith("missing: ")]


# --- one file


def test_the_synthetic_files_are_of_the_official_form():
    pixels = photos(3)
    operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(batch_file(pixels))]
    assert operations[0] == ("PROTO", 2) and ("SHORT_BINSTRING", "image_000002.png") in operations
    assert ("BINSTRING", pixels.tobytes().decode("latin-1")) in operations
    found, labels = official.scan_cifar_batch(batch_file(pixels), Path("data_batch_1"))
    assert np.array_equal(found.numpy(), pixels) and labels == [0, 1, 2]


@pytest.mark.parametrize(
    "pixels",
    [
        photos(1),
        photos(300),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.full((2, 3, 32, 32), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 2, (5, 3, 32, 32), dtype=np.uint8) * np.uint8(255),
    ],
    ids=["one photo", "photos", "black", "white", "noise", "only extremes"],
)
def test_batch_files_come_back(pixels):
    data = batch_file(pixels)
    assert pack.decode(pack.encode(data)) == data


def test_photos_get_much_smaller_than_by_lzma():
    data = batch_file(photos(300))
    assert len(pack.encode(data)) < 0.75 * len(lzma.compress(data))


@given(data=st.binary(max_size=3000))
@example(data=b"")
@example(data=b"\x80\x02(")
@example(data=b"\x80\x02T\xff\xff\xff\x7f")
@example(data=batch_file(photos(2))[:-5])
@example(data=b"\x80\x02T\x00\x0c\x00\x00" + bytes(3072))
@example(data=b"\x80\x02T\x01\x0c\x00\x00" + bytes(3073))
def test_any_bytes_come_back(data):
    assert pack.decode(pack.encode(data)) == data


@given(
    content=st.binary(min_size=1, max_size=500),
    n=st.integers(1, 3),
    before=st.binary(max_size=255),
    after=st.binary(max_size=100),
)
def test_any_pixels_with_anything_around_them_come_back(content, n, before, after):
    pixels = (content * (n * 3072 // len(content) + 1))[: n * 3072]
    data = b"\x80\x02U" + bytes([len(before)]) + before + b"T" + struct.pack("<i", len(pixels)) + pixels + after
    packed = pack.encode(data)
    assert b'"coding": "images"' in packed and pack.decode(packed) == data


# --- parts


def test_files_come_back_with_the_official_md5(cifar10, tmp_path, capsys):
    assert run("pack", cifar10, tmp_path / "parts") == 0
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["cifar10.json", "cifar10.part00"]
    assert run("unpack", tmp_path / "parts", tmp_path / "back") == 0
    assert contents(tmp_path / "back") == contents(cifar10)
    out = capsys.readouterr().out
    assert "data_batch_1: 37,146 bytes, with the official MD5" in out and "batches.meta: 18 bytes, with the off" in out
    assert run("unpack", tmp_path / "parts", tmp_path / "back", "--sets", "cifar10") == 0
    assert capsys.readouterr().out.count("there already, with the official MD5") == 7
    # Readers do without batches.meta.
    (cifar10 / "cifar-10-batches-py" / "batches.meta").unlink()
    assert run("pack", cifar10, tmp_path / "parts") == 0
    assert run("unpack", tmp_path / "parts", tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(cifar10)


@pytest.mark.parametrize("limit", [200, 7_001, 45_000, 10**6])
def test_parts_are_no_larger_than_asked_for(cifar10, tmp_path, limit):
    parts = tmp_path / "parts"
    pack.pack("cifar10", cifar10, parts, 5_000)  # of which nothing is left
    pack.pack("cifar10", cifar10, parts, limit)
    index = json.loads((parts / "cifar10.json").read_text())
    found = {p.name: p.stat().st_size for p in parts.iterdir() if p.name != "cifar10.json"}
    assert found == {p["name"]: p["size"] for p in index["parts"]} and max(found.values()) <= limit
    packed = [sum(length for _, _, length in file["pieces"]) for file in index["files"]]
    # Only what is larger than a part is cut.
    assert all((len(file["pieces"]) == 1) == (size <= limit) for file, size in zip(index["files"], packed, strict=True))
    assert pack.unpack("cifar10", parts, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(cifar10)


def test_a_missing_part_is_named_and_the_rest_goes_on(cifar10, tmp_path, capsys):
    parts, away, back = tmp_path / "parts", tmp_path / "away", tmp_path / "back"
    run("pack", cifar10, parts, "--part-mb", 0.045)
    names = sorted(p.name for p in parts.glob("*.part*"))
    assert len(names) == 3
    away.mkdir()
    for name in names[1:]:
        (parts / name).rename(away / name)
    capsys.readouterr()
    assert run("unpack", parts, back) == 1
    out = capsys.readouterr().out
    assert missing(out) == names[1:]
    assert "still to come: cifar-10-batches-py/data_batch_3 (cifar10.part01)" in out
    assert sorted(contents(back)) == [f"cifar-10-batches-py/data_batch_{i}" for i in (1, 2)]
    # The next one comes alone, as where there is room for one part at a time.
    (parts / names[0]).unlink()
    (away / names[2]).rename(parts / names[2])
    assert run("unpack", parts, back) == 1
    out = capsys.readouterr().out
    assert out.count("there already") == 2 and missing(out) == names[1:2]
    (away / names[1]).rename(parts / names[1])
    assert run("unpack", parts, back) == 0
    assert contents(back) == contents(cifar10)


def test_a_file_in_several_parts_names_all_that_are_missing(cifar10, tmp_path, capsys):
    pack.pack("cifar10", cifar10, tmp_path / "parts", 9_000)
    for i in (0, 1):
        (tmp_path / "parts" / f"cifar10.part0{i}").unlink()
    assert not pack.unpack("cifar10", tmp_path / "parts", tmp_path / "back")
    out = capsys.readouterr().out
    assert missing(out) == ["cifar10.part00", "cifar10.part01"]
    assert "cifar-10-batches-py/data_batch_1 (cifar10.part00, cifar10.part01, cifar10.part02)\n" in out
    assert len(contents(tmp_path / "back")) == 6


@pytest.mark.parametrize("damage", ["truncated", "altered", "longer"])
def test_a_damaged_part_is_named(cifar10, tmp_path, capsys, damage):
    parts, back = tmp_path / "parts", tmp_path / "back"
    run("pack", cifar10, parts, "--part-mb", 0.045)
    part = parts / "cifar10.part01"
    whole = part.read_bytes()
    middle = len(whole) // 2
    bad = {
        "truncated": whole[:-1],
        "altered": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "longer": whole + b"\0",
    }
    part.write_bytes(bad[damage])
    capsys.readouterr()
    assert run("unpack", parts, back) == 1
    out = capsys.readouterr().out
    assert f"damaged, copy it again: {part}" in out and damage in out
    assert "data_batch_3" in out.split("still to come")[1]
    assert len(contents(back)) == 5 and not (back / "cifar-10-batches-py" / "data_batch_3").exists()
    part.write_bytes(whole)
    assert run("unpack", parts, back) == 0 and contents(back) == contents(cifar10)


def test_only_official_files_are_packed(cifar10, tmp_path, capsys):
    file = cifar10 / "cifar-10-batches-py" / "data_batch_4"
    data = bytearray(file.read_bytes())
    data[10_000] ^= 1
    file.write_bytes(data)
    assert run("pack", cifar10, tmp_path / "parts") == 1
    assert "data_batch_4 is truncated or altered" in capsys.readouterr().err
    file.unlink()
    assert run("pack", cifar10, tmp_path / "parts") == 1
    assert "data_batch_4 is missing" in capsys.readouterr().err
    assert not (tmp_path / "parts").exists()


def test_a_file_with_a_wrong_md5_is_not_written(fashion, tmp_path, capsys):
    run("pack", fashion, tmp_path / "parts")
    path = tmp_path / "parts" / "fashion-mnist.json"
    index = json.loads(path.read_text())
    index["files"][2]["md5"] = "0" * 32
    path.write_text(json.dumps(index))
    assert run("unpack", tmp_path / "parts", tmp_path / "back") == 1
    assert "t10k-images-idx3-ubyte was not written: it would have the MD5" in capsys.readouterr().err
    assert len(contents(tmp_path / "back")) == 2
    index["files"][2]["pieces"][0][1] += 1
    path.write_text(json.dumps(index))
    assert run("unpack", tmp_path / "parts", tmp_path / "back") == 1
    assert "t10k-images-idx3-ubyte was not written: its parts are whole, but" in capsys.readouterr().err


def test_a_file_that_is_another_one_is_replaced(cifar10, tmp_path):
    pack.pack("cifar10", cifar10, tmp_path / "parts", 10**6)
    assert pack.unpack("cifar10", tmp_path / "parts", tmp_path / "back")
    file = tmp_path / "back" / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert pack.unpack("cifar10", tmp_path / "parts", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(cifar10)


@pytest.mark.parametrize("when", ["writing", "renaming"])
def test_an_interrupted_unpacking_leaves_no_half_file(cifar10, tmp_path, monkeypatch, when):
    parts, back = tmp_path / "parts", tmp_path / "back"
    pack.pack("cifar10", cifar10, parts, 10**6)
    name, calls = ("fsync" if when == "writing" else "replace"), []
    real = getattr(os, name)

    def interrupted(*arguments):
        # Some files done; os.fsync is called for each file and its folder.
        if len(calls) == (6 if when == "writing" else 3):
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack.unpack("cifar10", parts, back)
    there = contents(back)
    assert 0 < len(there) <= 3 and all(contents(cifar10)[k] == v for k, v in there.items())
    assert pack.unpack("cifar10", parts, back) and contents(back) == contents(cifar10)


def test_idx_files_say_whose_md5_it_is(fashion, tmp_path, capsys, monkeypatch):
    raw = fashion / "FashionMNIST" / "raw"
    plain, packed = raw / "train-images-idx3-ubyte", raw / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert run("pack", fashion, tmp_path / "parts") == 1
    assert "train-images-idx3-ubyte.gz is truncated or altered" in capsys.readouterr().err
    folder, sums = pack.IDX["fashion-mnist"]
    sums = sums | {plain.name: hashlib.md5(packed.read_bytes()).hexdigest()}
    monkeypatch.setitem(pack.IDX, "fashion-mnist", (folder, sums))
    assert run("pack", fashion, tmp_path / "parts") == 0
    assert run("unpack", tmp_path / "parts", tmp_path / "back") == 0
    assert contents(tmp_path / "back") == contents(fashion)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "train-images-idx3-ubyte.gz: " in line and line.endswith("the official MD5")]
    recorded = "with the MD5 of its packing, there is no official one"
    assert [line for line in lines if "t10k-images-idx3-ubyte: " in line and line.endswith(recorded)]


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(format="another"),
        lambda index: index.update(set="mnist"),
        lambda index: index["files"][0].update(name="../../outside"),
        lambda index: index["files"][0].update(md5="0" * 32),
        lambda index: index["files"][0].update(pieces=[[9, 0, 1]]),
        lambda index: index["files"][0].update(pieces=[[0, 0, 10**9]]),
        lambda index: index["parts"][0].update(name="/etc/hostname"),
        lambda index: index["parts"][0].pop("sha256"),
        lambda index: index.pop("files"),
    ],
    ids=["format", "set", "outside", "not the official MD5", "no such part", "past its end", "name", "sum", "no files"],
)
def test_an_altered_index_is_refused(cifar10, tmp_path, capsys, change):
    pack.pack("cifar10", cifar10, tmp_path / "parts", 10**6)
    path = tmp_path / "parts" / "cifar10.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    assert run("unpack", tmp_path / "parts", tmp_path / "back") == 1
    assert "cifar10.json was altered, or is not of advfeat-pack-1" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def test_what_is_asked_for_has_to_be_there(cifar10, tmp_path, capsys):
    for arguments, said in [
        (("pack", tmp_path / "nowhere", tmp_path / "parts"), "nowhere is not there either"),
        (("pack", cifar10, tmp_path / "parts", "--sets", "mnist"), "train-images-idx3-ubyte.gz is missing"),
        (("pack", cifar10, tmp_path / "parts", "--part-mb", 0), "--part-mb should be above 0"),
        (("unpack", tmp_path / "parts", tmp_path / "back"), "there is no index"),
        (("unpack", cifar10, tmp_path / "back", "--sets", "mnist"), "mnist.json is missing"),
    ]:
        assert run(*arguments) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "parts").exists() and not (tmp_path / "back").exists()


# --- the real files


def test_a_real_batch_file_is_halved_and_fast(data_root):
    path = data_root / "cifar-10-batches-py" / "test_batch"
    if not path.is_file():
        pytest.skip(f"ADVFEAT_DATA holds no {path.name}")
    data = path.read_bytes()
    packed = pack.encode(data)
    assert len(packed) < 0.5 * len(data)
    began = time.process_time()
    assert pack.decode(packed) == data
    assert time.process_time() - began < 10  # of which six make CIFAR-10
