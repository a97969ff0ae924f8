"""The folder of a training: what is in it, and that a run which was stopped ends as if it had not been."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tensor_source import blobs

from advfeat import models
from advfeat.training import TrainConfig, paper_attack, train
from advfeat.training.batches import channel_statistics

QUICK = TrainConfig(width=4, epochs=3, batch_size=16, lr=0.05)


def _files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_the_run_folder_says_what_was_done(tmp_path):
    config = QUICK.replace(eval_every=2, eval_attack=paper_attack(0.5), eval_limit=20)
    result = train(config, blobs(60), blobs(30, seed=1), tmp_path / "run")
    folder = tmp_path / "run"
    assert _files(folder) == ["checkpoint.json", "config.json", "metrics.jsonl", "model.json", "model.safetensors"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [r["epoch"] for r in rows] == [1, 2, 3]
    assert [r["test_accuracy"] is None for r in rows] == [True, False, False]
    assert all(r["robust_accuracy"] is None or 0 <= r["robust_accuracy"] <= 1 for r in rows)
    assert rows[-1]["robust_accuracy"] is not None
    written = json.loads((folder / "config.json").read_text())
    assert written["config"]["mean"] == list(channel_statistics(blobs(60))[0])
    assert written["config"]["eval_attack"]["steps"] == 7 and written["config"]["eval_attack"]["eps"] == 0.5
    assert written["data"]["train"]["fingerprint"] == blobs(60).fingerprint
    assert written["versions"]["torch"] == torch.__version__
    assert written["git"] is None or len(written["git"]["commit"]) == 40
    loaded = models.load(folder)
    x = blobs(10).images()
    assert torch.equal(loaded(x), result.model(x))
    assert models.load_extra(folder)["metrics"] == result.history[-1]


def test_links_in_a_run_s_folder_are_replaced(tmp_path):
    first, names = tmp_path / "first", ("model.json", "model.safetensors", "metrics.jsonl", "checkpoint.json")
    one = QUICK.replace(epochs=1)
    train(one, blobs(30), out=first)
    before = {name: (first / name).read_bytes() for name in names}
    second = tmp_path / "second"
    second.mkdir()
    (second / "config.json").write_bytes((first / "config.json").read_bytes())
    for name in ("model.safetensors", "metrics.jsonl"):
        (second / name).symlink_to(first / name)
    for name in ("model.json", "checkpoint.json"):
        (second / name).symlink_to(tmp_path / "nowhere" / name)
    train(one, blobs(30), out=second)
    assert not any(file.is_symlink() for file in second.iterdir()) and not (tmp_path / "nowhere").exists()
    models.load(second)
    assert {name: (first / name).read_bytes() for name in names} == before


class _Killed(Exception):
    pass


def _stop_after(steps):
    def progress(done, total):
        if done == steps:
            raise _Killed

    return progress


RESUMED = QUICK.replace(attack=paper_attack(0.3), augment="shift")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the same training gives undisturbed, and its folder, by checkpoint_every: each is trained once."""

    @functools.cache
    def trained(every):
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        config = RESUMED.replace(checkpoint_every=every)
        return train(config, blobs(60), blobs(30, seed=1), folder), folder

    return trained


