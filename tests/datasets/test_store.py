"""Constructed sets on disk: what is written is read, interrupted builds go on, what does not fit is refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.constructed_set import SHAPE, SHARD, N, build, contents, manifest, rows

from advfeat import _locks
from advfeat.datasets import base, sources
from advfeat.datasets.layout import FIELDS
from advfeat.datasets.store import ConstructedSet, SetWriter

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
    with pytest.raises(
        ValueError, match="split should be train for .*, which was built from that of digits, got 'test'"
    ):
        sources.load(tmp_path / "set", "test")
    build(tmp_path / "other", n=N - 1)
    assert ConstructedSet.open(tmp_path / "other").fingerprint != made.fingerprint


def test_links_in_a_set_s_folder_are_replaced(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("of somebody else")
    (tmp_path / "set").mkdir()
    for name in ("shard-00000.safetensors", "shard-00001.json"):
        (tmp_path / "set" / name).symlink_to(elsewhere)
    build(tmp_path / "set")
    assert elsewhere.read_text() == "of somebody else"
    assert not any(file.is_symlink() for file in (tmp_path / "set").iterdir())
    ConstructedSet.open(tmp_path / "set")


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
    code = "import sys, pathlib; from support import constructed_set; constructed_set.build(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path / "b"], check=True, cwd=Path(__file__).parents[1])
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
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    writer = build(tmp_path)
    assert writer.missing_shards() == [] and not writer.damaged
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


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
        said = "holds shards of another set and no manifest.json: take another folder"
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=said):
        build(tmp_path, **changes)
    assert contents(tmp_path) == before


def test_a_shard_of_another_set_does_not_count(tmp_path):
    build(tmp_path / "a")
    build(tmp_path / "b", seed=1)
    expected = contents(tmp_path / "a")
    for name in ("shard-00001.safetensors", "shard-00001.json"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    assert [s for s, _ in SetWriter(tmp_path / "a", manifest(), N, SHARD).missing_shards()] == [1]
    build(tmp_path / "a")
    assert contents(tmp_path / "a") == expected


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex and no manifest\.json"):
        build(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(ValueError, match="should be a folder, but is a file"):
        build(tmp_path / "thesis.tex")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / ".DS_Store").touch()  # a file browser has looked at it
    build(tmp_path / "own")


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path):
    SetWriter(tmp_path, manifest(), N, SHARD)
    dead = tmp_path / f".shard-00003.json.{_locks.place()}-{2**22 - 1}-1-00000000.tmp"
    living = tmp_path / f".shard-00000.safetensors.{_locks.Owner.new()}.tmp"
    for path in (dead, living):
        path.write_bytes(b"half")
    build(tmp_path)
    assert not dead.exists() and living.exists()


def test_an_objective_that_is_not_finite_is_told_and_stored(tmp_path):
    """An error would come back at every attempt to go on."""
    writer = SetWriter(tmp_path, manifest(), SHARD, SHARD)
    tensors = rows(range(SHARD)) | {"objective": torch.tensor([0, math.nan, math.inf, 0, 0])}
    with pytest.warns(
        UserWarning, match="objective should be finite, got nan for sample 1 .2 of the 5 samples from 0 on.: the source"
    ):
        writer.write(0, tensors)
    assert writer.finish()
    assert torch.equal(ConstructedSet.open(tmp_path).objective.isfinite(), tensors["objective"].isfinite())


def test_a_folder_that_goes_away_is_not_made_again_in_part(tmp_path):
    writer = SetWriter(tmp_path / "set", manifest(), N, SHARD)
    writer.write(0, rows(range(SHARD)))
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(FileNotFoundError, match=r"set/manifest\.json was removed during the build"):
        writer.write(1, rows(range(SHARD, 2 * SHARD)))
    assert not (tmp_path / "set").exists()


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
