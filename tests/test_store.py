"""Constructed sets on disk: same bytes after any interruption, damage found and named, rounding inside the ball."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advfeat import L2, Linf
from advfeat.datasets import base, exchange, sources
from advfeat.datasets.folder import FolderSource
from advfeat.datasets.layout import FIELDS
from advfeat.datasets.store import ConstructedSet, SetWriter, quantise

N, SHARD, SHAPE, CLASSES = 23, 5, (2, 4, 3), 4


def manifest(**changes) -> dict:
    return {
        "recipe": {"kind": "perturb-towards-target", "name": "det", "eps": 0.5},
        "source": {"name": "digits", "split": "train", "fingerprint": "f" * 64},
        "model": {"fingerprint": "a" * 64},
        "seed": 0,
        "image_shape": SHAPE,
        "classes": ("a", "b", "c", "d"),
        "dtype": "float32",
        **changes,
    }


def rows(positions: range, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> dict:
    """What a build would make of these positions: a function of each position alone."""
    index = torch.arange(positions.start, positions.stop)
    images = torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(int(i))) for i in index])
    images = (images * 255).round().to(torch.uint8) if dtype == torch.uint8 else images.to(dtype)
    return {
        "images": images,
        "label": (index + 1) % CLASSES,
        "original_label": index % CLASSES,
        "source_index": index,
        "start_index": torch.where(index % 2 == 0, -1, index * 7),
        "target_success": index % 3 > 0,
        "objective": index.float() / 7,
        "distance": index.float().sqrt(),
    }


def build(out: Path, n: int = N, shard_size: int = SHARD, rank: int = 0, ranks: int = 1, **changes) -> SetWriter:
    writer = SetWriter(out, manifest(**changes), n, shard_size)
    dtype = getattr(torch, changes.get("dtype", "float32"))
    for shard, positions in writer.missing_shards(rank, ranks):
        writer.write(shard, rows(positions, dtype))
    writer.finish()
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- writing and reading


@given(n=st.integers(1, 30), shard_size=st.integers(1, 12), dtype=st.sampled_from(["float32", "float16", "uint8"]))
@settings(max_examples=25)
def test_what_was_written_is_read(tmp_path_factory, n, shard_size, dtype):
    out = tmp_path_factory.mktemp("set")
    build(out, n, shard_size, dtype=dtype)
    made, expected = ConstructedSet.open(out), rows(range(n), getattr(torch, dtype))
    assert len(made) == n and made.image_shape == SHAPE and made.classes == ("a", "b", "c", "d")
    assert torch.equal(made.images(), base.to_float(expected["images"]))
    for name, attribute in [("label", "labels"), ("original_label", "original_labels")]:
        assert torch.equal(getattr(made, attribute), expected[name])
    for name in FIELDS.keys() - {"label", "original_label"}:
        assert torch.equal(getattr(made, name), expected[name]), name
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    assert torch.equal(made.images(order), made.images()[order])
    assert torch.equal(made.subset(order[:1]).images(), made.images(order[:1]))
    assert sum(s["rows"] for s in made.manifest["shards"]) == n and made.manifest["complete"]


def test_a_set_is_a_source(tmp_path):
    build(tmp_path / "set")
    made = sources.load(tmp_path / "set")
    assert made.built_from == "digits" and made.split == "train"
    assert made.fingerprint == ConstructedSet.open(tmp_path / "set", verify=False).fingerprint
    assert made.shard_of(4) == "shard-00000.safetensors" and made.shard_of(5) == "shard-00001.safetensors"
    with pytest.raises(ValueError, match="was built from the train split of digits; it has no test split"):
        sources.load(tmp_path / "set", "test")
    build(tmp_path / "other", n=N - 1)
    assert ConstructedSet.open(tmp_path / "other").fingerprint != made.fingerprint


def test_images_are_the_callers_own(tmp_path):
    build(tmp_path)
    made = ConstructedSet.open(tmp_path)
    before = made.images()
    made.images().zero_()
    assert torch.equal(made.images(), before)
    ConstructedSet.open(tmp_path)  # nor were the files written to


def test_the_same_set_is_the_same_bytes(tmp_path):
    """In another process too, in another order of the shards, and with tensors of another layout."""
    build(tmp_path / "a")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_store, pathlib; "
    subprocess.run(
        [sys.executable, "-c", code + f"test_store.build(pathlib.Path({str(tmp_path / 'b')!r}))"], check=True
    )
    writer = SetWriter(tmp_path / "c", manifest(), N, SHARD)
    for shard, positions in reversed(writer.missing_shards()):
        tensors = rows(positions)
        tensors["images"] = tensors["images"].contiguous(memory_format=torch.channels_last)
        writer.write(shard, dict(reversed(tensors.items())))
    assert writer.finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_ranks_share_the_work_in_any_order(tmp_path):
    build(tmp_path / "alone")
    writers = [SetWriter(tmp_path / "shared", manifest(), N, SHARD) for _ in range(3)]
    assert [s for w, r in zip(writers, range(3), strict=True) for s, _ in w.missing_shards(r, 3)] == [0, 3, 1, 4, 2]
    for rank in (2, 0, 1):
        for shard, positions in writers[rank].missing_shards(rank, 3):
            writers[rank].write(shard, rows(positions))
        assert writers[rank].finish() == (rank == 1)
    assert writers[0].finish() and writers[0].missing_shards() == []
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")


def test_finish_waits_for_the_others(tmp_path):
    late = SetWriter(tmp_path, manifest(), N, SHARD)
    for shard, positions in late.missing_shards()[1:]:
        late.write(shard, rows(positions))
    began = time.monotonic()
    assert not late.finish(timeout=0.5) and time.monotonic() - began >= 0.5
    with pytest.raises(ValueError, match="is not finished"):
        ConstructedSet.open(tmp_path)
    late.write(0, rows(range(SHARD)))
    assert late.finish(timeout=5)
    ConstructedSet.open(tmp_path)


# --- going on


def test_a_finished_set_is_left_alone(tmp_path):
    build(tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != "manifest.json"}
    writer = build(tmp_path)
    assert writer.missing_shards() == [] and not writer.damaged
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != "manifest.json"} == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        (
            {"recipe": {"kind": "perturb-towards-target", "name": "det", "eps": 0.25}},
            "recipe.eps is 0.5 there, 0.25 here",
        ),
        ({"model": {"fingerprint": "b" * 64}}, 'model.fingerprint is "aaa'),
        ({"n": N + 1}, "n is 23 there, 24 here"),
        ({"shard_size": 6}, "shard_size is 5 there, 6 here"),
        ({"dtype": "uint8"}, 'dtype is "float32" there, "uint8" here'),
        ({"more": [1]}, r"more is null there, \[1\] here"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("manifest_lost", [False, True])
def test_another_set_is_never_mixed_in(tmp_path, changes, said, manifest_lost):
    build(tmp_path)
    if manifest_lost:
        (tmp_path / "manifest.json").unlink()
        said = "holds no manifest.json, but the shards of another set: take another folder"
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=said):
        build(tmp_path, **changes)
    assert contents(tmp_path) == before


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and holds no manifest\.json, but thesis\.tex"):
        build(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(ValueError, match="should be a folder for the set, but is a file"):
        build(tmp_path / "thesis.tex")


_KILLED = """
import sys; sys.path.insert(0, {here!r})
import pathlib, test_store
print("started", flush=True)
test_store.build(pathlib.Path({out!r}), n=400, shard_size=2)
print("finished", flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, seed):
    """SIGKILL again and again, at random moments, until a run comes through."""
    build(tmp_path / "whole", n=400, shard_size=2)
    expected, out = contents(tmp_path / "whole"), tmp_path / "killed"
    moments, kills = random.Random(seed), 0
    code = _KILLED.format(here=str(Path(__file__).parent), out=str(out))
    for attempt in range(40):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "started\n"
            # The time grows, so that a slow machine comes through as well.
            time.sleep(moments.uniform(0.0, 0.1 * (1 + attempt)))
            process.send_signal(signal.SIGKILL)
            finished = "finished" in process.stdout.read()
        if out.is_dir():
            for shard in out.glob("shard-*.safetensors"):  # never half a file under its own name
                assert shard.read_bytes() == expected[shard.name]
            if not finished and any(out.iterdir()):
                kills += 1
                with pytest.raises(
                    (ValueError, FileNotFoundError), match=r"not finished|manifest\.json does not exist"
                ):
                    if contents(out).get("manifest.json") == expected["manifest.json"]:
                        raise ValueError("not finished")  # killed between the last write and saying so
                    ConstructedSet.open(out)
        if finished:
            break
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no shard may be found damaged
        build(out, n=400, shard_size=2)
    assert kills >= 2, "no run was killed halfway: nothing was tested"
    assert contents(out) == expected


