"""Constructed sets and what happens to files: kills, cuts, flipped bits, a full disk."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from constructed_set import SHARD, N, build, contents, manifest, rows

from advfeat.datasets.store import ConstructedSet, SetWriter

# --- SIGKILL


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, seed):
    build(tmp_path / "whole", n=200, shard_size=2)
    code = (
        "import sys, pathlib, constructed_set as c; "
        "print(c.kill_until_finished(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), 200, 2))"
    )
    command = [sys.executable, "-c", code, tmp_path / "killed", tmp_path / "whole", str(seed)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2, "no run was killed halfway: nothing was tested"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


# --- damage


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[-3] ^= 16
    return bytes(changed)


@pytest.mark.parametrize(
    "damage", [_truncate, _flip, lambda _: b"", lambda d: d + b"\0"], ids="cut flip empty more".split()
)
@pytest.mark.parametrize("shard", [0, 4])
def test_a_damaged_shard_is_named_and_made_again(tmp_path, damage, shard):
    build(tmp_path)
    expected = contents(tmp_path)
    file = tmp_path / f"shard-{shard:05d}.safetensors"
    file.write_bytes(damage(expected[file.name]))
    with pytest.raises(ValueError, match=rf"{file.name} is truncated or altered: .*run the build again"):
        ConstructedSet.open(tmp_path)
    writer = SetWriter(tmp_path, manifest(), N, SHARD)
    with pytest.warns(UserWarning, match=rf"{file.name} (is truncated or altered|was altered).*made again"):
        assert [s for s, _ in writer.missing_shards()] == [shard]
    assert list(writer.damaged) == [file.name]
    writer.write(shard, rows(writer.rows(shard)))
    assert writer.finish() and not writer.damaged
    assert contents(tmp_path) == expected


def test_every_flipped_bit_is_found(tmp_path):
    build(tmp_path, n=3, shard_size=3)
    file = tmp_path / "shard-00000.safetensors"
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="shard-00000.safetensors is truncated or altered"):
            ConstructedSet.open(tmp_path)


@pytest.mark.parametrize("lost", ["shard-00001.safetensors", "shard-00001.json"])
def test_a_lost_file_is_named_and_made_again(tmp_path, lost):
    build(tmp_path)
    expected = contents(tmp_path)
    (tmp_path / lost).unlink()
    if lost.endswith("safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{lost} is missing; run the build again"):
            ConstructedSet.open(tmp_path)
        with pytest.warns(UserWarning, match=f"{lost} is missing; it is made again"):
            build(tmp_path)
    else:
        ConstructedSet.open(tmp_path)  # the manifest has its checksum too
        build(tmp_path)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("content", [b"", b'{"format": "advfeat-set', b"[]"])
def test_a_damaged_manifest_is_written_anew(tmp_path, content):
    build(tmp_path)
    expected = contents(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        ConstructedSet.open(tmp_path)
    with pytest.raises(ValueError, match=r"manifest\.json"):  # with other settings it stays as it is
        build(tmp_path, seed=1)
    with pytest.warns(UserWarning, match=r"manifest\.json.*written anew"):
        build(tmp_path)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "should be of format 'advfeat-set', version 1, got 'other'"),
        ({"version": 2}, "version 2"),
        ({"complete": False}, "is not finished; run the build again"),
        ({"n": 24}, "its shards hold 23 samples, n is 24"),
        ({"classes": ["a", "b", "c"]}, r"0 .. 2 for 3 classes: sample 2 has label 3"),
        ({"dtype": "uint8"}, r"does not fit manifest\.json: images should be \(torch.uint8.*got \(torch.float32"),
        ({"dtype": "int4"}, "is damaged: dtype 'int4'"),
        ({"image_shape": [2, 3, 4]}, "images should be"),
        ({"shards": [{"file": "shard-00000.safetensors"}]}, "a shard should have file, rows and sha256"),
        ({"shards": None}, "shards should be of type list"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_manifest_that_does_not_fit_is_named(tmp_path, change, said):
    build(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=said):
        ConstructedSet.open(tmp_path)


def test_a_manifest_cannot_reach_out_of_its_folder(tmp_path):
    build(tmp_path / "a")
    build(tmp_path / "b")
    path = tmp_path / "a" / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["file"] = "../b/shard-00000.safetensors"
    path.write_text(json.dumps(content))
    (tmp_path / "a" / "shard-00000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"a/shard-00000\.safetensors is missing"):
        ConstructedSet.open(tmp_path / "a")


def test_no_folder_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        ConstructedSet.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"manifest\.json does not exist"):
        ConstructedSet.open(tmp_path)


# --- a full disk


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("what", ["shard", "record"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, call, what):
    """ENOSPC may come from the write, but as well only when the data is synced, or the name is made."""
    writer = SetWriter(tmp_path, manifest(), N, SHARD)
    writer.write(0, rows(range(SHARD)))
    before, full = contents(tmp_path), OSError(errno.ENOSPC, "No space left on device")
    calls = itertools.count()

    def fails(real):
        def wrapped(*args, **kwargs):
            if next(calls) >= (
                0 if what == "shard" else 2 if call == "fsync" else 1
            ):  # a file and its folder are synced
                raise full
            return real(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        if call == "write":
            real_open = open

            class Full:
                def __init__(self, file):
                    self.file = file
                    self.write = fails(file.write)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    self.file.close()

                def __getattr__(self, name):
                    return getattr(self.file, name)

            def opened(path, mode="r", *args, **kwargs):
                file = real_open(path, mode, *args, **kwargs)
                return Full(file) if "w" in mode else file

            patch.setattr("builtins.open", opened)
        else:
            patch.setattr(os, call, fails(getattr(os, call)))
        with pytest.raises(
            OSError, match=r"no space left for .*shard-00001\.safetensors.*MiB.*finished shards are kept"
        ) as e:
            writer.write(1, rows(range(SHARD, 2 * SHARD)))
    assert e.value.errno == errno.ENOSPC
    after = contents(tmp_path)
    assert {k: v for k, v in after.items() if k in before} == before
    # With the shard written and its record not, the shard counts as missing.
    assert after.keys() - before.keys() <= ({"shard-00001.safetensors"} if what == "record" else set())
    assert [s for s, _ in writer.missing_shards()] == [1, 2, 3, 4]
    build(tmp_path)
    ConstructedSet.open(tmp_path)
