"""Building a constructed set: what is in it, and that it survives kills, damage, full disks and wrong arguments."""

import dataclasses
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from advfeat import PGD, Converged
from advfeat.datasets import sources
from advfeat.datasets.building import build
from advfeat.datasets.recipes import (
    MatchRepresentation,
    PerturbTowardsTarget,
    noise_start,
)
from advfeat.datasets.store import ConstructedSet
from advfeat.models import adapt, create
from advfeat.training import TrainConfig, train

DET = PerturbTowardsTarget("det", eps=1.5, steps=5, step_size=0.5)
RAND = PerturbTowardsTarget("rand", eps=1.5, steps=5, step_size=0.5)
MATCH = MatchRepresentation("robust", steps=8, step_size=0.3)


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", limit=90)


@pytest.fixture(scope="module")
def model():
    """A little trained: the classes of a fresh network hardly depend on the image."""
    config = TrainConfig(epochs=4, batch_size=32, lr=0.1, width=4, eval_every=0)
    model = train(config, sources.load("digits", limit=600)).model
    model.trained_with = None  # these tests make every kind of set with it
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_det_set_holds_perturbed_images_with_the_next_label(tmp_path, digits, model):
    made = build(DET, model, digits, tmp_path / "det", batch_size=32, shard_size=40)
    assert len(made) == len(digits) and made.built_from == "digits"
    assert torch.equal(made.labels, (digits.labels + 1) % 10)
    assert torch.equal(made.original_labels, digits.labels)
    assert torch.equal(made.source_index, torch.arange(90)) and bool((made.start_index == -1).all())
    distance = (made.images() - digits.images()).flatten(1).double().norm(dim=1)
    assert distance.max() <= 1.5 + 1e-5 and distance.mean() > 0.5
    torch.testing.assert_close(made.distance.double(), distance, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        said = model(made.images()).argmax(1)
    assert torch.equal(made.target_success, said == made.labels)
    assert made.target_success.float().mean() > 0.5  # the attack worked


def test_rand_labels_do_not_depend_on_batches(tmp_path, digits, model):
    made = build(RAND, model, digits, tmp_path / "a", batch_size=32, shard_size=40)
    other = build(RAND, model, digits, tmp_path / "b", batch_size=7, shard_size=90)
    assert torch.equal(made.labels, other.labels)
    torch.testing.assert_close(made.images(), other.images(), rtol=0, atol=1e-4)
    reseeded = build(RAND, model, digits, tmp_path / "c", seed=1, batch_size=32, shard_size=40)
    assert not torch.equal(made.labels, reseeded.labels)


@pytest.mark.slow
def test_matching_that_stops_when_it_has_converged(tmp_path, digits, model):
    """The batch stays full within a shard, and each sample is the plain loop's; nearly as close in fewer passes."""
    recipe = MatchRepresentation("robust", steps=120, step_size=0.1)
    early = dataclasses.replace(recipe, stop=Converged(10, 0.02))
    made = build(early, model, digits, tmp_path / "a", batch_size=16, shard_size=40)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["attack"]["stop"] == manifest["recipe"]["stop"] == {"patience": 10, "tolerance": 0.02}
    with torch.no_grad():
        target = model.eval().representation(digits.images())
    alone = early.attack().run(model, digits.images(made.start_index), target)
    # a sample that ends a step sooner or later by rounding is off by less than that step; how many do is the machine's
    steps = (alone.x_adv - made.images()).flatten(1).norm(dim=1)
    assert (steps < 1e-3).float().mean() > 0.8 and steps.max() < 1
    whole = build(recipe, model, digits, tmp_path / "b", batch_size=16, shard_size=40)
    assert alone.samples_forwarded < 0.8 * 120 * len(digits)
    assert made.objective.mean() < 1.15 * whole.objective.mean()
    again = build(early, model, digits, tmp_path / "c", batch_size=16, shard_size=40)
    assert torch.equal(again.images(), made.images())


@pytest.mark.parametrize("start", ["image", "noise"])
def test_matched_images_have_the_representation_of_the_labelled_image(tmp_path, digits, model, start):
    recipe = MatchRepresentation("robust", steps=60, step_size=0.2, start=start)
    made = build(recipe, model, digits, tmp_path / "set", batch_size=45)
    assert torch.equal(made.labels, digits.labels)
    with torch.no_grad():
        wanted = model.representation(digits.images())
        got = model.representation(made.images())
        if start == "image":
            starts = digits.images(made.start_index)
            assert not (made.start_index == made.source_index).any()
        else:
            starts = noise_start(digits.images(), 0, torch.arange(90))
            assert bool((made.start_index == -1).all())
        before = model.representation(starts)
    relative = (got - wanted).norm(dim=1) / wanted.norm(dim=1)
    torch.testing.assert_close(made.objective, relative, rtol=1e-4, atol=1e-5)
    assert relative.mean() < 0.5 * ((before - wanted).norm(dim=1) / wanted.norm(dim=1)).mean()
    moved = (made.images() - starts).flatten(1).norm(dim=1)
    torch.testing.assert_close(made.distance, moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_stored_images_stay_in_the_ball_and_are_what_is_recorded(tmp_path, digits, model, dtype):
    made = build(DET, model, digits, tmp_path / dtype, dtype=dtype)
    distance = (made.images().double() - digits.images().double()).flatten(1).norm(dim=1)
    assert distance.max() <= 1.5 + 1e-5
    torch.testing.assert_close(made.distance.double(), distance, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(made.target_success, model(made.images()).argmax(1) == made.labels)


@pytest.mark.parametrize("recipe", [DET, dataclasses.replace(MATCH, steps=60, stop=Converged(4, 0.02))])
def test_interrupted_builds_end_with_the_same_bytes(tmp_path, digits, model, recipe):
    build(recipe, model, digits, tmp_path / "whole", batch_size=10, shard_size=20)
    rng = random.Random(0)

    def interrupting(done, total):
        if rng.random() < 0.25 and done:
            raise KeyboardInterrupt

    for _ in range(40):
        try:
            build(recipe, model, digits, tmp_path / "broken", batch_size=10, shard_size=20, progress=interrupting)
            break
        except KeyboardInterrupt:
            continue
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_one_run_makes_all_shards_but_under_a_stop_rule_each_has_its_own(tmp_path, digits, model, monkeypatch):
    """So that one graph serves the whole set; and so that the last bits of a shard do not depend on the others."""
    runs = []
    over = PGD.over
    monkeypatch.setattr(PGD, "over", lambda *arguments: runs.append(1) or over(*arguments))
    for recipe, expected in ((MATCH, 1), (dataclasses.replace(MATCH, stop=Converged(4)), 5)):
        runs.clear()
        build(recipe, model, digits, tmp_path / str(expected), batch_size=10, shard_size=20)
        assert len(runs) == expected


def test_who_stops_a_build_at_a_whole_shard_has_it(tmp_path, digits, model):
    def stop(done, total):
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(DET, model, digits, tmp_path, batch_size=10, shard_size=20, progress=stop)
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == [
        f"shard-0000{i}.safetensors" for i in (0, 1)
    ]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from advfeat.datasets import sources
from advfeat.datasets.building import build
from advfeat.datasets.recipes import PerturbTowardsTarget
from advfeat.models import adapt, create
model = create("small-convnet", 10, (1, 8, 8), width=4, seed=1).eval()
recipe = PerturbTowardsTarget("rand", eps=1.5, steps=30, step_size=0.2)
build(recipe, model, sources.load("digits", limit=300), sys.argv[1], batch_size=10, shard_size=10)
"""


def _start(folder, *arguments, code=SCRIPT, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *arguments],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the script builds undisturbed."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    _finish(_start(folder))
    return folder


@pytest.mark.slow
def test_sigkill_at_random_moments_gives_the_same_bytes(tmp_path, whole):
    killed = tmp_path / "killed"
    rng = random.Random(1)
    for wanted in (2, 11, 19, 27):
        process = _start(killed)
        while process.poll() is None and len(list(killed.glob("shard-*.json"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with pytest.raises(ValueError, match="not finished"):
            ConstructedSet.open(killed)
    _finish(_start(killed))
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_ranks_share_the_work_and_give_the_same_bytes(tmp_path, whole):
    shared = tmp_path / "shared"
    processes = [_start(shared, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in processes:
        _finish(process)
    assert contents(shared) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("places", ["here", "apart"])
def test_builds_of_one_set_at_once_make_one_set(tmp_path, whole, places):
    """Also in containers that share the folder and do not see each other, where each is process 7."""
    shared = tmp_path / "shared"
    in_a_container = (
        "import os, sys\nfrom advfeat import _locks\n_locks.place = lambda: '0000000' + sys.argv[2]\n"
        "os.getpid = lambda: 7\n_locks._BEAT, _locks._PATIENCE = 0.2, 30.0\n"
    )
    processes = [
        _start(shared, str(i), code=in_a_container + SCRIPT if places == "apart" else SCRIPT) for i in range(2)
    ]
    for process in processes:
        _finish(process)
    assert contents(shared) == contents(whole)


def test_who_builds_a_set_that_is_being_built_waits_and_says_for_whom(tmp_path, digits, model):
    waited = []

    def meanwhile():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            build(DET, model, digits, tmp_path / "set", batch_size=10, shard_size=20)
        waited.extend(str(w.message) for w in said)

    other = threading.Thread(target=meanwhile)

    def start(done, total):
        if done == 20:
            other.start()
            time.sleep(1)

    build(DET, model, digits, tmp_path / "set", batch_size=10, shard_size=20, progress=start)
    other.join()
    assert len(waited) == 1 and f"is being built in by process {os.getpid()} on" in waited[0]


def test_who_builds_another_set_where_one_is_being_built_is_refused_at_once(tmp_path, digits, model):
    refused = []

    def meanwhile():
        with pytest.raises(ValueError, match="holds another set .*batch_size is 10 there, 20 here"):
            build(DET, model, digits, tmp_path / "set", batch_size=20, shard_size=20)
        refused.append(True)

    other = threading.Thread(target=meanwhile, daemon=True)

    def start(done, total):
        if done == 20:
            other.start()
            other.join(10)
            assert refused  # while this one still has the folder

    build(DET, model, digits, tmp_path / "set", batch_size=10, shard_size=20, progress=start)


def test_a_finished_set_is_opened_where_nothing_can_be_written(tmp_path, digits, model, monkeypatch):
    first = build(DET, model, digits, tmp_path / "set")

    def read_only(file, mode="r", *args, real=open, **kwargs):
        if set(mode) & set("wax"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", read_only)
    assert build(DET, model, digits, tmp_path / "set").fingerprint == first.fingerprint
    with pytest.raises(OSError, match="Read-only file system"):
        build(RAND, model, digits, tmp_path / "other")


def test_a_model_that_gives_nan_for_some_images_does_not_block_a_build(tmp_path, digits, model):
    """Its objective there is not finite, today and at every resume."""
    inner = create("small-convnet", 10, (1, 8, 8), width=4, seed=1).eval()

    class Holes(torch.nn.Module):
        def forward(self, x):
            dark = x.flatten(1).mean(1, keepdim=True) < darkest
            return inner(x).masked_fill(dark, math.nan)

    darkest = float(digits.images().flatten(1).mean(1).sort().values[3])
    recipe = dataclasses.replace(DET, eps=0.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = build(recipe, Holes(), digits, tmp_path / "set", batch_size=45)
    assert int((~made.objective.isfinite()).sum()) == 3
    assert any("objective should be finite, got nan for sample" in str(w.message) for w in said)
    assert not made.target_success[~made.objective.isfinite()].any()
    assert build(recipe, Holes(), digits, tmp_path / "set", batch_size=45).fingerprint == made.fingerprint


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_shard_is_named_and_rebuilt(tmp_path, digits, model, damage):
    out = tmp_path / "set"
    build(DET, model, digits, out, shard_size=30)
    whole = contents(out)
    victim = out / "shard-00001.safetensors"
    data = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(data[:-100])
    elif damage == "altered":
        data[-1000] ^= 1
        victim.write_bytes(data)
    else:
        victim.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="shard-00001.safetensors"):
        ConstructedSet.open(out)
    done = []
    with pytest.warns(UserWarning, match="shard-00001.safetensors"):
        build(DET, model, digits, out, shard_size=30, progress=lambda d, t: done.append((d, t)))
    assert done[-1] == (30, 30)  # that shard alone
    assert contents(out) == whole


@pytest.mark.parametrize("full_at", [{3}, {7}, {11}, set(range(7, 99))])  # one of three shards alone, or from then on
def test_a_full_disk_leaves_the_finished_shards_and_nothing_else(tmp_path, digits, model, monkeypatch, full_at):
    out = tmp_path / "set"
    build(DET, model, digits, tmp_path / "whole", shard_size=30)
    real, written = os.fsync, []

    def full(handle):
        written.append(handle)
        if len(written) in full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="shard-0000.*|manifest") as caught:
            build(DET, model, digits, out, shard_size=30)
    assert caught.value.errno == errno.ENOSPC
    assert not list(out.glob("*.tmp")) and not list(out.glob(".*.tmp"))
    build(DET, model, digits, out, shard_size=30)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_model_or_seed_does_not_go_on_with_the_set(tmp_path, digits, model):
    out = tmp_path / "set"
    build(DET, model, digits, out, shard_size=30)
    before = contents(out)
    with pytest.raises(ValueError, match=r"model\.fingerprint"):
        build(DET, create("small-convnet", 10, (1, 8, 8), width=4, seed=2).eval(), digits, out, shard_size=30)
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        build(DET, model, digits, out, seed=1, shard_size=30)
    with pytest.raises(ValueError, match="recipe"):
        build(RAND, model, digits, out, shard_size=30)
    assert contents(out) == before


def test_another_representation_of_the_same_model_is_another_set(tmp_path, digits):
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 20), torch.nn.ReLU(), torch.nn.Linear(20, 10))
    functions = [lambda x: own[:2](x), lambda x: own[:3](x)]
    for i, (one, other) in enumerate([("1", "2"), functions]):
        out = tmp_path / str(i)
        made = [adapt(own, num_classes=10, input_shape=(1, 8, 8), representation=r).eval() for r in (one, other, one)]
        first = build(MATCH, made[0], digits, out)
        with pytest.raises(ValueError, match=r"model\.representation"):
            build(MATCH, made[1], digits, out)
        assert build(MATCH, made[2], digits, out).fingerprint == first.fingerprint
        build(DET, made[0], digits, out / "det")  # of logits alone
        build(DET, made[1], digits, out / "det")


def test_a_set_of_a_set_goes_on_where_its_source_has_moved(tmp_path, digits, model):
    build(DET, model, digits, tmp_path / "base")
    first = build(RAND, model, ConstructedSet.open(tmp_path / "base"), tmp_path / "set", shard_size=30)
    before = contents(tmp_path / "set")
    (tmp_path / "base").rename(tmp_path / "moved")
    (tmp_path / "set" / "shard-00001.json").unlink()
    again = build(RAND, model, ConstructedSet.open(tmp_path / "moved"), tmp_path / "set", shard_size=30)
    assert again.fingerprint == first.fingerprint and contents(tmp_path / "set") == before


def test_a_wrong_model_is_refused_before_anything_is_written(tmp_path, digits, model):
    out = tmp_path / "set"
    with pytest.raises(ValueError, match="7 classes, data set .digits. has 10"):
        build(DET, create("small-convnet", 7, (1, 8, 8), width=4), digits, out)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)|1, 8, 8"):
        build(DET, create("small-convnet", 10, (3, 32, 32), width=4), digits, out)
    with pytest.raises(ValueError, match="10 logits"):
        build(DET, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7)), digits, out)
    with pytest.raises(ValueError, match="does not take images"):
        build(DET, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 10)), digits, out)
    with pytest.raises(ValueError, match="representation"):
        build(MATCH, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), digits, out)
    assert not out.exists()


def test_the_manifest_says_where_everything_came_from(tmp_path, digits, model):
    out = tmp_path / "set"
    build(MATCH, model, digits, out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"] == {"kind": "match-representation", "name": "robust", "steps": 8, "step_size": 0.3} | {
        "start": "image",
        "stop": None,
    }
    assert manifest["source"] == {"name": "digits", "split": "train", "fingerprint": digits.fingerprint}
    assert len(manifest["model"]["fingerprint"]) == 64 and manifest["seed"] == 0 and manifest["complete"]
    assert manifest["attack"]["eps"] in ("inf", math.inf)