def test_leftovers_of_killed_writers_go(tmp_path):
    writer = SetWriter(tmp_path, manifest(), N, SHARD)
    for name in (".shard-00000.safetensors.123.tmp", ".shard-00003.json.9.tmp", ".manifest.json.77.tmp"):
        (tmp_path / name).write_bytes(b"half")
    writer.write(0, rows(range(SHARD)))
    assert not (tmp_path / ".shard-00000.safetensors.123.tmp").exists()
    assert (tmp_path / ".shard-00003.json.9.tmp").exists()  # perhaps of another process, at work on it
    build(tmp_path)
    assert not list(tmp_path.glob(".*"))


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


# --- what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "tensors should be distance, images, label"),
        ({"extra": torch.zeros(SHARD)}, "got distance, extra, images"),
        ({"images": torch.zeros(SHARD, 2, 4, 4)}, r"images should be torch.float32 of shape \(5, 2, 4, 3\)"),
        ({"images": torch.zeros(SHARD, *SHAPE).half()}, "images should be torch.float32"),
        ({"label": torch.zeros(SHARD)}, "label should be torch.int64"),
        ({"label": torch.full((SHARD,), 4)}, r"\(label\)' should be in 0 .. 3"),
        ({"original_label": torch.full((SHARD,), -1)}, r"\(original_label\)' should be in 0 .. 3"),
        ({"distance": torch.full((SHARD,), math.nan)}, "distance should be finite, got nan for sample 5"),
        ({"objective": torch.tensor([0, 0, math.inf, 0, 0])}, "objective should be finite, got inf for sample 7"),
        ({"images": torch.full((SHARD, *SHAPE), math.nan)}, "sample 5 holds NaN"),
        ({"images": torch.full((SHARD, *SHAPE), 1.25)}, r"lie in \[0, 1\]: sample 5"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_tensors_are_refused_and_nothing_is_written(tmp_path, change, said):
    writer = SetWriter(tmp_path, manifest(), N, SHARD)
    before = contents(tmp_path)
    tensors = {k: v for k, v in {**rows(range(SHARD, 2 * SHARD)), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=said):
        writer.write(1, tensors)
    assert contents(tmp_path) == before


def test_wrong_settings_are_refused(tmp_path):
    for changes, said in [
        ({"n": 0}, "n and shard_size should be at least 1"),
        ({"shard_size": 0}, "n and shard_size should be at least 1"),
        ({"dtype": "bfloat16"}, "dtype should be one of float32, float16, uint8"),
    ]:
        with pytest.raises(ValueError, match=said):
            build(tmp_path / "out", **changes)
    lacking = manifest()
    del lacking["model"], lacking["seed"]
    with pytest.raises(ValueError, match="model, seed missing"):
        SetWriter(tmp_path / "out", lacking, N, SHARD)
    assert not (tmp_path / "out").exists()
    writer = SetWriter(tmp_path / "out", manifest(eps=math.inf), N, SHARD)
    assert json.loads((writer.out / "manifest.json").read_text())["eps"] == "inf"
    with pytest.raises(IndexError, match="shard should be in 0 .. 4, got 5"):
        writer.write(5, rows(range(3)))


# --- rounding inside the ball


def _case(seed: int, eps: float, norm: str, on_lattice: bool, shape=(4, 3, 6, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    """x0, and x anywhere in the ball, most rows on its surface, as an attack leaves them."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(shape, generator=g)
    x0[0, 0] = torch.rand(x0[0, 0].shape, generator=g).round()  # corners of the box
    if on_lattice:
        x0 = (x0 * 255).round() / 255
    d = torch.randn(shape, generator=g)
    if norm == "linf":
        d = d.clamp(-1, 1) * eps
    else:
        length = eps * torch.rand(shape[0], generator=g).mul(4).clamp(max=1)
        d = d * (length / d.flatten(1).norm(dim=1).clamp_min(1e-9)).view(-1, 1, 1, 1)
    threat = (Linf if norm == "linf" else L2)(eps)
    return x0, threat.project_((x0 + d).clamp(0, 1), x0)


def _distance(q: torch.Tensor, x0: torch.Tensor, norm: str) -> torch.Tensor:
    d = (q.double() - x0.double()).flatten(1)
    return d.abs().amax(1) if norm == "linf" else d.norm(dim=1)


EPS = st.sampled_from([0.0, 1 / 255, 0.004, 2 / 255, 8 / 255, 0.1, 0.5, 1.5])


@given(seed=st.integers(0, 10_000), eps=EPS, norm=st.sampled_from(["linf", "l2"]))
def test_uint8_stays_in_the_ball_within_a_level(seed, eps, norm):
    x0, x = _case(seed, eps, norm, on_lattice=True)
    stored = quantise(x, x0, (Linf if norm == "linf" else L2)(eps), "uint8")
    assert stored.dtype == torch.uint8
    q = stored.double() / 255
    assert float((_distance(q, x0, norm) - eps).max()) <= 1e-6
    moved = (q - x.double()).abs() * 255
    assert float(moved.max()) < 1 + 1e-4
    # Rounding to nearest wherever that was allowed.
    nearest = (x.double() * 255).round() / 255
    inside = _distance(nearest, x0, norm) <= eps
    assert torch.equal(q[inside], nearest[inside])
    if norm == "linf":
        allowed = (nearest - x0.double()).abs() <= eps - 1e-6
        assert torch.equal(q[allowed], nearest[allowed])


@given(seed=st.integers(0, 10_000), eps=st.sampled_from([8 / 255, 0.1, 0.5, 1.5]), norm=st.sampled_from(["linf", "l2"]))
def test_uint8_stays_in_the_ball_around_any_centre(seed, eps, norm):
    """Digits are k / 16, planted images anything: then the centre itself may not be stored, but a neighbour may."""
    x0, x = _case(seed, eps, norm, on_lattice=False)
    q = quantise(x, x0, (Linf if norm == "linf" else L2)(eps)).double() / 255
    assert float((_distance(q, x0, norm) - eps).max()) <= 1e-6
    if norm == "linf":
        assert float((q - x.double()).abs().max()) * 255 < 1 + 1e-4


@given(seed=st.integers(0, 10_000), eps=EPS, norm=st.sampled_from(["linf", "l2"]))
def test_float16_stays_in_the_ball(seed, eps, norm):
    x0, x = _case(seed, eps, norm, on_lattice=True)
    x0 = x0.half().float()
    x = (Linf if norm == "linf" else L2)(eps).project_(x, x0)
    stored = quantise(x, x0, (Linf if norm == "linf" else L2)(eps), "float16")
    assert stored.dtype == torch.float16 and bool(((stored >= 0) & (stored <= 1)).all())
    assert float((_distance(stored, x0, norm) - eps).max()) <= 1e-6
    assert float((stored.double() - x.double()).abs().max()) < 2**-11 * 1.01  # a step of float16 just below 1


def test_no_more_values_give_way_than_have_to():
    """Rounding every value towards x0 would shorten the perturbation much more."""
    x0, x = _case(3, 0.5, "l2", on_lattice=True, shape=(20, 3, 32, 32))
    x = L2(0.5).project_(x0 + (x - x0) * 100, x0)
    q = quantise(x, x0, L2(0.5)).double() / 255
    kept = _distance(q, x0, "l2") / _distance(x, x0, "l2")
    assert float(kept.min()) > 0.999 and float(_distance(q, x0, "l2").max()) <= 0.5 + 1e-6
    towards = torch.where(x > x0, (x.double() * 255).floor(), (x.double() * 255).ceil()) / 255
    assert float((_distance(towards, x0, "l2") / _distance(x, x0, "l2")).max()) < 0.9


def test_rounding_to_nearest_would_leave_the_ball():
    """What quantise is for: without it these tests would not fail."""
    x0, x = _case(0, 0.5, "l2", on_lattice=True, shape=(20, 3, 32, 32))
    x = L2(0.5).project_(x0 + (x - x0) * 100, x0)
    assert float(_distance((x.double() * 255).round() / 255, x0, "l2").max()) > 0.501


def test_each_row_has_its_own_radius_and_each_channel_its_own_box():
    x0, x = _case(1, 0.1, "linf", on_lattice=True)
    eps, lo, hi = torch.tensor([0.1, 0.0, 0.05, 1 / 255]), torch.tensor([0.2, 0.0, 0.5]), torch.tensor([0.6, 1.0, 0.9])
    x0 = torch.maximum(torch.minimum(x0, hi.view(3, 1, 1)), lo.view(3, 1, 1)).mul(255).round().div(255)
    threat = Linf(eps, lo, hi)
    q = quantise(threat.project_(x, x0), x0, threat).double() / 255
    assert bool((_distance(q, x0, "linf") <= eps.double() + 1e-6).all())
    assert torch.equal(q[1], (x0[1].double() * 255).round() / 255)
    assert bool((q >= lo.double().view(3, 1, 1) - 1e-6).all()) and bool((q <= hi.double().view(3, 1, 1) + 1e-6).all())


def test_without_a_ball_it_is_rounding_to_nearest():
    x = torch.rand(5, 3, 4, 4)
    assert torch.equal(quantise(x, torch.rand(5, 3, 4, 4), L2(math.inf)), (x.double() * 255).round().to(torch.uint8))
    assert torch.equal(quantise(x, x, L2(math.inf), "float16"), x.half())
    assert quantise(x, x, L2(0.0), "float32") is x
    assert quantise(x[:0], x[:0], Linf(0.1)).shape == (0, 3, 4, 4)


def test_what_cannot_be_rounded_is_refused():
    x = torch.rand(2, 3, 4, 4)
    for norm in (Linf, L2):
        with pytest.raises(
            ValueError, match=r"no uint8 image was found within .* 0 of x0 in row 0.*store the set as float32"
        ):
            quantise(x, x, norm(0.0))
    with pytest.raises(ValueError, match=r"x0 should have the shape of images \(2, 3, 4, 4\)"):
        quantise(x, x[:1], L2(0.5))
    with pytest.raises(ValueError, match="dtype should be one of float32, float16, uint8, got 'int8'"):
        quantise(x, x, L2(0.5), "int8")
    with pytest.raises(ValueError, match="sample 1 holds NaN"):
        quantise(x.index_fill(0, torch.tensor([1]), math.nan), x, L2(0.5))
    with pytest.raises(ValueError, match="sample 0 holds values from"):
        quantise(x - 1.5, x, L2(9.0))


# --- to and from other programs


def test_lists_of_the_paper_s_authors(tmp_path):
    build(tmp_path / "set")
    made = ConstructedSet.open(tmp_path / "set")
    exchange.export_lists(made, tmp_path / "lists")
    # As their users read them.
    images = torch.cat(torch.load(tmp_path / "lists" / "CIFAR_ims", map_location="cpu", weights_only=True))
    assert images.dtype == torch.float32 and torch.equal(images, made.images())
    back = exchange.import_lists(tmp_path / "lists", classes="abcd")
    assert torch.equal(back.images(), made.images()) and torch.equal(back.labels, made.labels)


def test_their_lists_in_batches_of_any_size(tmp_path):
    images, labels = torch.rand(10, 3, 32, 32), torch.arange(10)
    torch.save(list(images.split(4)), tmp_path / "CIFAR_ims")
    torch.save(list(labels.split(3)), tmp_path / "CIFAR_lab")
    source = exchange.import_lists(tmp_path)
    assert source.classes[3] == "cat" and torch.equal(source.images(), images) and torch.equal(source.labels, labels)
    # As torch 1.1 saved them, before the zip format.
    torch.save(list(images.split(4)), tmp_path / "CIFAR_ims", _use_new_zipfile_serialization=False)
    assert torch.equal(exchange.import_lists(tmp_path).images(), images)


class _Evil:
    def __reduce__(self):
        return os.mkdir, (_Evil.mark,)

    mark = ""


def test_imported_lists_run_nothing(tmp_path):
    _Evil.mark = str(tmp_path / "was-run")
    torch.save([_Evil()], tmp_path / "CIFAR_ims")
    torch.save([torch.zeros(1, dtype=torch.int64)], tmp_path / "CIFAR_lab")
    with pytest.raises(ValueError, match="CIFAR_ims is damaged, or holds more than tensors"):
        exchange.import_lists(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_wrong_lists_are_named(tmp_path):
    images, labels = tmp_path / "CIFAR_ims", tmp_path / "CIFAR_lab"
    with pytest.raises(FileNotFoundError, match=r"CIFAR_ims is missing\. .* is empty"):
        exchange.import_lists(tmp_path)
    good, good_labels = [torch.rand(4, 3, 32, 32)], [torch.arange(4)]
    for ims, lab, said in [
        ({"a": 1}, good_labels, "CIFAR_ims should hold a list of tensors, got dict"),
        ([], good_labels, "CIFAR_ims should hold a list of tensors"),
        ([torch.rand(4, 3, 8, 8), *good], good_labels, "CIFAR_ims should hold batches of one shape"),
        ([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], good_labels, "CIFAR_ims should hold float images"),
        (good, [torch.arange(3)], "CIFAR_lab should hold 4 integers"),
        (good, [torch.rand(4)], "CIFAR_lab should hold 4 integers"),
        (good, [torch.arange(4) + 8], r"0 .. 9 for 10 classes: sample 2 has label 10"),
        ([good[0] * 255], good_labels, r"lie in \[0, 1\]: sample 0"),
    ]:
        torch.save(ims, images)
        torch.save(lab, labels)
        with pytest.raises(ValueError, match=said):
            exchange.import_lists(tmp_path)
    torch.save(good, images)
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(ValueError, match="CIFAR_ims is damaged"):
        exchange.import_lists(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_images_comes_back_rounded(tmp_path, channels):
    pytest.importorskip("PIL")
    x = torch.rand(9, channels, 6, 5, generator=torch.Generator().manual_seed(0))
    source = base.ArraySource(
        x, torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0]), ("zebra", "ape/monkey", "cat"), split="test"
    )
    exchange.export_folder(source, tmp_path)
    back = FolderSource(tmp_path, "test")
    assert back.classes == ("0_zebra", "1_ape_monkey", "2_cat") and back.image_shape == (channels, 6, 5)
    order = torch.argsort(source.labels, stable=True)
    assert torch.equal(back.labels, source.labels[order])
    assert torch.equal(back.images() * 255, (x[order] * 255).round())
    lines = (tmp_path / "test" / "metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,label" and lines[1] == "2_cat/00000.png,2" and len(lines) == 10


def test_folder_of_a_constructed_set_tells_what_is_known(tmp_path):
    pytest.importorskip("PIL")
    build(tmp_path / "set", image_shape=(3, 4, 4)) if False else None
    writer = SetWriter(tmp_path / "set", manifest(image_shape=(1, 4, 4)), 4, 4)
    writer.write(0, rows(range(4), shape=(1, 4, 4)))
    writer.finish()
    exchange.export_folder(ConstructedSet.open(tmp_path / "set"), tmp_path / "images")
    lines = (tmp_path / "images" / "train" / "metadata.csv").read_text().splitlines()
    assert lines[0] == "file_name,label,original_labels,source_index,start_index,target_success"
    assert lines[2] == "c/00001.png,2,1,1,7,True"
    build(tmp_path / "two-channels")
    with pytest.raises(ValueError, match="an image file has 1 or 3 channels, .* has 2"):
        exchange.export_folder(ConstructedSet.open(tmp_path / "two-channels"), tmp_path / "images")
