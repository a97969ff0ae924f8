"""Constructed sets and what happens to files: kills, cuts, flipped bits, a full disk."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.constructed_set import SHARD, N, build, contents, manifest, rows

from advfeat.datasets.store import ConstructedSet, SetWriter

# --- SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, seed):
    build(tmp_path / "whole", n=200, shard_size=2)
    code = (
        "import sys, pathlib; from support import constructed_set as c; "
        "print(c.kill_until_finished(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), 200, 2))"
    )
    command = [sys.executable, "-c", code, tmp_path / "killed", tmp_path / "whole", str(seed)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
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
    with pytest.warns(UserWarning, match=rf"{file.name} (is truncated or altered|was altered).*rebuilt"):
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
        with pytest.warns(UserWarning, match=f"{lost} is missing; it will be rebuilt"):
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
    with pytest.warns(UserWarning, match=r"manifest\.json.*rewritten"):
        build(tmp_path)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "should be of format 'advfeat-set', version 1, got 'other'"),
        ({"version": 2}, "version 2"),
        ({"complete": False}, "is not finished; run the build again"),
        ({"n": 24}, r"shards\[4\].rows should be 4, got 3"),
        ({"n": 26}, "shards should be 6 for n=26 and shard_size=5, got 5"),
        ({"n": "23"}, 'n should be an integer from 1, got "23"'),
        ({"n": -23}, "n should be an integer from 1, got -23"),
        ({"n": 0}, "n should be an integer from 1, got 0"),
        ({"shard_size": 0}, "shard_size should be an integer from 1"),
        ({"shard_size": 6}, "shards should be 4 for n=23 and shard_size=6"),
        ({"classes": "abcd"}, 'classes should be a list, got "abcd"'),
        ({"classes": ["a", 2, "c", "d"]}, r"classes\[1\] should be a text, got 2"),
        ({"image_shape": [2, -4, 3]}, r"image_shape\[1\] should be an integer from 1, got -4"),
        ({"image_shape": [2, 12]}, r"image_shape should be \[C, H, W\]"),
        (
            {"source": {"name": ["digits"]}},
            r"source should be|source.name should be a text or null|source.name should be",
        ),
        ({"classes": ["a", "b", "c"]}, r"0 .. 2 for 3 classes: sample 2 has label 3"),
        ({"dtype": "uint8"}, r"does not fit manifest\.json: images should be \(torch.uint8.*got \(torch.float32"),
        ({"dtype": "int4"}, "is damaged: dtype should be float32, float16, uint8, got 'int4'"),
        ({"image_shape": [2, 3, 4]}, "images should be"),
        ({"shards": [{"file": "shard-00000.safetensors"}]}, r"shards\[0\].rows is missing"),
        ({"shards": None}, "shards should be a list, got null"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_manifest_that_does_not_fit_is_named(tmp_path, change, said):
    build(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=said):
        ConstructedSet.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.__setitem__(1, s[0]), r"shards\[1\].file should be 'shard-00001.safetensors', got 'shard-00000"),
        (lambda s: s.reverse(), r"shards\[0\].file should be 'shard-00000.safetensors', got 'shard-00004"),
        (lambda s: s.append(s[0]), "shards should be 5 for n=23 and shard_size=5, got 6"),
        (lambda s: s.pop(), "shards should be 5 for n=23 and shard_size=5, got 4"),
        (lambda s: s[0].update(rows=4), r"shards\[0\].rows should be 5, got 4"),
        (lambda s: s[0].update(rows=-5), r"shards\[0\].rows should be an integer from 1, got -5"),
        (lambda s: s[0].update(rows=True), r"shards\[0\].rows should be an integer from 1, got true"),
        (lambda s: s[2].update(sha256="0" * 63), r"shards\[2\].sha256 should be 64 hexadecimal digits"),
        (lambda s: s[2].update(sha256=7), r"shards\[2\].sha256 should be 64 hexadecimal digits, got 7"),
        (lambda s: s[0].update(file="../b/shard-00000.safetensors"), r"shards\[0\].file should be 'shard-00000"),
        (lambda s: s[0].update(file="/tmp/shard-00000.safetensors"), r"shards\[0\].file should be 'shard-00000"),
        (lambda s: s[0].update(file="."), r"shards\[0\].file should be 'shard-00000"),
        (lambda s: s[0].update(file=None), r"shards\[0\].file should be a text, got null"),
        (lambda s: s.__setitem__(0, ["shard"]), r"shards\[0\] should be an object"),
    ],
    ids=range(14),
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_manifest_names_each_shard_once_and_in_its_own_folder(tmp_path, change, said, verify):
    build(tmp_path / "a")
    build(tmp_path / "b")
    path = tmp_path / "a" / "manifest.json"
    content = json.loads(path.read_text())
    change(content["shards"])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: {said}"):
        ConstructedSet.open(tmp_path / "a", verify=verify)


def _header(file: Path) -> tuple[dict, bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h["label"].update(dtype="I128"), "label should be of F32, F16, U8, I64, BOOL, got I128"),
        (lambda h: h["label"].update(shape=[6]), "label should lie at"),
        (lambda h: h["label"].update(shape=[-5]), r"label.shape\[0\] should be an integer from 0"),
        (lambda h: h["label"].update(shape=[2**40, 2**40]), "label should lie at"),
        (lambda h: h["label"].update(data_offsets=h["original_label"]["data_offsets"]), "should lie at"),
        (lambda h: h["label"].update(data_offsets=[0]), "should lie at"),
        (lambda h: h["label"].update(data_offsets="x"), "data_offsets should be a list"),
        (lambda h: h.pop("images"), "should lie at"),
        (lambda h: h.pop("label"), "should lie at"),
        (lambda h: h.update(label=3), "label should be an object, got 3"),
        (lambda h: h["images"].update(shape=[5, 24]), r"does not fit manifest\.json: images should be"),
    ],
    ids=range(11),
)
def test_a_shard_whose_header_was_altered_is_named(tmp_path, change, said):
    build(tmp_path)
    file = tmp_path / "shard-00001.safetensors"
    header, body = _header(file)
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    with pytest.raises(ValueError, match=rf"shard-00001\.safetensors.*{said}.*run the build again"):
        ConstructedSet.open(tmp_path, verify=False)


@pytest.mark.parametrize("head", [b"", b"1234", b"\xff" * 8, (400_000).to_bytes(8, "little") + b"[" * 400_000])
def test_a_shard_without_a_header_is_named(tmp_path, head):
    build(tmp_path)
    (tmp_path / "shard-00001.safetensors").write_bytes(head)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is truncated or altered: .*run the build again"):
        ConstructedSet.open(tmp_path, verify=False)


def test_values_of_a_shard_that_cannot_be_are_named(tmp_path):
    build(tmp_path)
    file = tmp_path / "shard-00001.safetensors"
    whole = file.read_bytes()
    header, body = _header(file)
    for name, values, said in (
        ("target_success", b"\x02", "target_success should hold 0 or 1"),
        ("source_index", (-1).to_bytes(8, "little", signed=True), "source_index should be at least 0, got -1"),
        ("start_index", (-2).to_bytes(8, "little", signed=True), "start_index should be at least -1, got -2"),
        ("label", (4).to_bytes(8, "little"), r"\(label\)' should be in 0 .. 3"),
        ("distance", b"\x00\x00\xc0\x7f", "distance should be finite"),
    ):
        at = len(whole) - len(body) + header[name]["data_offsets"][0]
        file.write_bytes(whole[:at] + values + whole[at + len(values) :])
        with pytest.raises(ValueError, match=said):
            ConstructedSet.open(tmp_path, verify=False)


@pytest.mark.slow
def test_a_shard_that_shrinks_while_it_is_open_is_an_error(tmp_path):
    """Under a memory map it ended the process, by SIGBUS."""
    build(tmp_path, n=4000, shard_size=4000)
    code = (
        "import os, sys; from advfeat.datasets.store import ConstructedSet\n"
        "made = ConstructedSet.open(sys.argv[1], verify=False)\n"
        "os.truncate(sys.argv[1] + '/shard-00000.safetensors', 5000)\n"
        "try: made.images([3999, 0])\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done
    assert "shard-00000.safetensors is truncated: it became shorter after it was opened" in done.stdout


def test_a_set_may_lie_in_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    build(folder)
    made = ConstructedSet.open(folder)
    assert made.images([0]).shape == (1, 2, 4, 3) and repr(made).isascii()
    assert build(folder).missing_shards() == []


def test_a_set_can_be_sent_to_another_process(tmp_path):
    build(tmp_path)
    made = ConstructedSet.open(tmp_path)
    assert len(pickle.dumps(made)) < 20_000
    # The same state, taken apart and put together as a process does that gets it; nothing here is ever unpickled.
    assert copy.deepcopy(made).images([22]).equal(made.images([22]))


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