@pytest.mark.parametrize("step", [0, 2, 4, 5, 9, 11])  # of 12, 4 an epoch; 4 is the last of the first epoch
@pytest.mark.parametrize("every", [1, 2, 0])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, undisturbed, step, every):
    config = RESUMED.replace(checkpoint_every=every)
    expected, whole = undisturbed(every)
    folder = tmp_path / "run"
    with pytest.raises(_Killed):
        train(config, blobs(60), blobs(30, seed=1), folder, progress=_stop_after(step))
    assert not (folder / "model.json").exists()
    steps = []
    result = train(config, blobs(60), blobs(30, seed=1), folder, progress=lambda done, _: steps.append(done))
    finished_epochs = max(0, step - 1) // 4  # the step that raises is the last of its epoch before the epoch is noted
    assert steps[0] == 4 * (finished_epochs // every * every if every else 0)
    assert models.fingerprint(result.model) == models.fingerprint(expected.model)
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    assert drop(result.history) == drop(expected.history)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert _files(folder) == _files(whole)


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path):
    """SIGKILL in the middle of an epoch, at whatever moment it comes."""
    folders = [str(folder) for folder in Path(__file__).parents[:3]]  # this one's, its helpers' and the repository
    code = (
        f"import sys; sys.path[:0] = {folders!r}\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_resume import QUICK, blobs, train\n"
        "def progress(done, total):\n"
        "    print(done, flush=True)\n"
        f"train(QUICK.replace(epochs=400), blobs(60), out={str(tmp_path / 'run')!r}, progress=progress)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 23:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = QUICK.replace(epochs=400)
        state = json.loads((tmp_path / "run" / "checkpoint.json").read_text())
        assert 4 <= state["epoch"] < 400
        done = state["epoch"]
        with pytest.raises(_Killed):  # as far as two epochs further, both ways
            train(config, blobs(60), out=tmp_path / "run", progress=_stop_after(4 * (done + 2) + 1))
        with pytest.raises(_Killed):
            train(config, blobs(60), out=tmp_path / "other", progress=_stop_after(4 * (done + 2) + 1))
    finally:
        torch.set_num_threads(threads)
    name = f"checkpoint-{done + 2:05d}.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_finished_run_is_read_and_another_one_refused(tmp_path):
    first = train(QUICK, blobs(60), out=tmp_path)
    calls = []
    again = train(QUICK, blobs(60), out=tmp_path, progress=lambda *a: calls.append(a))
    assert not calls
    assert again.history == first.history and models.fingerprint(again.model) == models.fingerprint(first.model)
    with pytest.raises(ValueError, match=r"holds another run \(lr was 0.05 and is now 0.1\).*resume=False"):
        train(QUICK.replace(lr=0.1), blobs(60), out=tmp_path)
    with pytest.raises(ValueError, match="data.train.fingerprint was"):
        train(QUICK, blobs(60, seed=1), out=tmp_path)
    with pytest.raises(ValueError, match="attack was None and is now"):
        train(QUICK.replace(attack=paper_attack()), blobs(60), out=tmp_path)
    train(QUICK.replace(checkpoint_every=2), blobs(60), out=tmp_path)  # makes no difference to the result
    replaced = train(QUICK.replace(lr=0.1), blobs(60), out=tmp_path, resume=False)
    assert models.fingerprint(models.load(tmp_path)) == models.fingerprint(replaced.model)
    assert models.fingerprint(replaced.model) != models.fingerprint(first.model)


def test_an_own_model_resumes_and_loads(tmp_path):
    def make():
        inner = models.create("small-convnet", 3, (1, 8, 8), width=3, seed=9)
        return models.adapt(inner, num_classes=3, input_shape=(1, 8, 8))

    expected = train(QUICK, blobs(60), out=tmp_path / "a", model=make())
    with pytest.raises(_Killed):
        train(QUICK, blobs(60), out=tmp_path / "b", model=make(), progress=_stop_after(6))
    resumed = train(QUICK, blobs(60), out=tmp_path / "b", model=make())
    assert models.fingerprint(resumed.model) == models.fingerprint(expected.model)
    read = train(QUICK, blobs(60), out=tmp_path / "b", model=make())
    assert models.fingerprint(read.model) == models.fingerprint(expected.model)


class _Counting(torch.nn.Module):
    """Counts its batches in a number that is no tensor."""

    def __init__(self):
        super().__init__()
        self.inner, self.batches = models.create("small-convnet", 3, (1, 8, 8), width=3, seed=9), 0

    def forward(self, x):
        self.batches += self.training
        return self.inner(x)

    def get_extra_state(self):
        return {"batches": self.batches}

    def set_extra_state(self, state):
        self.batches = state["batches"]


def test_state_that_is_no_tensor_is_in_the_checkpoint_too(tmp_path):
    def make():
        return models.adapt(_Counting(), num_classes=3, input_shape=(1, 8, 8))

    expected = train(QUICK, blobs(60), out=tmp_path / "a", model=make()).model
    with pytest.raises(_Killed):
        train(QUICK, blobs(60), out=tmp_path / "b", model=make(), progress=_stop_after(6))
    resumed = train(QUICK, blobs(60), out=tmp_path / "b", model=make()).model
    assert resumed.module.batches == expected.module.batches > 0
    assert models.fingerprint(resumed) == models.fingerprint(expected)


def test_a_model_that_is_given_gets_the_weights_of_a_finished_run_too(tmp_path):
    trained = train(QUICK, blobs(60), out=tmp_path, model=models.create("small-convnet", 3, (1, 8, 8), width=3, seed=9))
    own = models.create("small-convnet", 3, (1, 8, 8), width=3, seed=9)
    assert train(QUICK, blobs(60), out=tmp_path, model=own).model is own
    assert models.fingerprint(own) == models.fingerprint(trained.model)


@pytest.mark.parametrize("resume", [True, False])
def test_files_of_others_are_not_replaced(tmp_path, resume):
    models.save(models.create("small-convnet", 3, (1, 8, 8), width=3), tmp_path)
    (tmp_path / "checkpoint-500.safetensors").write_bytes(b"of another program")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"holds model.json, model.safetensors but no config.json of a run"):
        train(QUICK, blobs(60), out=tmp_path, resume=resume)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).unlink()
    train(QUICK, blobs(60), out=tmp_path, resume=resume)
    assert (tmp_path / "checkpoint-500.safetensors").read_bytes() == b"of another program"


def test_two_lambdas_are_two_objectives(tmp_path):
    def config(objective):
        return QUICK.replace(epochs=1, attack=paper_attack(0.1).replace(objective=objective))

    train(config(lambda model, x, y: model(x).sum(1)), blobs(60), out=tmp_path)
    with pytest.raises(ValueError, match="holds another run"):
        train(config(lambda model, x, y: -model(x).sum(1)), blobs(60), out=tmp_path)
    train(config(lambda model, x, y: model(x).sum(1)), blobs(60), out=tmp_path)


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path, how):
    with pytest.raises(_Killed):
        train(QUICK, blobs(60), out=tmp_path, progress=_stop_after(6))
    (file,) = tmp_path.glob("checkpoint-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes(data[:-1] if how == "truncated" else data))
    message = {"truncated": "is truncated", "altered": "was altered", "missing": "does not exist"}[how]
    with pytest.raises((ValueError, FileNotFoundError), match=f"{file.name} {message}"):
        train(QUICK, blobs(60), out=tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(_Killed):
        train(QUICK, blobs(60), out=tmp_path, progress=_stop_after(6))
    before = _files(tmp_path)
    sync = os.fsync

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="could not write .*: No space left on device"):
            train(QUICK, blobs(60), out=tmp_path)
    assert os.fsync is sync and _files(tmp_path) == before
    resumed = train(QUICK, blobs(60), out=tmp_path)
    assert models.fingerprint(resumed.model) == models.fingerprint(train(QUICK, blobs(60)).model)
